import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpnet_ds.data.storage.token_file import TokenFile, TokenFileWriter, token_dtype
from mpnet_ds.errors import UserError
from tests.shards import add_document

EXAMPLE = [[[10, 11, 12], [13, 2]], [[14, 15, 16, 2]]]


def write(prefix, documents, dtype="<u2"):
    writer = TokenFileWriter(prefix, np.dtype(dtype))
    for document in documents:
        add_document(writer, [np.array(ids) for ids in document])
    writer.close()
    return prefix


def test_the_example_of_the_layout_has_its_94_and_18_bytes(tmp_path):
    write(tmp_path / "shard-00000", EXAMPLE)
    assert (tmp_path / "shard-00000.bin").read_bytes() == struct.pack("<9H", 10, 11, 12, 13, 2, 14, 15, 16, 2)
    header = b"MMIDIDX\0\0" + bytes([1, 0, 0, 0, 0, 0, 0, 0]) + bytes([8]) + struct.pack("<QQ", 3, 3)
    body = struct.pack("<3i", 3, 2, 4) + struct.pack("<3q", 0, 6, 10) + struct.pack("<3q", 0, 2, 3)
    assert (tmp_path / "shard-00000.idx").read_bytes() == header + body
    assert (tmp_path / "shard-00000.idx").stat().st_size == 94
    assert (tmp_path / "shard-00000.bin").stat().st_size == 18


@pytest.mark.parametrize(("dtype", "code", "largest"), [("<u2", 8, 2**16 - 1), ("<i4", 4, 2**31 - 1)])
def test_documents_come_back_from_both_widths(tmp_path_factory, read_shard, dtype, code, largest):
    sequence = st.lists(st.integers(0, largest), min_size=1, max_size=6)

    @given(st.lists(st.lists(sequence, min_size=1, max_size=4), min_size=1, max_size=5))
    def check(documents):
        prefix = write(tmp_path_factory.mktemp("shard") / "shard-00000", documents, dtype)
        on_disk = read_shard(prefix)
        assert on_disk.code == code
        assert on_disk.documents == documents
        opened = TokenFile(prefix)
        assert opened.dtype == np.dtype(dtype)
        assert opened.tokens.tolist() == on_disk.tokens
        assert opened.sizes.tolist() == [len(ids) for ids in on_disk.sequences]
        assert opened.document_index.tolist() == on_disk.document_index

    check()


def test_offsets_count_bytes_of_the_chosen_width(tmp_path, read_shard):
    assert read_shard(write(tmp_path / "narrow", EXAMPLE, "<u2")).offsets == [0, 6, 10]
    assert read_shard(write(tmp_path / "wide", EXAMPLE, "<i4")).offsets == [0, 12, 20]


def test_ids_are_narrow_as_long_as_every_id_fits():
    assert token_dtype(2**16) == np.dtype("<u2")
    assert token_dtype(2**16 + 1) == np.dtype("<i4")


def test_the_writer_counts_what_it_wrote_and_puts_the_index_last(tmp_path):
    writer = TokenFileWriter(tmp_path / "shard", np.dtype("<u2"))
    for document in EXAMPLE:
        add_document(writer, document)
    assert (writer.num_documents, writer.num_sequences, writer.num_tokens) == (2, 3, 9)
    assert not (tmp_path / "shard.idx").exists()
    writer.close()
    assert (tmp_path / "shard.idx").exists()


def test_a_discarded_shard_leaves_nothing(tmp_path):
    writer = TokenFileWriter(tmp_path / "shard", np.dtype("<u2"))
    add_document(writer, EXAMPLE[0])
    writer.discard()
    assert not list(tmp_path.iterdir())


def test_a_shard_without_documents_is_a_shard(tmp_path, read_shard):
    prefix = write(tmp_path / "shard", [])
    assert read_shard(prefix).documents == []
    assert TokenFile(prefix).tokens.size == TokenFile(prefix).sizes.size == 0


def test_an_open_shard_cannot_be_changed(tmp_path):
    opened = TokenFile(write(tmp_path / "shard", EXAMPLE))
    with pytest.raises(ValueError, match="read-only"):
        opened.tokens[0] = 1


@pytest.mark.parametrize("suffix", ["idx", "bin"])
def test_a_missing_file_is_named(tmp_path, suffix):
    write(tmp_path / "shard", EXAMPLE)
    (tmp_path / f"shard.{suffix}").unlink()
    with pytest.raises(UserError, match=rf"shard\.{suffix} is missing"):
        TokenFile(tmp_path / "shard")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda index: b"", id="empty"),
        pytest.param(lambda index: index[:30], id="cut in the header"),
        pytest.param(lambda index: index[:-1], id="cut at the end"),
        pytest.param(lambda index: index + b"\0", id="too long"),
        pytest.param(lambda index: b"X" + index[1:], id="other magic"),
        pytest.param(lambda index: index[:9] + b"\2" + index[10:], id="other version"),
        pytest.param(lambda index: index[:17] + b"\5" + index[18:], id="other type code"),
        pytest.param(lambda index: index[:18] + b"\4" + index[19:], id="other number of sequences"),
    ],
)
def test_a_damaged_index_is_named(tmp_path, damage):
    path = write(tmp_path / "shard", EXAMPLE).with_suffix(".idx")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"shard\.idx"):
        TokenFile(tmp_path / "shard")


@pytest.mark.parametrize("lost_bytes", [1, 2, 18])
def test_ids_that_the_index_counts_but_the_file_lacks_are_noticed(tmp_path, lost_bytes):
    path = write(tmp_path / "shard", EXAMPLE).with_suffix(".bin")
    path.write_bytes(path.read_bytes()[:-lost_bytes])
    with pytest.raises(UserError, match=r"shard\.bin"):
        TokenFile(tmp_path / "shard")


def test_dots_in_the_name_are_kept(tmp_path):
    plain = write(tmp_path / "shard", EXAMPLE)
    for suffix in ("bin", "idx"):
        plain.with_suffix(f".{suffix}").rename(tmp_path / f"shard.en.{suffix}")
    assert TokenFile(tmp_path / "shard.en").tokens.tolist() == [10, 11, 12, 13, 2, 14, 15, 16, 2]


@pytest.mark.parametrize("dtype", ["<u2", "<i4"])
def test_document_starts_count_tokens(tmp_path, dtype):
    opened = TokenFile(write(tmp_path / "shard", [[[5], [6, 2]], [[7, 8, 2]], [[2]]], dtype))
    assert opened.document_starts(0, 3).tolist() == [0, 3, 6, 7]
    assert opened.document_starts(1, 2).tolist() == [3, 6]
    assert opened.document_starts(2, 3).tolist() == [6, 7]
    assert (opened.num_documents, opened.num_sequences) == (3, 4)


@pytest.mark.parametrize("entry", [-1, 4, 2**40])
def test_a_document_index_that_falls_is_not_followed(tmp_path, entry):
    path = write(tmp_path / "shard", [[[5], [6, 2]], [[7, 8, 2]], [[9, 2]]]).with_suffix(".idx")
    index = path.read_bytes()
    path.write_bytes(index[:-24] + struct.pack("<q", entry) + index[-16:])
    with pytest.raises(UserError, match=r"shard\.idx is damaged between documents 0 and 3"):
        TokenFile(tmp_path / "shard").document_starts(0, 3)
