"""Count what a training step does on a GPU, without one: python benchmarks/count_step.py

Three tables:

* The optimizer step of real engines with as many parameters as the recipe's model has, but narrow ones: operators that
  launch something, and numbers for which the host waits. Neither depends on widths.
* Forward and backward of a micro-batch at its true sizes, on tensors without numbers, by part: operators, bytes that pass
  through memory, and the milliseconds that bytes and products take at least at the rates given. Attention's own kernels are
  one operator each, and their work a formula; computed, not measured.
* The Triton kernels of attention, compiled by the installed Triton: registers, instructions for each pair of a row and a
  key, warnings of ptxas (C7515: products wait for each other).
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from unittest import mock

import torch
from operator_count import OperatorCount, Work
from report import NO_FIGURE, add_json_argument, print_table, write_results
from step_configuration import Configuration, positive
from torch import Tensor, library
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mpnet_ds.command_line import Parser, run
from mpnet_ds.config.recipe import Recipe, load_recipe
from mpnet_ds.deepspeed_workarounds import tensors_without_numbers
from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.models.attention import eager_and_sdpa
from mpnet_ds.models.attention.backend import choose_backend
from mpnet_ds.models.counting import default_dtype
from mpnet_ds.models.layers import cross_entropy, kernels
from mpnet_ds.quiet import quiet_libraries
from mpnet_ds.ranks import process_group
from mpnet_ds.training.engine import Engine

VOCAB_SIZE = 30528
"""Pieces, a multiple of 64: none need to be added for a GPU."""
CONFIGS = ("zero0", "zero1", "zero2", "zero3", "muon")
PARTS = ("embeddings", "linear maps", "attention", "its bias", "head and loss", "the rest")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
ATTENTION = ("triton_attention", "triton_attention_backward", "sdpa", "sdpa_backward")
PASSES = {"triton_attention": 4, "sdpa": 4, "triton_attention_backward": 10, "sdpa_backward": 10}
"""Operations for each row, key and number of a head: two, or five, products of a multiplication and an addition."""
NARROW = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}


def main() -> None:
    parser = Parser("Count what a training step does on a GPU.", "python benchmarks/count_step.py --attention sdpa triton")
    parser.add_argument("--recipe", default="mpnet-base", metavar="NAME|FILE", help="mpnet-base")
    parser.add_argument("--deepspeed_config", nargs="+", default=CONFIGS, metavar="NAME", help=" ".join(CONFIGS))
    parser.add_argument("--precision", nargs="+", default=["bf16"], choices=["bf16", "fp32"], help="of the engines (bf16)")
    parser.add_argument("--micro_batch_size", type=positive, default=64, metavar="N", help="sequences (64)")
    parser.add_argument("--attention", nargs="*", default=["sdpa", "triton"], choices=["sdpa", "triton"], help="both")
    parser.add_argument("--capability", type=int, nargs="*", default=[80, 90], metavar="N", help="of GPUs (80 90)")
    parser.add_argument("--tb_per_s", type=float, default=4.0, metavar="X", help="rate of memory (4.0, an H200's)")
    parser.add_argument("--tflop_per_s", type=float, default=700.0, metavar="X", help="rate of products (700)")
    add_json_argument(parser)
    arguments = parser.parse_args()
    quiet_libraries()
    recipe = load_recipe(arguments.recipe)
    rates = arguments.tb_per_s * 1e12, arguments.tflop_per_s * 1e12
    # Before the engines: ZeRO 3 replaces the linear map of the whole process.
    passes = [row for name in arguments.attention for row in count_passes(recipe, name, arguments.micro_batch_size, rates)]
    steps = [count_optimizer_step(recipe, name, kind) for name in arguments.deepspeed_config for kind in arguments.precision]
    print_steps(steps)
    print_passes(passes, recipe, arguments)
    kernels = [row for capability in arguments.capability for row in examine_kernels(recipe, capability)]
    print_kernels(kernels)
    write_results(arguments.json, passes, optimizer_steps=steps, kernels=kernels)


# The optimizer step


def count_optimizer_step(recipe: Recipe, name: str, precision: str) -> dict:
    """Launches and host reads of the third optimizer step of a real engine."""
    narrow = replace(recipe, model=replace(recipe.model, **NARROW))
    configuration = Configuration(deepspeed_config=f"ds_configs/{name}.json", precision=precision, micro_batch_size=1)
    ranks = process_group.start()
    config = configuration.engine_config(narrow, {"bf16", "fp32"})
    module = MPNetForPretraining(narrow.model.config(100))
    module.keep_logits = False
    engine, counter = Engine(module, config, recipe.optimization.weight_decay), OperatorCount()
    engine.set_learning_rate(1e-4)
    ids = torch.arange(5, 37, device=ranks.device)[None]
    batch = {"input_ids": ids, "predicted_positions": ids[:, :4] - 5, "predicted_inputs": ids[:, :4]}
    for number in range(3):  # the first allocates the optimizer's states
        if number == 2:
            engine.span = partial(_counted, counter)
        engine.backward(engine.forward(batch).sums.sum())
    assert engine.applied
    work = counter.work
    head = {"deepspeed_config": name, "precision": precision, "tensors": len(list(module.parameters()))}
    return head | {"launches": work.launches, "host_reads": work.host_reads, "operators": dict(work.operators.most_common())}


@contextmanager
def _counted(counter: OperatorCount, part: str) -> Iterator[None]:
    """A span of the engine that counts in the optimizer's step alone."""
    if part != "optimizer":
        yield
        return
    with counter:
        yield


# Forward and backward


class PartCount(OperatorCount):
    """Counts by part, in backward by the part whose forward pass made the node that runs.

    Args:
        rates: bytes and floating-point operations a second, for ``seconds``: the least that each operator takes.
    """

    def __init__(self, rates: tuple[float, float]):
        super().__init__()
        self.parts = {part: Work() for part in PARTS}
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.rates = rates
        self._current: str | None = None
        self._spans: list[tuple[int, int, str]] = []  # of sequence numbers of autograd's nodes

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the operators of a block, and of its backward pass, to a part."""
        first, self._current = torch._C._autograd._get_sequence_nr(), name
        yield
        self._spans.append((first, torch._C._autograd._get_sequence_nr(), name))
        self._current = None

    def of(self, name: str) -> Work:
        """See ``OperatorCount``."""
        return self.parts[self._part_of(name)]

    def _part_of(self, name: str) -> str:
        node = torch._C._current_autograd_node()
        number = -1 if node is None else node._sequence_nr()
        inside = [part for first, last, part in self._spans if first <= number < last]
        part = self._current if node is None else next(iter(inside), None)
        if name in ATTENTION:
            return "attention"
        return "linear maps" if name in PRODUCTS and part is None else part or "the rest"

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator is torch.ops.mpnet_ds.score.default:
            with self:  # what it is made of
                return cross_entropy.score._init_fn(*args, **(kwargs or {}))
        name = operator._schema.name.partition("::")[2]
        work = self.of(name)
        moved, flops = work.moved, work.flops
        result = super().__torch_dispatch__(operator, types, args, kwargs)
        if name == "score_logits":  # writes the gradient where the logits were; their second reading is from the L2 cache
            work.moved += args[0].numel() * args[0].element_size()
        if name in ATTENTION:
            query, key = args[0], args[1]
            work.flops += PASSES[name] * math.prod(query.shape) * key.shape[2]
            if name == "triton_attention_backward":  # dS is stored once and read twice
                columns = args[3].shape[2] + args[4].shape[3]
                work.moved += 3 * math.prod(query.shape[:3]) * columns * query.element_size()
        self.seconds[self._part_of(name)] += max((work.moved - moved) / self.rates[0], (work.flops - flops) / self.rates[1])
        return result


def count_passes(recipe: Recipe, attention: str, sequences: int, rates: tuple[float, float]) -> list[dict]:
    """A row for each part of the forward and backward pass of a micro-batch in bf16."""
    counter, backend = PartCount(rates), choose_backend(attention, torch.device("cpu"))
    tokens = recipe.data.seq_length
    predicted = int(recipe.objective.masking.num_predicted(tokens))
    with (
        tensors_without_numbers(),
        default_dtype(torch.bfloat16),
        mock.patch.dict(os.environ, TRITON_INTERPRET="1"),
        OneOperatorEach(),
    ):
        module = MPNetForPretraining(recipe.model.config(VOCAB_SIZE), recipe.objective.name, attention)
        module.keep_logits = False
        for part, inner in (("embeddings", module.mpnet.embeddings), ("head and loss", module.lm_head)):
            inner.forward = _in_part(counter, part, inner.forward)
        ids = torch.zeros(sequences, tokens, dtype=torch.int64)
        batch = {"input_ids": ids, "predicted_positions": ids[:, :predicted], "predicted_inputs": ids[:, :predicted]}
        prepare = mock.patch.object(backend, "prepare", _in_part(counter, "its bias", backend.prepare))
        with prepare, _as_on_a_gpu(), counter:
            module(**batch).sums.sum().backward()
    rows = [
        {
            "attention": attention,
            "sequences": sequences,
            "part": part,
            "launches": work.launches,
            "moved_bytes": work.moved,
            "flops": work.flops,
            "least_seconds": counter.seconds[part],
            "operators": dict(work.operators.most_common()),
        }
        for part, work in counter.parts.items()
    ]
    return rows


def _in_part(counter: PartCount, part: str, function):
    def inside(*arguments, **named):
        with counter.part(part):
            return function(*arguments, **named)

    return inside


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Let the layers use what they use on a GPU: their kernels, and PyTorch's."""
    with (
        mock.patch.object(kernels, "run_on", return_value=True),
        mock.patch.object(eager_and_sdpa, "has_kernel", return_value=True),
    ):
        yield


@library.custom_op("count_step::sdpa", mutates_args=())
def sdpa(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Stand for a kernel that reads the bias as it is; [B, H, R, D]."""
    raise NotImplementedError


@sdpa.register_fake
def _(query, key, value, bias):
    return torch.empty_like(query)


@library.custom_op("count_step::sdpa_backward", mutates_args=())
def sdpa_backward(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, out: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Stand for its backward pass."""
    raise NotImplementedError


@sdpa_backward.register_fake
def _(query, key, value, bias, out, grad):
    return tuple(map(torch.empty_like, (query, key, value, bias)))


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs, output)


sdpa.register_autograd(lambda ctx, grad: sdpa_backward(*ctx.saved_tensors, grad), setup_context=_keep)


class OneOperatorEach(TorchFunctionMode):
    """Replaces ``scaled_dot_product_attention`` and ``linear``, which a CPU takes apart, by what a GPU has."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            return sdpa(*args, kwargs["attn_mask"])
        if function is F.linear and args[0].is_contiguous():
            hidden, weight, bias = args
            return torch.addmm(bias, hidden.flatten(0, -2), weight.t()).unflatten(0, hidden.shape[:-1])
        return function(*args, **(kwargs or {}))


# The kernels


def examine_kernels(recipe: Recipe, capability: int) -> list[dict]:
    """A row for each kernel, with and without dropout where it makes a difference."""
    from compiled_kernels import DROPPED, KERNELS, compiled, elements_of_tile, examine

    width = recipe.model.hidden_size // recipe.model.num_attention_heads
    rows = []
    for kernel in KERNELS:
        for dropped in (DROPPED, 0) if kernel in ("forward", "backward") else (DROPPED,):
            program = compiled(kernel, capability, width, dropped=dropped)
            found = examine(program, capability, elements_of_tile(kernel, capability, width))
            rows.append({"kernel": kernel, "capability": capability, "dropout": bool(dropped)} | found._asdict())
    return rows


def print_steps(steps: list[dict]) -> None:
    """The table of optimizer steps."""
    head = ("optimizer step", "precision", "tensors", "launches", "host reads")
    print_table(
        head,
        [
            (row["deepspeed_config"], row["precision"], *(str(row[name]) for name in ("tensors", "launches", "host_reads")))
            for row in steps
        ],
    )


def print_passes(rows: list[dict], recipe: Recipe, arguments) -> None:
    """The table of forward and backward."""
    tokens = recipe.data.seq_length
    print(f"\nForward and backward of {recipe.name}, {arguments.micro_batch_size} sequences of {tokens} tokens, bf16")
    totals = [
        {"attention": name, "part": "all"}
        | {key: sum(row[key] for row in rows if row["attention"] == name) for key in SUMMED}
        for name in arguments.attention
    ]
    lines = [
        (
            f"{row['attention']}: {row['part']}",
            f"{row['launches']:,}",
            f"{row['moved_bytes'] / 1e9:.1f}",
            f"{row['flops'] / 1e12:.1f}",
            f"{row['least_seconds'] * 1e3:.1f}",
        )
        for name, total in zip(arguments.attention, totals, strict=True)
        for row in [*(row for row in rows if row["attention"] == name), total]
    ]
    print_table(("back-end: part", "launches", "GB", "TFLOP", "ms at least"), lines)


SUMMED = ("launches", "moved_bytes", "flops", "least_seconds")


def print_kernels(rows: list[dict]) -> None:
    """The table of kernels."""
    print()
    lines = [
        (
            row["kernel"],
            f"sm_{row['capability']}",
            "yes" if row["dropout"] else "no",
            str(row["registers"]),
            str(row["stack"]),
            str(row["shared"]),
            NO_FIGURE if row["instructions"] is None else f"{row['instructions']:.1f}",
            " ".join(row["warnings"]) or NO_FIGURE,
        )
        for row in rows
    ]
    print_table(("kernel", "GPU", "dropout", "registers", "stack", "shared", "instructions", "warnings"), lines)


if __name__ == "__main__":
    run(main)
