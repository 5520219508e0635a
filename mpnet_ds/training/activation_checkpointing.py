"""Activation checkpointing by the section of that name in DeepSpeed's JSON.

The section only configures DeepSpeed's functions; which layers go through them is decided here:

    number_checkpoints          N layers, evenly spread, are recomputed in backward; all of them if absent
    partition_activations       each rank of a tensor-parallel group keeps its part of a layer's input
    cpu_checkpointing           a layer's input waits for backward in host memory

DeepSpeed itself uses ``number_checkpoints`` to size the buffers of ``contiguous_memory_optimization``, with the same
meaning as here: that many inputs are kept.

Layers of transformers' models go through torch's own function: DeepSpeed's breaks several families, whose layers return
tuples or share tensors. ``partition_activations`` and ``cpu_checkpointing`` are DeepSpeed's, and refused for them.
"""

from collections.abc import Callable

import torch
import torch.utils.checkpoint
from torch import Tensor

from mpnet_ds.deepspeed_workarounds import keep_through_checkpointing, wrap_call
from mpnet_ds.models.module import PretrainingModule

SECTION = "activation_checkpointing"


def checkpointed_layers(num_layers: int, number_checkpoints: int | None) -> list[int]:
    """Choose the layers that are recomputed in backward: ascending numbers from 0.

    They are spread evenly, beginning with the first: 6 of 12 are 0, 2, 4, 6, 8, 10. The last layer is chosen only if all
    are: backward needs its activations first, and with query rows alone they are the fewest.

    Args:
        num_layers: L.
        number_checkpoints: N; None, or a number above L, chooses all.
    """
    count = num_layers if number_checkpoints is None else min(number_checkpoints, num_layers)
    return [i * num_layers // count for i in range(count)]


def checkpoint_layers(module: PretrainingModule, engine: dict) -> None:
    """Let chosen layers recompute their activations in backward instead of keeping them.

    The first argument of a layer is its hidden states, which are kept; other tensors are shared by all layers.

    Args:
        engine: DeepSpeed's JSON, resolved, which also configures DeepSpeed's functions; nothing changes without the section.
    """
    if SECTION not in engine:
        return
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    # On a CPU a layer's input is in host memory already; DeepSpeed would mistake it for its own copy and empty it.
    in_host_memory = get_accelerator().device_name() == "cpu"
    layers = module.layers()
    chosen = checkpointed_layers(len(layers), engine[SECTION].get("number_checkpoints"))
    if module.checkpoints_with_torch:
        for number in chosen:
            wrap_call(layers[number], _recomputing_with_torch)
        return
    # Their number in the file may be above that of the layers, and would size DeepSpeed's buffers.
    deepspeed.checkpointing.configure(
        mpu_=None,
        deepspeed_config=engine,
        num_checkpoints=len(chosen),
        checkpoint_in_cpu=False if in_host_memory else None,
    )
    for number in chosen:
        wrap_call(layers[number], _recomputing)


def _recomputing_with_torch(call: Callable, *arguments, **options):
    """Return what a layer's ``call`` does, without keeping its activations; arguments and results may be anything."""
    if not torch.is_grad_enabled():
        return call(*arguments, **options)
    return torch.utils.checkpoint.checkpoint(call, *arguments, use_reentrant=False, **options)


def _recomputing(call: Callable, hidden: Tensor, *arguments, **options):
    """Return what a layer's ``call`` does, without keeping its activations."""
    import deepspeed

    if not torch.is_grad_enabled():
        return call(hidden, *arguments, **options)
    # Where it partitions, DeepSpeed loses count of arguments that are not tensors: these stay outside.
    positions = [position for position, argument in enumerate(arguments) if isinstance(argument, Tensor)]
    tensors = [arguments[position] for position in positions]
    keep_through_checkpointing(*tensors)
    # Without the tensors: DeepSpeed keeps the function, and all that it refers to, beyond the step.
    others = [None if isinstance(argument, Tensor) else argument for argument in arguments]

    def compute(hidden: Tensor, *tensors: Tensor):
        values = list(others)
        for position, tensor in zip(positions, tensors, strict=True):
            values[position] = tensor
        return call(hidden, *values, **options)

    return deepspeed.checkpointing.checkpoint(compute, hidden, *tensors)
