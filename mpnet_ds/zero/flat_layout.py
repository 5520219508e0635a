"""Where parameters are in the flat tensors of ZeRO: arithmetic only, no files.

A parameter group of two parameters, a of shape [3] and b of shape [4], over R = 2 ranks:

* **ZeRO 1, 2.** The parameters of a group are concatenated, padded to a multiple of 2 R elements and cut into R equal
  partitions; what the last ranks have of the padding is not saved:

      a a a b b b b ·     rank 0: a a a b     rank 1: b b b
      b = elements 3 … 6 of the concatenated partitions = element 3 of rank 0, elements 0 … 2 of rank 1

  With DeepSpeed's ``parameter_alignment``, padding follows single parameters too.
* **ZeRO 3.** Each parameter is cut by itself into R partitions of ceil(numel / R) elements, the last ones padded; a rank's
  partitions of all parameters are concatenated, in one or several flat tensors (``sub_group_size``):

      a a | a ·   b b | b b     rank 0: a a b b     rank 1: a · b b
      b = elements 2 … 3 of rank 0, elements 2 … 3 of rank 1
"""

import math
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple


class FlatRange(NamedTuple):
    """Consecutive elements of a parameter, by where they are in a rank's flat tensors."""

    rank: int
    number: int
    """Which of the rank's flat tensors."""
    begin: int
    length: int


@dataclass(frozen=True)
class Location:
    """Shape of a parameter and where its elements are, in order."""

    shape: tuple[int, ...]
    ranges: list[FlatRange] = field(default_factory=list)


def locate_stages_1_and_2(
    shapes: list[dict[str, tuple]], paddings: list[list[int]] | None, lengths: list[list[int]]
) -> dict[str, Location]:
    """Locate parameters in flat tensors of ``lengths[rank][group]`` elements.

    Args:
        shapes: of each group, name → shape, in order.
        paddings: of each group, elements of padding after each parameter; None for none.
    Raises:
        ValueError: there are not as many elements as the shapes say.
    """
    locations = {}
    if any(len(groups) != len(shapes) for groups in lengths):
        raise ValueError(f"flat tensors of {', '.join(str(len(groups)) for groups in lengths)} groups, not {len(shapes)}")
    for number, group in enumerate(shapes):
        parts, start = [groups[number] for groups in lengths], 0
        between = paddings[number] if paddings else [0] * len(group)
        for (name, shape), padding in zip(group.items(), between, strict=True):
            numel = math.prod(shape)
            found = _ranges(parts, start, numel, name)
            locations[name] = Location(shape, [FlatRange(rank, number, begin, length) for rank, begin, length in found])
            start += numel + padding
        if sum(parts) - start >= 2 * len(parts):
            raise ValueError(f"{sum(parts):,} elements in group {number}, {start:,} expected")
    return locations


def locate_stage_3(shapes: list[dict[str, tuple]], lengths: list[list[int]]) -> dict[str, Location]:
    """Locate parameters in flat tensors of ``lengths[rank][i]`` elements; arguments and errors as above."""
    locations, start, ranks = {}, 0, len(lengths)
    for group in shapes:
        for name, shape in group.items():
            numel = math.prod(shape)
            part, ranges = math.ceil(numel / ranks), []
            for rank in range(ranks):
                length = max(0, min(part, numel - rank * part))
                ranges += [FlatRange(rank, *found) for found in _ranges(lengths[rank], start, length, name)]
            locations[name] = Location(shape, ranges)
            start += part
    expected = [sum(math.ceil(math.prod(shape) / ranks) for shape in group.values()) for group in shapes]
    for rank, parts in enumerate(lengths):
        if sum(parts) != start or (len(parts) == len(shapes) and parts != expected):
            raise ValueError(f"{parts} elements of rank {rank}, {expected} expected")
    return locations


def _ranges(lengths: list[int], start: int, length: int, name: str) -> list[tuple[int, int, int]]:
    """(number, begin, length) of elements ``start`` … ``start + length - 1`` of concatenated vectors."""
    found = []
    for number, (end, size) in enumerate(zip(accumulate(lengths), lengths, strict=True)):
        here = min(length, end - start)
        if here > 0:
            found.append((number, start - (end - size), here))
            start, length = start + here, length - here
    if length:
        raise ValueError(f"{length:,} elements of {name} are missing")
    return found
