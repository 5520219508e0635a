import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mpnet_ds.data.storage import piece_counts
from mpnet_ds.data.storage.piece_counts import add_up, count_pieces, decode, encode, entropy
from mpnet_ds.data.storage.token_file import TokenFile, TokenFileWriter
from mpnet_ds.errors import UserError
from tests.shards import add_document

COUNTS = arrays(np.int64, st.integers(0, 40), elements=st.integers(0, 2**62) | st.integers(0, 300))


@given(COUNTS)
def test_counts_come_back(counts):
    found = decode(encode(counts))
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, counts)


@given(COUNTS, st.data())
def test_no_damage_gives_other_counts(counts, data):
    text = encode(counts)
    at = data.draw(st.integers(0, len(text) - 1))
    damaged = data.draw(st.sampled_from([text[:at], text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :], text[at:]]))
    try:
        found = decode(damaged)
    except ValueError:
        return
    np.testing.assert_array_equal(found, counts)  # only bits of base64 that mean nothing have changed


@given(st.lists(arrays(np.int64, 7, elements=st.integers(0, 2**50)), max_size=4), st.integers(0, 4))
def test_sums_are_those_of_all_or_unknown(counts, unknown):
    texts = list(map(encode, counts))
    np.testing.assert_array_equal(decode(add_up(texts, 7)), np.sum([np.zeros(7, int), *counts], axis=0))
    assert add_up([*texts[:unknown], "", *texts[unknown:]], 7) == ""


@pytest.fixture
def shard(tmp_path):
    """A function (ids, dtype): a shard of one document."""

    def write(ids, dtype):
        writer = TokenFileWriter(tmp_path / "shard", np.dtype(dtype))
        add_document(writer, [np.array(ids)])
        writer.close()
        return TokenFile(tmp_path / "shard")

    return write


@pytest.mark.parametrize("dtype", ["<u2", "<i4"])
def test_each_id_of_a_shard_is_counted(shard, monkeypatch, dtype):
    monkeypatch.setattr(piece_counts, "TOKENS_AT_ONCE", 3)
    done = []
    counts = count_pieces(shard([5, 0, 5, 2, 5, 6, 2], dtype), 9, done.append)
    assert counts.tolist() == [1, 0, 2, 0, 0, 3, 1, 0, 0]
    assert sum(done) == 7 * np.dtype(dtype).itemsize


@pytest.mark.parametrize(("id_", "dtype"), [(9, "<u2"), (2**31 - 1, "<i4"), (-1, "<i4")])
def test_an_id_outside_the_vocabulary_is_named(shard, id_, dtype):
    with pytest.raises(UserError, match=r"shard\.bin holds an id outside the vocabulary of 9: .*--verify, and build"):
        count_pieces(shard([5, id_], dtype), 9)


def test_the_entropy_is_that_of_what_is_predicted():
    assert entropy([100, 4, 0, 4, 4, 4], left_out=[0]) == pytest.approx(math.log(4))
    assert entropy([0.25, 0.5, 0.25], left_out=[]) == pytest.approx(1.5 * math.log(2))
    assert entropy([7, 0, 0], left_out=[0]) == 0
