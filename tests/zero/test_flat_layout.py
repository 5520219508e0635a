import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpnet_ds.zero.flat_layout import FlatRange, locate_stage_3, locate_stages_1_and_2

SHAPES = {"a": (3,), "b": (4,)}
shapes = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=6)


def test_example_of_the_docstring():
    locations = locate_stages_1_and_2([SHAPES], None, [[4], [3]])
    assert locations["b"].ranges == [FlatRange(0, 0, 3, 1), FlatRange(1, 0, 0, 3)]
    locations = locate_stage_3([SHAPES], [[4], [4]])
    assert locations["b"].ranges == [FlatRange(0, 0, 2, 2), FlatRange(1, 0, 2, 2)]
    assert locations["a"].ranges == [FlatRange(0, 0, 0, 2), FlatRange(1, 0, 0, 1)]


def named(lists, prefix: str) -> dict:
    return {f"{prefix}{number}": shape for number, shape in enumerate(lists)}


def tensors_of(groups) -> dict[str, torch.Tensor]:
    """A number for each element, none twice."""
    sizes = [math.prod(shape) for group in groups for shape in group.values()]
    numbers = torch.arange(float(sum(sizes))).split(sizes)
    return {name: flat.view(shape) for (name, shape), flat in zip(_items(groups), numbers, strict=True)}


def _items(groups):
    return [item for group in groups for item in group.items()]


def assert_found(locations, flats, tensors) -> None:
    """``flats[rank][number]``."""
    assert list(locations) == list(tensors)
    for name, location in locations.items():
        pieces = [flats[rank][number][begin : begin + length] for rank, number, begin, length in location.ranges]
        whole = torch.cat([torch.empty(0), *pieces])
        assert torch.equal(whole.view(location.shape), tensors[name]), name


@given(st.lists(shapes, min_size=1, max_size=3), st.integers(1, 5), st.data())
def test_stages_1_and_2_find_every_number_in_the_ranks_parts(lists, ranks, data):
    groups = [named(group, f"g{number}.") for number, group in enumerate(lists)]
    paddings = [[data.draw(st.integers(0, 3)) for _ in group] for group in groups]
    tensors, flats = tensors_of(groups), [[] for _ in range(ranks)]
    for group, between in zip(groups, paddings, strict=True):
        parts = [torch.cat([tensors[name].flatten(), -torch.ones(gap)]) for name, gap in zip(group, between, strict=True)]
        flat = torch.cat(parts)
        flat = torch.cat([flat, -torch.ones(-len(flat) % (2 * ranks))])
        end = sum(len(part) for part in parts)  # the padding at the end is not saved
        for rank, part in enumerate(flat.chunk(ranks) if len(flat) else [flat] * ranks):
            flats[rank].append(part[: max(0, end - rank * len(part))])
    lengths = [[len(flat) for flat in rank] for rank in flats]
    assert_found(locate_stages_1_and_2(groups, paddings, lengths), flats, tensors)


@given(st.lists(shapes, min_size=1, max_size=3), st.integers(1, 5), st.data())
def test_stage_3_finds_every_number_in_the_ranks_parts(lists, ranks, data):
    groups = [named(group, f"g{number}.") for number, group in enumerate(lists)]
    tensors, whole = tensors_of(groups), [[torch.empty(0)] for _ in range(ranks)]
    for tensor in tensors.values():
        part = math.ceil(tensor.numel() / ranks)
        padded = torch.cat([tensor.flatten(), -torch.ones(part * ranks - tensor.numel())])
        for rank in range(ranks):
            whole[rank].append(padded[rank * part : (rank + 1) * part])
    length = sum(map(len, whole[0]))
    cuts = data.draw(st.lists(st.integers(0, length), max_size=4).filter(lambda cuts: len(cuts) + 1 != len(groups)))
    cuts = sorted(cuts)  # as many flat tensors as groups must be one for each
    flats = [torch.cat(rank).tensor_split(cuts) for rank in whole]
    lengths = [[len(flat) for flat in rank] for rank in flats]
    assert_found(locate_stage_3(groups, lengths), flats, tensors)


@pytest.mark.parametrize(
    ("lengths", "message"), [([[4], [2]], "1 elements of b are missing"), ([[8], [8]], "16 elements in group")]
)
def test_numbers_too_few_or_too_many_are_refused(lengths, message):
    with pytest.raises(ValueError, match=message):
        locate_stages_1_and_2([SHAPES], None, lengths)


def test_flat_tensors_that_are_not_those_of_the_groups_are_refused_at_stage_3():
    with pytest.raises(ValueError, match=r"\[3, 1\] elements of rank 0, \[2, 2\] expected"):
        locate_stage_3([{"a": (3,)}, {"b": (4,)}], [[3, 1], [3, 1]])


@pytest.mark.parametrize("lengths", [[[4], [3]], [[4], [5]], [[3], [3]]])
def test_ranks_with_other_lengths_are_refused_at_stage_3(lengths):
    with pytest.raises(ValueError, match="elements of"):
        locate_stage_3([SHAPES], lengths)
