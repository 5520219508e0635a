"""Names for fp32 master weights that DeepSpeed saves without any: ZeRO 0 in 16 bit.

There they are lists of tensors, or one flat tensor for each group. A master weight, rounded to training precision, is the
module's weight, so the values tell.
"""

import torch
from torch import Tensor

from mpnet_ds.errors import UserError
from mpnet_ds.zero.flat_layout import FlatRange, Location
from mpnet_ds.zero.torch_file import Span, StoredTensor

SAMPLE = 256
"""Values that are compared first, or alone."""


def match_master_weights(groups: list[list[Span]], module: dict[str, StoredTensor]) -> dict[str, Location]:
    """Locate the fp32 master weight of each name; ``FlatRange.number`` counts the flat tensors over all groups.

    Where several weights have the same values, the one that follows in the module's order is taken, which groups keep.

    Args:
        groups: flat tensors, each one parameter or several, concatenated.
        module: the weights in training precision, in the module's order.
    Raises:
        UserError: some master weights belong to no weight of the module.
    """
    heads = {name: weight.spans[0].part(0, SAMPLE).read(is_checked=False) for name, weight in module.items()}
    order = {name: position for position, name in enumerate(module)}
    locations: dict[str, Location] = {}
    number = 0
    for group in groups:
        previous = -1
        for flat in group:
            begin = 0
            while begin < flat.numel:
                free = [name for name in module if name not in locations]
                # The longest first, as others may begin alike; of equal length those that follow first.
                free.sort(key=lambda name: (-module[name].numel, order[name] < previous))
                name = _find(flat.part(begin, flat.numel), free, module, heads)
                locations[name] = Location(module[name].shape, [FlatRange(0, number, begin, module[name].numel)])
                begin, previous = begin + module[name].numel, order[name]
            number += 1
    return locations


def _find(flat: Span, free: list[str], module: dict[str, StoredTensor], heads: dict[str, Tensor]) -> str:
    """The first of the free weights whose values ``flat`` begins with."""
    head = flat.part(0, SAMPLE).read(is_checked=False)
    for name in free:
        fits = is_rounded(head[: len(heads[name])], heads[name])
        if fits and _agree(flat.part(0, module[name].numel), module[name]):
            return name
    raise UserError(f"{flat.record.path}: some of its fp32 weights belong to no weight of the module.")


def is_rounded(masters: Tensor, weights: Tensor) -> bool:
    """Whether one-dimensional ``weights`` are ``masters`` rounded to their precision."""
    return torch.equal(masters.to(weights.dtype).nan_to_num(), weights.nan_to_num())


def _agree(master: Span, weight: StoredTensor) -> bool:
    pairs = zip(master.chunks(is_checked=False), weight.spans[0].chunks(is_checked=False), strict=False)
    return master.numel == weight.numel and all(is_rounded(a, b) for a, b in pairs)
