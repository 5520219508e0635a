"""Which weight is which where DeepSpeed saves fp32 weights without names: ZeRO 0 in 16 bit.

There the optimizer's fp32 weights ("masters") are lists of tensors, or one flat tensor for each group. A master, rounded to
training precision, is the module's weight, so their numbers tell.
"""

import torch
from torch import Tensor

from mpnet_ds.checkpoint.flat_layout import Piece, Place
from mpnet_ds.checkpoint.tensor_file import StoredTensor, Stretch
from mpnet_ds.errors import UserError

SAMPLE = 256
"""Numbers that are compared first, or alone."""


def match_masters(flats: list[Stretch], module: dict[str, StoredTensor]) -> dict[str, Place]:
    """Name → where its master lies; ``Piece.number`` counts the flats.

    Args:
        flats: of one or several parameters each, end to end.
        module: the weights in training precision.
    Raises:
        UserError: a stretch of masters belongs to no weight.
    """
    free = sorted(module, key=lambda name: -module[name].numel)  # of those that fit, the longest: others may begin alike
    heads = {name: module[name].stretches[0].part(0, SAMPLE).read(is_checked=False) for name in free}
    places = {}
    for number, flat in enumerate(flats):
        begin = 0
        while begin < flat.numel:
            head = flat.part(begin, SAMPLE).read(is_checked=False)
            fitting = (name for name in free if is_rounded(head[: len(heads[name])], heads[name]))
            name = next((name for name in fitting if _agree(flat.part(begin, module[name].numel), module[name])), None)
            if name is None:
                raise UserError(f"{flat.file.path}: fp32 weights, group {number}, belong to no weight of the module.")
            free.remove(name)
            places[name] = Place(module[name].shape, [Piece(0, number, begin, module[name].numel)])
            begin += module[name].numel
    return places


def is_rounded(masters: Tensor, weights: Tensor) -> bool:
    """Whether one-dimensional ``weights`` are ``masters`` in another precision."""
    return torch.equal(masters.to(weights.dtype).nan_to_num(), weights.nan_to_num())


def _agree(master: Stretch, weight: StoredTensor) -> bool:
    pairs = zip(master.chunks(is_checked=False), weight.stretches[0].chunks(is_checked=False), strict=False)
    return master.numel == weight.numel and all(is_rounded(a, b) for a, b in pairs)
