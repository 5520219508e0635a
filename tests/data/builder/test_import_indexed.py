import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpnet_ds.data import PretrainingDataset
from mpnet_ds.data.builder.import_indexed import find_prefixes, import_dataset
from mpnet_ds.data.storage import indexed_file
from mpnet_ds.data.storage.manifest import DatasetManifest
from mpnet_ds.data.storage.verify import verify
from mpnet_ds.errors import UserError

LARGE_IDS = {1: 250, 2: 120, 3: 997, 4: 997, 5: 997, 8: 997, 9: 997, 10: 997}
"""By type code: an id that it can hold."""


@pytest.fixture(scope="module")
def import_into(tokenizer_folder):
    """A function (folder, *inputs): imports with the tokenizer of 999 ids and returns the folder."""

    def import_next(folder, *inputs, **options):
        import_dataset([str(name) for name in inputs], tokenizer_folder, folder, show_progress=False, **options)
        return folder

    return import_next


@pytest.fixture(scope="module")
def documents_of(read_shard):
    """A function (folder): documents of a dataset as lists of sequences."""

    def read(folder):
        shards = json.loads((folder / "dataset.json").read_text())["shards"]
        return [document for shard in shards for document in read_shard(folder / shard["name"]).documents]

    return read


@pytest.fixture
def imported(import_into, write_foreign, documents_of, tmp_path):
    """A function (documents, kind, …): what becomes of them."""

    def import_these(documents, kind="megatron", code=8, **options):
        prefix = write_foreign(tmp_path / "foreign", documents, code, kind)
        return documents_of(import_into(tmp_path / "dataset", prefix, **options))

    return import_these


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 8])
def test_megatrons_documents_come_with_one_end_each(imported, code):
    largest = LARGE_IDS[code]
    documents = [[[5, 6, 7], [8, largest]], [[9]], [[10, 11], [12, 2]]]
    assert imported(documents, code=code) == [[[5, 6, 7], [8, largest, 2]], [[9, 2]], [[10, 11], [12, 2]]]


@pytest.mark.parametrize("code", sorted(LARGE_IDS))
def test_fairseqs_blank_lines_separate_documents(imported, code):
    largest = LARGE_IDS[code]
    lines = [[2], [5, 6, 2], [7, largest, 2], [2], [2], [8, 2], []]
    assert imported([lines], "fairseq", code) == [[[5, 6], [7, largest, 2]], [[8, 2]]]


def test_fairseqs_lines_are_documents_where_none_is_blank(imported, tmp_path):
    assert imported([[[5, 6, 2], [7, 2], [8, 9]]], "fairseq") == [[[5, 6, 2]], [[7, 2]], [[8, 9, 2]]]
    assert DatasetManifest.load(tmp_path / "dataset").sources[0]["documents_by"] == "lines"


sequences = st.lists(st.lists(st.integers(4, 997), max_size=4), max_size=4)


@pytest.mark.parametrize("kind", ["megatron", "fairseq"])
def test_any_documents_come_back(import_into, write_foreign, documents_of, tmp_path_factory, monkeypatch, kind):
    monkeypatch.setattr(indexed_file, "TOKENS_AT_ONCE", 7)
    monkeypatch.setattr(indexed_file, "ENTRIES_AT_ONCE", 3)

    @settings(max_examples=20)
    @given(st.lists(sequences, min_size=1, max_size=12), st.booleans(), st.booleans(), st.integers(1, 9))
    def check(documents, begin_marked, end_marked, tokens_per_shard):
        folder = tmp_path_factory.mktemp("any")
        expected = [[ids for ids in document if ids] for document in documents]
        expected = [[*document[:-1], [*document[-1], 2]] for document in expected if document]
        marked = end_marked or kind == "fairseq"
        stored = [[[0] * begin_marked + ids + [2] * marked for ids in document] for document in documents]
        if kind == "fairseq":  # an empty line would end the document
            stored = [[*(ids for ids in document if len(ids) > begin_marked + 1), [2]] for document in stored]
        prefix = write_foreign(folder / "foreign", stored, 8, kind)
        if not expected:
            with pytest.raises(UserError, match="no document in"):
                import_into(folder / "dataset", prefix)
            return
        import_into(folder / "dataset", prefix, tokens_per_shard=tokens_per_shard)
        assert documents_of(folder / "dataset") == expected

    check()


def test_an_import_is_an_ordinary_dataset(import_into, write_foreign, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(indexed_file, "TOKENS_AT_ONCE", 500)
    rng = np.random.default_rng(0)
    documents = [[rng.integers(5, 998, 20).tolist() for _ in range(3)] for _ in range(50)]
    prefix = write_foreign(tmp_path / "foreign", documents)
    folder = import_into(tmp_path / "dataset", prefix, tokens_per_shard=1000)
    assert verify(folder, show_progress=False).problems == []
    manifest = DatasetManifest.load(folder)
    assert (manifest.documents, manifest.sequences, manifest.tokens) == (50, 150, 50 * 61)
    expected = np.bincount(np.ravel(documents), minlength=999)
    expected[2] = 50
    np.testing.assert_array_equal(manifest.decoded_piece_counts(), expected)
    assert len(manifest.shards) > 2
    assert manifest.tokenizer_fingerprint == tokenizer.fingerprint
    (source,) = manifest.sources
    sizes = [(tmp_path / f"foreign.{suffix}").stat().st_size for suffix in ("bin", "idx")]
    assert (source["path"], source["kind"], source["num_bytes"]) == (f"{prefix}.bin", "megatron", sum(sizes))
    assert source["modified"] == (tmp_path / "foreign.bin").stat().st_mtime
    assert PretrainingDataset(folder, 64).batch([0, 1])["input_ids"].shape == (2, 64)


def test_another_end_of_document_is_replaced(imported):
    documents = [[[5, 6], [7, 50256]], [[8, 9, 50256]], [[50256]], [[10, 2, 50256]]]
    expected = [[[5, 6], [7, 2]], [[8, 9, 2]], [[10, 2]]]
    assert imported(documents, end_of_document=50256) == expected


@pytest.mark.parametrize(
    ("ids", "code", "message"),
    [
        ([5, 999], 8, r"foreign\.bin: byte 8, sequence 1: id 999 is outside the vocabulary of 999 ids.*--end_of_document"),
        ([5, -3], 4, r"foreign\.bin: byte 16, sequence 1: id -3 is outside"),
        ([5, 2, 6], 8, r"byte 8, sequence 1: id 2 is '</s>', which is never the id of text"),
        ([5, 0, 6], 8, "byte 8, sequence 1: id 0 is '<s>'"),
        ([5, 1], 8, "byte 8, sequence 1: id 1 is '<pad>'"),
        ([5, 998], 8, "byte 8, sequence 1: id 998 is '<mask>'"),
    ],
)
def test_ids_that_the_tokenizer_does_not_give_are_named_with_their_place(imported, tmp_path, ids, code, message):
    with pytest.raises(UserError, match=message):
        imported([[[0, 7, 8]], [ids]], code=code)
    assert not (tmp_path / "dataset").exists()


def test_the_place_is_right_beyond_the_first_part(imported, monkeypatch):
    monkeypatch.setattr(indexed_file, "TOKENS_AT_ONCE", 10)
    with pytest.raises(UserError, match="byte 202, sequence 101: id 5000"):
        imported([[[5], [6]] for _ in range(50)] + [[[7], [5000]]])


def test_several_files_make_one_dataset_in_order(import_into, write_foreign, documents_of, tmp_path):
    for number in (10, 9, 1):
        write_foreign(tmp_path / f"part.v1_{number}", [[[number + 4]]])
    write_foreign(tmp_path / "train", [[[100, 2], [101, 2]]], kind="fairseq")
    folder = import_into(tmp_path / "dataset", tmp_path / "train.bin", tmp_path / "part.v1_*")
    assert documents_of(folder) == [[[100, 2]], [[101, 2]], [[5, 2]], [[13, 2]], [[14, 2]]]


def test_prefixes_are_found_with_and_without_ending(write_foreign, tmp_path):
    prefix = str(write_foreign(tmp_path / "train.en", [[[5]]]))
    for name in (prefix, f"{prefix}.idx", f"{prefix}.bin", f"{tmp_path}/t*", f"{tmp_path}/*.idx"):
        assert find_prefixes([name]) == [prefix]
    with pytest.raises(UserError, match=r"train\.en is given twice"):
        find_prefixes([prefix, f"{tmp_path}/*"])
    with pytest.raises(UserError, match=r"nowhere\.idx: no such file"):
        find_prefixes([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match=r"the folder has train\.en"):
        find_prefixes([str(tmp_path)])


@pytest.mark.parametrize("num_sequences", [0, 1, 2, 3, 5, 8])
@pytest.mark.parametrize("num_documents", [0, 1, 2, 3, 4])
def test_the_size_tells_both_kinds_apart_whatever_the_counts(write_foreign, tmp_path, num_sequences, num_documents):
    documents = [[[5]] * num_sequences] + [[]] * num_documents
    for kind in ("megatron", "fairseq"):
        prefix = write_foreign(tmp_path / kind, documents, kind=kind)
        assert indexed_file.IndexedFile(str(prefix)).kind == kind


def change(path, at, value):
    content = bytearray(path.read_bytes())
    content[at : at + len(value)] = value
    path.write_bytes(content)


DAMAGES = {
    "magic": (lambda idx, ids: change(idx, 0, b"X"), r"foreign\.idx is not an index of Megatron or fairseq"),
    "older fairseq": (lambda idx, ids: change(idx, 0, b"TNTIDX\0\0"), r"foreign\.idx is in fairseq's old format"),
    "version": (lambda idx, ids: change(idx, 9, b"\2"), r"foreign\.idx: unknown version 2; expected 1"),
    "float64": (lambda idx, ids: change(idx, 17, b"\6"), r"foreign\.idx: type code 6 is not an integer type"),
    "float32": (lambda idx, ids: change(idx, 17, b"\7"), r"foreign\.idx: type code 7 is not an integer type"),
    "fairseq's uint32 in Megatron's": (lambda idx, ids: change(idx, 17, b"\11"), "type code 9 is not"),
    "empty": (lambda idx, ids: idx.write_bytes(b""), r"foreign\.idx is not an index"),
    "cut": (lambda idx, ids: idx.write_bytes(idx.read_bytes()[:-3]), r"foreign\.idx has 91 bytes for 3 sequences"),
    "cut to fairseq's size": (lambda idx, ids: idx.write_bytes(idx.read_bytes()[:62]), r"foreign\.idx: sequence 0 does not"),
    "modes": (lambda idx, ids: idx.write_bytes(idx.read_bytes() + b"\0\0\0"), "Megatron's multimodal"),
    "offset": (lambda idx, ids: change(idx, 54, b"\7"), r"foreign\.idx: sequence 1 does not start"),
    "size below 0": (lambda idx, ids: change(idx, 34, struct.pack("<i", -3)), r"foreign\.idx: sequence 0 does not start"),
    "document index": (
        lambda idx, ids: change(idx, 70, b"\1"),
        r"foreign\.idx: the document index does not rise from 0 to 3",
    ),
    "falling documents": (lambda idx, ids: change(idx, 78, b"\4"), "the document index does not rise from 0 to 3"),
    "forgotten documents": (lambda idx, ids: change(idx, 86, b"\2"), "merged by a tool that loses documents"),
    "short .bin": (lambda idx, ids: ids.write_bytes(b"\5\0"), r"foreign\.bin has 2 bytes, its index says 12"),
    "no .bin": (lambda idx, ids: ids.unlink(), r"foreign\.bin is missing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_named(imported, import_into, write_foreign, tmp_path, name):
    prefix = write_foreign(tmp_path / "foreign", [[[5, 6, 7], [8, 9]], [[10]]])
    damage, message = DAMAGES[name]
    damage(tmp_path / "foreign.idx", tmp_path / "foreign.bin")
    with pytest.raises(UserError, match=message):
        import_into(tmp_path / "dataset", prefix)
    assert not (tmp_path / "dataset").exists()


def test_an_end_repeated_without_end_is_dropped_quickly(imported):
    assert imported([[[5, *[2] * 10_000]], [[2] * 10_000]]) == [[[5, 2]]]


def test_nothing_to_import_is_said(imported):
    with pytest.raises(UserError, match=r"no document in .*foreign: there is nothing to import"):
        imported([[[2]], []])
