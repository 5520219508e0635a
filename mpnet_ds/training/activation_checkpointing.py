"""Activation checkpointing by the section of that name in DeepSpeed's JSON.

The section only configures DeepSpeed's functions; which layers go through them is decided here:

    number_checkpoints          N: so many layers, evenly spread, are computed again in backward; absent, all of them
    partition_activations       each rank of a tensor-parallel group keeps its part of a layer's input
    cpu_checkpointing           a layer's input waits for backward in the memory of the host

DeepSpeed itself uses ``number_checkpoints`` to size the buffers of ``contiguous_memory_optimization``, and so takes it as
it is meant here: that many inputs are kept.
"""

from collections.abc import Callable

from torch import Tensor, nn

from mpnet_ds.deepspeed_workarounds import keep_through_checkpointing
from mpnet_ds.models.attention.backend import Backend

SECTION = "activation_checkpointing"


def checkpointed_layers(num_layers: int, number_checkpoints: int | None) -> list[int]:
    """Numbers, from 0 and ascending, of the layers that are computed again in backward.

    They are spread evenly, beginning with the first: 6 of 12 are 0, 2, 4, 6, 8, 10. The last layer is taken only if all
    are: backward needs its activations first, and with query rows alone they are the fewest.

    Args:
        num_layers: L.
        number_checkpoints: N of them; None, or more than there are, is all.
    """
    count = num_layers if number_checkpoints is None else min(number_checkpoints, num_layers)
    return [i * num_layers // count for i in range(count)]


def layer_runner(layers: nn.ModuleList, engine: dict) -> Callable | None:
    """``f(layer, *arguments)``, which runs a layer and keeps its activations or not; None keeps them everywhere.

    Args:
        layers: the encoder's.
        engine: DeepSpeed's JSON, resolved; DeepSpeed's functions are configured with it.
    """
    if SECTION not in engine:
        return None
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    # On a processor a layer's input lies there already; DeepSpeed would take it for its own copy and empty it.
    in_host_memory = get_accelerator().device_name() == "cpu"
    deepspeed.checkpointing.configure(
        mpu_=None, deepspeed_config=engine, checkpoint_in_cpu=False if in_host_memory else None
    )
    chosen = {layers[i] for i in checkpointed_layers(len(layers), engine[SECTION].get("number_checkpoints"))}

    def run(
        layer: nn.Module, hidden: Tensor, backend: Backend, num_content: int, first_row: int, *prepared: Tensor
    ) -> Tensor:
        def compute(hidden: Tensor, *prepared: Tensor) -> Tensor:
            return layer(hidden, backend, num_content, first_row, *prepared)

        if layer not in chosen:
            return compute(hidden, *prepared)
        keep_through_checkpointing(*prepared)
        # It also loses count of arguments that are no tensors, where it partitions.
        return deepspeed.checkpointing.checkpoint(compute, hidden, *prepared)

    return run
