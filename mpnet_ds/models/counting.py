"""Sizes of any module, counted by running it once on fake tensors: no memory is taken and nothing is computed.

A forward and a backward pass run on tensors that only have shapes; ``FlopCounterMode`` counts matrix products and
``MemTracker`` what autograd keeps.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mpnet_ds.deepspeed_workarounds import memory_tracker, tensors_without_numbers
from mpnet_ds.models.layers import cross_entropy  # noqa: F401, its operator is counted
from mpnet_ds.models.module import ComputeSetting, ModulePlan, PretrainingModule


def count(
    build: Callable[[], PretrainingModule], batch: dict[str, np.ndarray], setting: ComputeSetting | None = None
) -> ModulePlan:
    """Count the sizes of a module and of the micro-batches that it is trained on.

    Args:
        build: builds the module.
        batch: a micro-batch, of which shapes and types matter.
    """
    setting, micro_batch_size = setting or ComputeSetting(), len(batch["sequence_numbers"])
    dtype = torch.float32 if setting.bytes_per_number == 4 else torch.bfloat16
    with warnings.catch_warnings(), tensors_without_numbers(), default_dtype(dtype):
        warnings.simplefilter("ignore")
        module, flops = build(), FlopCounterMode(display=False, custom_mapping={torch.ops.mpnet_ds.score: _flops_of_score})
        with flops:  # apart from the memory: what is recomputed counts once
            _run(module, batch)
        module.zero_grad()
        for layer in module.layers()[: setting.checkpointed_layers]:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        memory = memory_tracker()
        memory.track_external(module)
        with memory:
            _run(module, batch)
        peak = next(iter(memory.get_tracker_snapshot("peak").values()))
        held = {str(kind).rpartition(".")[2]: size for kind, size in peak.items()}
        states = sum(held.get(kind, 0) for kind in ("PARAM", "GRAD", "BUFFER"))
        return ModulePlan(
            *numbers_of(module),
            flops_per_sequence=flops.get_total_flops() / micro_batch_size,
            activation_bytes=held["Total"] - states,
        )


def estimate(
    build: Callable[[], PretrainingModule],
    seq_length: int,
    micro_batch_size: int,
    targets: int,
    setting: ComputeSetting | None = None,
) -> ModulePlan:
    """Estimate the sizes of a module that cannot run on fake tensors; its parameters are counted.

    A weight costs 6 FLOPs a token. A layer keeps 34 numbers of 16 bits for each hidden number of its input: what Korthikanti
    et al. (arXiv 2205.05198) count, without the scores of attention, which such families do not have whole.

    Args:
        targets: tokens of a sequence whose logits are computed.
    """
    setting = setting or ComputeSetting()
    with torch.device("meta"):
        module = build()
    config, (parameters, hidden) = module.parts()[""].config, numbers_of(module)
    kept = len(module.layers()[setting.checkpointed_layers :]) * 34 / 2 + len(module.layers()) + 34 / 2
    numbers = kept * micro_batch_size * seq_length * config.hidden_size
    return ModulePlan(
        parameters=parameters,
        hidden_numbers=hidden,
        flops_per_sequence=6.0 * (hidden * seq_length + config.vocab_size * config.hidden_size * targets),
        activation_bytes=round(numbers * setting.bytes_per_number),
        is_estimate=True,
    )


def count_parameters(build: Callable[[], PretrainingModule]) -> tuple[int, int]:
    """Count ``numbers_of`` a module without running it."""
    with torch.device("meta"):
        return numbers_of(build())


def numbers_of(module: PretrainingModule) -> tuple[int, int]:
    """Count a module's trainable numbers, and those of its hidden matrices among them."""
    trainable = (parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return sum(trainable), sum(matrix.numel() for matrix in module.hidden_matrices())


def _flops_of_score(hidden: torch.Size, weight: torch.Size, *arguments, out_shape=None) -> int:
    """Operations of ``layers/cross_entropy.py``: the projection and, where gradients are recorded, both of its gradients."""
    *_, is_recorded = arguments
    return 2 * hidden[0] * weight.numel() * (3 if is_recorded else 1)


def _run(module: PretrainingModule, batch: dict[str, np.ndarray]) -> None:
    """Run forward and backward of a batch of these shapes."""
    tensors = {name: torch.empty(array.shape, dtype=_dtype(array)) for name, array in batch.items()}
    module(**tensors).sums.sum().backward()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Create new parameters in this type inside the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _dtype(array: np.ndarray) -> torch.dtype:
    return {"b": torch.bool, "f": torch.float32}.get(array.dtype.kind, torch.int64)
