import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpnet_ds.data.storage.manifest import MIB, DatasetManifest, FileRecord, ShardRecord
from mpnet_ds.data.storage.piece_counts import encode
from mpnet_ds.data.storage.token_file import TokenFileWriter
from mpnet_ds.data.storage.verify import verify
from mpnet_ds.errors import UserError
from mpnet_ds.tokenizer import PretrainingTokenizer
from tests.shards import add_document

DAMAGE = re.compile(r"(.*): bytes ([\d,]+) to ([\d,]+) are damaged")


@pytest.fixture(scope="module")
def make_dataset(tokenizer_folder):
    """A function (folder, documents of each shard): writes a dataset of these ids."""
    tokenizer = PretrainingTokenizer.load(tokenizer_folder)

    def make(folder, *shards, dtype="uint16"):
        folder.mkdir()
        shutil.copytree(tokenizer_folder, folder / "tokenizer")
        records = []
        for number, documents in enumerate(shards):
            writer = TokenFileWriter(folder / f"shard-{number:05d}", np.dtype(dtype))
            for document in documents:
                add_document(writer, [np.array(ids) for ids in document])
            writer.close()
            counts = (writer.num_sequences, writer.num_documents, writer.num_tokens)
            records.append(ShardRecord(f"shard-{number:05d}", *counts, {}))
        manifest = DatasetManifest(
            dtype=dtype,
            vocab_size=tokenizer.vocab_size,
            special_ids={"bos": 0, "pad": 1, "eos": 2, "mask": tokenizer.mask_id},
            tokenizer_fingerprint=tokenizer.fingerprint,
            documents=sum(record.documents for record in records),
            sequences=sum(record.sequences for record in records),
            tokens=sum(record.tokens for record in records),
            shards=records,
            sources=[],
            command="",
            tool_version="",
        )
        manifest.save(folder)
        sign(folder)
        return folder

    return make


def sign(folder):
    """Gives the manifest the checksums of the files as they are, so that only their structure can be at fault."""
    manifest = DatasetManifest.load(folder)
    shards = [
        replace(shard, files={suffix: FileRecord.of(shard.file(folder, suffix)) for suffix in ("bin", "idx")})
        for shard in manifest.shards
    ]
    replace(manifest, shards=shards).save(folder)


def problems_of(folder):
    return verify(folder, show_progress=False).problems


@pytest.fixture(scope="module")
def large(make_dataset, tmp_path_factory):
    """Two shards of 4 MB and one small, with indexes above 1 MiB."""
    rng = np.random.default_rng(0)

    def documents(num_sequences):
        sizes = rng.integers(1, 41, num_sequences)
        sequences = np.split(rng.integers(5, 900, sizes.sum()), np.cumsum(sizes)[:-1])
        for sequence in sequences[9::10]:
            sequence[-1] = 2
        return [sequences[at : at + 10] for at in range(0, num_sequences, 10)]

    return make_dataset(tmp_path_factory.mktemp("large") / "dataset", documents(100_000), documents(100_000), documents(10))


def test_a_whole_dataset_has_no_problem_and_every_byte_is_read(large, dataset_folder):
    for folder in (large, dataset_folder):
        found = verify(folder, show_progress=False)
        assert found.problems == []
        files = [path for path in folder.rglob("shard-*") if path.suffix in (".bin", ".idx")]
        assert found.num_bytes == sum(path.stat().st_size for path in files)


@pytest.mark.parametrize("name", ["shard-00000.bin", "shard-00001.idx", "shard-00002.bin"])
def test_any_flipped_bit_is_found_in_its_mib(large, name):
    path = large / name
    content = path.read_bytes()

    @settings(max_examples=20)
    @given(st.integers(0, len(content) - 1), st.integers(0, 7))
    def check(byte, bit):
        with open(path, "r+b") as file:
            file.seek(byte)
            file.write(bytes([content[byte] ^ 1 << bit]))
        try:
            places = [match.groups() for problem in problems_of(large) if (match := DAMAGE.match(problem))]
        finally:
            path.write_bytes(content)
        ((where, first, last),) = places
        first, last = (int(number.replace(",", "")) for number in (first, last))
        assert where == str(path)
        assert first <= byte <= last
        assert last - first < MIB
        assert first % MIB == 0

    check()


def test_all_damage_is_listed_and_neighbours_are_joined(large, tmp_path):
    folder = shutil.copytree(large, tmp_path / "copy")
    for name, places in {"shard-00000.bin": [5, MIB + 5, 3 * MIB], "shard-00001.idx": [MIB - 1]}.items():
        content = bytearray((folder / name).read_bytes())
        for place in places:
            content[place] ^= 1
        (folder / name).write_bytes(content)
    found = [match.groups()[1:] for problem in problems_of(folder) if (match := DAMAGE.match(problem))]
    last_byte = (folder / "shard-00000.bin").stat().st_size - 1
    assert found == [
        ("0", f"{2 * MIB - 1:,}"),
        (f"{3 * MIB:,}", f"{min(4 * MIB - 1, last_byte):,}"),
        ("0", f"{MIB - 1:,}"),
    ]


def test_cut_missing_and_unreadable_files_are_named(large, tmp_path):
    folder = shutil.copytree(large, tmp_path / "copy")
    path = folder / "shard-00000.bin"
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(MIB + 100)
    (folder / "shard-00001.idx").unlink()
    (folder / "shard-00002.bin").unlink()
    (folder / "shard-00002.bin").mkdir()
    found = "\n".join(problems_of(folder))
    assert f"{path} has {MIB + 100:,} bytes, dataset.json says {size:,}" in found
    assert f"{folder / 'shard-00001.idx'} is missing" in found
    assert f"{folder / 'shard-00002.bin'} cannot be read" in found
    assert "damaged" not in found


def test_the_holdout_is_checked_too(dataset_folder, tmp_path):
    folder = shutil.copytree(dataset_folder, tmp_path / "copy")
    path = folder / "holdout" / "shard-00000.bin"
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    assert [problem for problem in problems_of(folder) if problem.startswith(f"{path}: bytes 0 to")]
    (folder / "holdout" / "dataset.json").unlink()
    found = f"{folder / 'holdout'} is not a finished dataset (dataset.json is missing)."
    assert problems_of(folder) == [f"{found} Build it with python tools/build_dataset.py."]


def test_a_changed_manifest_is_noticed(large, tmp_path):
    folder = shutil.copytree(large, tmp_path / "copy")
    manifest = DatasetManifest.load(folder)
    shard = manifest.shards[2]
    files = shard.files | {"bin": replace(shard.files["bin"], sha256="0" * 64)}
    replace(manifest, tokens=7, shards=[*manifest.shards[:2], replace(shard, sequences=3, files=files)]).save(folder)
    found = "\n".join(problems_of(folder))
    assert f"dataset.json: 7 tokens, but its shards have {manifest.tokens:,}" in found
    assert "shard-00002.bin: xxh3_64 or sha256 differs from dataset.json" in found
    assert "shard-00002.idx: sequences: 10, dataset.json says 3" in found


def test_counts_of_pieces_that_are_not_those_of_the_tokens_are_noticed(make_dataset, tmp_path):
    folder = make_dataset(tmp_path / "dataset", DOCUMENTS)
    replace(DatasetManifest.load(folder), piece_counts=encode(np.eye(999, dtype=int)[7])).save(folder)
    assert problems_of(folder) == [f"{folder}/dataset.json: 11 tokens, but piece_counts add up to 1"]


def test_another_tokenizer_is_noticed(large, tmp_path, save_word_tokenizer):
    folder = shutil.copytree(large, tmp_path / "copy")
    shutil.rmtree(folder / "tokenizer")
    save_word_tokenizer(folder / "tokenizer", 994)
    assert [problem for problem in problems_of(folder) if "tokenizer: fingerprint" in problem]


DOCUMENTS = [[[10, 11, 12], [13, 2]], [[14, 15, 16, 2]], [[17, 2]]]
SIZES_AT, OFFSETS_AT, DOCUMENTS_AT = 34, 34 + 4 * 4, 34 + 12 * 4


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
@pytest.mark.parametrize(
    ("token", "value", "message"),
    [
        (1, 999, "byte {byte} (sequence 0, document 0): an id that is not below 999"),
        (6, 2, "byte {byte} (sequence 2, document 1): </s> before the end of a document"),
        (4, 20, "byte {byte} (sequence 1, document 0): a document that does not end in </s>"),
        (10, 998, "byte {byte} (sequence 3, document 2): a document that does not end in </s>"),
    ],
)
def test_ids_that_no_text_gives_are_found_behind_good_checksums(make_dataset, tmp_path, dtype, token, value, message):
    folder = make_dataset(tmp_path / "dataset", DOCUMENTS, DOCUMENTS, dtype=dtype)
    assert problems_of(folder) == []
    path = folder / "shard-00001.bin"
    ids = np.fromfile(path, dtype)
    ids[token] = value
    ids.tofile(path)
    sign(folder)
    assert problems_of(folder) == [f"{path}: {message.format(byte=token * ids.itemsize)}"]


def test_an_end_that_moved_is_found_at_both_places(make_dataset, tmp_path):
    folder = make_dataset(tmp_path / "dataset", [[[5, 6, 7], [8, 9]], [[10, 2, 11, 2]]])
    path = folder / "shard-00000.bin"
    assert problems_of(folder) == [
        f"{path}: byte 8 (sequence 1, document 0): a document that does not end in </s>",
        f"{path}: byte 12 (sequence 2, document 1): </s> before the end of a document",
    ]


def test_an_id_below_0_is_found(make_dataset, tmp_path):
    folder = make_dataset(tmp_path / "dataset", [[[5, -1, 2]]], dtype="int32")
    (found,) = problems_of(folder)
    assert "byte 4 (sequence 0, document 0): an id that is not below" in found


def test_faults_of_one_kind_are_counted(make_dataset, tmp_path):
    folder = make_dataset(tmp_path / "dataset", [[[5, 2000, 6, 2001, 2]], [[2002, 2]]])
    (found,) = problems_of(folder)
    assert found.endswith("byte 2 (sequence 0, document 0): an id that is not below 999; 3 in all")


@pytest.mark.parametrize(
    ("at", "dtype", "value", "message"),
    [
        (SIZES_AT + 4, "<i4", -2, f"byte {SIZES_AT + 4} (sequence 1): a negative size"),
        (OFFSETS_AT + 8, "<i8", 4, f"byte {OFFSETS_AT + 8} (sequence 1): an offset that is not the end"),
        (OFFSETS_AT, "<i8", 2, f"byte {OFFSETS_AT} (sequence 0): an offset that is not the end"),
        (DOCUMENTS_AT + 8, "<i8", 3, f"byte {DOCUMENTS_AT + 8} (document 1): a document without sequences"),
        (DOCUMENTS_AT, "<i8", 1, "the document index goes from 1 to 4, not 0 to 4"),
        (DOCUMENTS_AT + 24, "<i8", 5, "the document index goes from 0 to 5, not 0 to 4"),
        (26, "<i8", 0, "shard-00000.idx: version 1, type code 8, document index of 0"),
        (0, "<u1", 0, "shard-00000.idx is not a token index"),
    ],
)
def test_a_faulty_index_is_found_behind_good_checksums(make_dataset, tmp_path, at, dtype, value, message):
    folder = make_dataset(tmp_path / "dataset", DOCUMENTS)
    path = folder / "shard-00000.idx"
    index = bytearray(path.read_bytes())
    value = np.array(value, dtype).tobytes()
    index[at : at + len(value)] = value
    path.write_bytes(index)
    sign(folder)
    assert any(message in problem for problem in problems_of(folder))


def test_no_dataset_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="no dataset folder"):
        verify(tmp_path / "nowhere")
