"""Where parameters lie in the flat tensors of ZeRO: arithmetic only, no files.

A parameter group of two parameters, a of shape [3] and b of shape [4], over R = 2 ranks:

* **ZeRO 1, 2.** The parameters of a group are laid end to end, the whole is padded to a multiple of 2 R and cut into R equal
  parts; what the last ranks have of the padding is not saved:

      a a a b b b b ·     rank 0: a a a b     rank 1: b b b
      b = numbers 3 … 6 of the ranks' parts laid end to end = number 3 of rank 0, numbers 0 … 2 of rank 1

  With DeepSpeed's ``parameter_alignment``, padding follows single parameters too.
* **ZeRO 3.** Each parameter is cut by itself into R parts of ceil(numel / R) numbers, the last ones padded; a rank's parts
  of all parameters lie end to end, in one or several flat tensors (``sub_group_size``):

      a a | a ·   b b | b b     rank 0: a a b b     rank 1: a · b b
      b = numbers 2 … 3 of rank 0, numbers 2 … 3 of rank 1
"""

import math
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple


class Piece(NamedTuple):
    """Consecutive numbers of a parameter: where in the flat tensors they lie."""

    rank: int
    number: int
    """Of the rank's flat tensor."""
    begin: int
    length: int


@dataclass(frozen=True)
class Place:
    """Where a parameter lies."""

    shape: tuple[int, ...]
    pieces: list[Piece] = field(default_factory=list)


def places_of_stages_1_and_2(
    shapes: list[dict[str, tuple]], paddings: list[list[int]] | None, lengths: list[list[int]]
) -> dict[str, Place]:
    """Where parameters lie in flat tensors of ``lengths[rank][group]`` numbers.

    Args:
        shapes: of each group, name → shape, in order.
        paddings: of each group, numbers after each parameter that mean nothing; None for none.
    Raises:
        ValueError: there are not as many numbers as the shapes say.
    """
    places = {}
    if any(len(groups) != len(shapes) for groups in lengths):
        raise ValueError(f"flat tensors of {', '.join(str(len(groups)) for groups in lengths)} groups, not {len(shapes)}")
    for number, group in enumerate(shapes):
        parts, start = [groups[number] for groups in lengths], 0
        between = paddings[number] if paddings else [0] * len(group)
        for (name, shape), padding in zip(group.items(), between, strict=True):
            numel = math.prod(shape)
            found = _pieces(parts, start, numel, name)
            places[name] = Place(shape, [Piece(rank, number, begin, length) for rank, begin, length in found])
            start += numel + padding
        if sum(parts) - start >= 2 * len(parts):
            raise ValueError(f"{sum(parts):,} numbers in group {number}, {start:,} expected")
    return places


def places_of_stage_3(shapes: list[dict[str, tuple]], lengths: list[list[int]]) -> dict[str, Place]:
    """Where parameters lie in flat tensors of ``lengths[rank][i]`` numbers; arguments and errors as above."""
    places, start, ranks = {}, 0, len(lengths)
    for group in shapes:
        for name, shape in group.items():
            numel = math.prod(shape)
            part, pieces = math.ceil(numel / ranks), []
            for rank in range(ranks):
                length = max(0, min(part, numel - rank * part))
                pieces += [Piece(rank, *found) for found in _pieces(lengths[rank], start, length, name)]
            places[name] = Place(shape, pieces)
            start += part
    expected = [sum(math.ceil(math.prod(shape) / ranks) for shape in group.values()) for group in shapes]
    for rank, parts in enumerate(lengths):
        if sum(parts) != start or (len(parts) == len(shapes) and parts != expected):
            raise ValueError(f"{parts} numbers of rank {rank}, {expected} expected")
    return places


def _pieces(lengths: list[int], start: int, length: int, name: str) -> list[tuple[int, int, int]]:
    """(number, begin, length) of numbers ``start`` … ``start + length - 1`` of vectors laid end to end."""
    found = []
    for number, (end, size) in enumerate(zip(accumulate(lengths), lengths, strict=True)):
        here = min(length, end - start)
        if here > 0:
            found.append((number, start - (end - size), here))
            start, length = start + here, length - here
    if length:
        raise ValueError(f"{length:,} numbers of {name} are missing")
    return found
