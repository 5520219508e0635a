"""Count what operators would do on a GPU: launches, numbers that the host waits for, bytes, floating-point operations.

A counter sees every operator that PyTorch dispatches while it is active. On a CPU, too: a tensor counts as one of the device
unless it was copied to the host by ``tensor.to("cpu", copy=True)``, or computed of such tensors alone.
"""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

WITHOUT_LAUNCH = (
    *("_unsafe_view", "detach", "alias", "lift_fresh", "set_data", "set_", "resize_", "is_pinned"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("_record_function_enter_new", "_record_function_exit"),
)
"""Operators without a kernel, besides views."""
READING_FEW = ("embedding", "gather", "index", "index_select")
"""Operators that read as many numbers of a table as they write."""


@dataclass
class Work:
    """What operators did."""

    launches: int = 0
    """Operators that launch a kernel or a copy; a multi-tensor operator is one."""
    host_reads: int = 0
    """Numbers for which the host waits until the device has computed them."""
    moved: int = 0
    """Bytes of inputs and outputs, each counted once an operator: what must pass through memory if nothing is cached."""
    flops: int = 0
    """Of matrix products."""
    operators: Counter = field(default_factory=Counter)
    """Launches by name."""

    def __iadd__(self, other: "Work") -> "Work":
        self.launches += other.launches
        self.host_reads += other.host_reads
        self.moved += other.moved
        self.flops += other.flops
        self.operators += other.operators
        return self


class OperatorCount(TorchDispatchMode):
    """Active in a ``with`` block; ``work`` grows with each operator. A subclass may keep several, see ``of``."""

    def __init__(self):
        super().__init__()
        self.work = Work()
        self._on_host = WeakTensorKeyDictionary()

    def of(self, name: str) -> Work:
        """The work to which an operator is added, by the operator's name without its namespace."""
        return self.work

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        namespace, _, name = operator._schema.name.partition("::")
        result = operator(*args, **kwargs)
        if namespace == "prim":  # such as reading a tensor's device
            return result
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        computed_on_host = bool(inputs) and all(tensor in self._on_host for tensor in inputs)
        if computed_on_host or self._copies_to_host(name, kwargs):
            self._on_host.update(dict.fromkeys(outputs, True))
        if computed_on_host:
            return result
        if name == "_local_scalar_dense" or self._copies_to_host(name, kwargs):
            self.of(name).host_reads += 1
        elif not (operator.is_view or name in WITHOUT_LAUNCH):
            work = self.of(name)
            work.launches += 1
            work.operators[name] += 1
            work.moved += moved_bytes(name, inputs, outputs)
            if operator.overloadpacket in flop_registry:
                work.flops += flop_registry[operator.overloadpacket](*args, **kwargs, out_val=result)
        return result

    @staticmethod
    def _copies_to_host(name: str, kwargs: dict) -> bool:
        device = kwargs.get("device")
        return name == "_to_copy" and device is not None and torch.device(device).type == "cpu"


def moved_bytes(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    """Bytes that an operator reads and writes; of a table that it looks up, as many as it writes."""
    if name in READING_FEW:
        inputs = [*inputs[1:], *outputs]
    return sum(map(_bytes, {id(tensor): tensor for tensor in inputs}.values())) + sum(map(_bytes, outputs))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
