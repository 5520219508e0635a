"""The table of chunks behaves like a dictionary of byte strings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpnet_ds.data.builder.chunk_table import EMPTY, ChunkTable, keys_of

WIDTH = 2
PADDING = b"\xff" * 8 * WIDTH
strings = st.binary(min_size=1, max_size=8 * WIDTH).map(lambda string: string.replace(b"\0", b"x"))


def keys(some):
    sizes = np.array([len(string) for string in some], dtype=np.int64)
    return keys_of(b"".join(some) + PADDING, np.cumsum(sizes) - sizes, sizes, WIDTH)


@given(
    st.lists(strings, unique=True, max_size=40), st.lists(strings, unique=True, max_size=40), st.lists(strings, max_size=40)
)
def test_what_was_put_in_is_found_and_nothing_else(first, second, others):
    table, expected = ChunkTable(WIDTH, capacity=80), {}
    for added in (first, [string for string in second if string not in first]):
        numbers = np.arange(len(expected), len(expected) + len(added), dtype=np.int32)
        table.add(keys(added), numbers)
        expected |= dict(zip(added, numbers.tolist(), strict=True))
    asked = [*first, *second, *others]
    assert table.find(keys(asked)).tolist() == [expected.get(string, EMPTY) for string in asked]
    assert len(table) == len(expected)


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_a_table_may_be_filled_to_its_capacity_and_emptied(count):
    strings = [f"string {i}".encode() for i in range(2 * count)]
    table = ChunkTable(WIDTH, capacity=count)
    for _ in range(2):
        table.add(keys(strings[:count]), np.arange(count, dtype=np.int32))
        assert table.find(keys(strings)).tolist() == [*range(count), *[EMPTY] * count]
        table.clear()
        assert (table.find(keys(strings)) == EMPTY).all()


def test_strings_that_differ_in_any_byte_or_in_size_have_different_keys():
    base = b"abcdefghijklmnop"
    some = [base[:size] for size in range(1, 17)] + [base[:i] + b"-" + base[i + 1 :] for i in range(16)]
    assert len(set(zip(*(key.tolist() for key in keys(some)), strict=True))) == len(some)
