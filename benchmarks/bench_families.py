"""Time a step of transformers' models against a plain loop with ``labels=``: python benchmarks/bench_families.py

Both are forward, backward and optimizer step (PyTorch's fused AdamW) of one batch of random ids, from the same weights, with
the recipe's dropout. The plain one is the family's class of transformers as people call it: all tokens pass the head, the
loss is its own. Both keep freed memory, as in training (mpnet_ds/ranks/host_memory.py). They take turns; the ratio is the
median over the pairs. Memory is what fake tensors count at the worst moment of forward and backward, beyond weights and
gradients.
"""

import copy
import statistics
from types import SimpleNamespace

import numpy as np
import torch
from bench_straightforward import PRECISIONS, step
from report import add_json_argument, write_results
from torch import Tensor, nn

from mpnet_ds.command_line import Parser, run
from mpnet_ds.config.recipe import Recipe, load_recipe
from mpnet_ds.machine import show_bytes
from mpnet_ds.models.counting import count
from mpnet_ds.models.module import ComputeSetting, PretrainingModule, Scores
from mpnet_ds.objectives.base import Sequences, Vocabulary
from mpnet_ds.quiet import quiet_libraries
from mpnet_ds.ranks.host_memory import keep_freed_memory
from mpnet_ds.tokenizer_layouts import LAYOUTS
from mpnet_ds.training.engine import parameter_groups

SPECIAL = 5  # ids of special tokens, from 0
RECIPES = ("bert-base", "roberta-base", "distilbert-base", "gpt2", "deberta-base")


class Plain(PretrainingModule):
    """The family's class with ``labels=``, on the batches of an objective."""

    def __init__(self, model: nn.Module, is_causal: bool):
        super().__init__()
        self.model, self.is_causal = model, is_causal

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor | None = None, **batch: Tensor) -> Scores:
        """Sum the losses, as transformers' mean times the number of targets."""
        ids, labels = input_ids, input_ids
        if not self.is_causal:
            positions = batch["predicted_positions"]
            ids = input_ids.scatter(1, positions, batch["predicted_inputs"])
            labels = torch.full_like(ids, -100).scatter(1, positions, input_ids.gather(1, positions))
        return Scores(sums=self.model(input_ids=ids, labels=labels).loss.float()[None])

    def layers(self) -> list[nn.Module]:
        """None is recomputed."""
        return []


def main() -> None:
    parser = Parser("Time a step against a plain loop.", "python benchmarks/bench_families.py --recipes bert-base gpt2")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), metavar="NAME|FILE")
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--vocab_size", type=int, default=30_522, metavar="N")
    parser.add_argument("--seq_length", type=int, default=512, metavar="N")
    parser.add_argument("--micro_batch_size", type=int, default=2, metavar="N", help="sequences (2)")
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="timed steps of each, after a warm-up")
    add_json_argument(parser)
    arguments = parser.parse_args()
    quiet_libraries()
    keep_freed_memory()
    head = f"{'recipe':16} {'precision':9} {'plain':>9} {'here':>9} {'ratio':>6} {'plain':>11} {'here':>11}"
    print(f"{head}   ratios of the pairs")
    rows = []
    for name in arguments.recipes:
        for precision in arguments.precision:
            rows.append(measure(load_recipe(name), precision, arguments))
            row = rows[-1]
            seconds = f"{row['plain_seconds']:7.2f} s {row['seconds']:7.2f} s {row['ratio']:6.2f}"
            sizes = f"{show_bytes(row['plain_bytes']):>11} {show_bytes(row['bytes']):>11}"
            ratios = " ".join(f"{ratio:.2f}" for ratio in row["ratios"])
            print(f"{row['recipe']:16} {precision:9} {seconds} {sizes}   {ratios}", flush=True)
    write_results(arguments.json, rows, micro_batch_size=arguments.micro_batch_size, seq_length=arguments.seq_length)


def measure(recipe: Recipe, precision: str, arguments) -> dict:
    """Measure seconds of a step and bytes of activations, of both, and the median ratio of the pairs."""
    tokenizer, seq_length = tokenizer_of(recipe, arguments.vocab_size), arguments.seq_length
    is_causal, dtype = recipe.objective.name == "clm", PRECISIONS[precision]

    def build() -> PretrainingModule:
        return recipe.objective.build(recipe.model, tokenizer, seq_length)

    def build_plain() -> PretrainingModule:
        model = build().model
        return Plain(type(model)(copy.deepcopy(model.config)), is_causal)

    batch = random_batch(recipe, tokenizer, seq_length, arguments.micro_batch_size)
    setting = ComputeSetting(bytes_per_number=4 if precision == "fp32" else 2)
    numbered = batch | {"sequence_numbers": np.arange(arguments.micro_batch_size)}
    sizes = [count(make, numbered, setting).activation_bytes for make in (build_plain, build)]
    modules = [build_plain(), build()]
    modules[0].model.load_state_dict(modules[1].model.state_dict())
    modules = [module.to(dtype) for module in modules]
    optimizers = [torch.optim.AdamW(parameter_groups(module, 0.01), lr=1e-5, fused=True) for module in modules]
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    number = sum(recipe.objective.num_targets(batch))
    losses = [lambda: modules[0](**tensors).sums[0], lambda: modules[1](**tensors).sums[0] / number]
    sides = list(zip(losses, optimizers, strict=True))
    seconds = [[step(*side) for side in sides] for _ in range(arguments.pairs + 1)][1:]
    ratios = [own / plain for plain, own in seconds]
    theirs, ours = (statistics.median(column) for column in zip(*seconds, strict=True))
    return {
        "recipe": recipe.name,
        "precision": precision,
        "plain_seconds": theirs,
        "seconds": ours,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "plain_bytes": sizes[0],
        "bytes": sizes[1],
    }


def tokenizer_of(recipe: Recipe, vocab_size: int) -> SimpleNamespace:
    """Make up what a model needs to know of a tokenizer."""
    layout = LAYOUTS[recipe.model.family.layouts[0]]
    words = SimpleNamespace(starts=np.ones(vocab_size, dtype=bool), ends=np.zeros(vocab_size, dtype=bool))
    ids = {"pad_id": 0, "unknown_id": 1, "begin_id": 2, "end_id": 3, "mask_id": 4, "special_ids": np.arange(SPECIAL)}
    return SimpleNamespace(vocab_size=vocab_size, layout=layout, words=words, sentinel_ids=(), language_ids=(), **ids)


def random_batch(recipe: Recipe, tokenizer: SimpleNamespace, seq_length: int, size: int) -> dict[str, np.ndarray]:
    """Draw full sequences of random ids, and what the objective makes of them."""
    ids = np.random.default_rng(0).integers(SPECIAL, tokenizer.vocab_size, (size, seq_length))
    sequences = Sequences(keys=np.arange(size, dtype=np.uint64), ids=ids, real=np.ones(ids.shape, dtype=bool))
    batch = recipe.objective.draw(sequences, Vocabulary.of(tokenizer))
    return {name: array for name, array in batch.items() if name != "attention_mask"}


if __name__ == "__main__":
    run(main)
