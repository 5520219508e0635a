import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import xxhash

from mpnet_ds.data import PretrainingDataset, build_dataset
from mpnet_ds.data.build import holdout_fraction_of, train_tokenizer_on
from mpnet_ds.data.manifest import DatasetManifest
from mpnet_ds.errors import UserError
from mpnet_ds.tokenizer import PretrainingTokenizer

HOLDOUT = 0.1


@pytest.fixture
def build(tokenizer_folder, tmp_path):
    """A function (*inputs, **options): builds a dataset and returns its folder."""

    def build_next(*inputs, name="dataset", **options):
        build_dataset([str(path) for path in inputs], tokenizer_folder, tmp_path / name, show_progress=False, **options)
        return tmp_path / name

    return build_next


@pytest.fixture
def documents_of(read_shard):
    """A function (folder): tokens of each document, in order."""

    def read(folder):
        shards = sorted(Path(folder).glob("shard-*.bin"))
        return [
            tuple(token for ids in document for token in ids)
            for shard in shards
            for document in read_shard(shard.with_suffix("")).documents
        ]

    return read


def write_text(path, documents):
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


def expected_fraction(text):
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 2**64


def test_every_document_is_stored_with_its_sequences_and_one_end(build, corpus_files, tokenizer, read_shard):
    (shard,) = (read_shard(path.with_suffix("")) for path in build(corpus_files.txt).glob("*.bin"))
    assert len(shard.documents) == len(corpus_files.documents)
    for document, text in zip(shard.documents, corpus_files.documents, strict=True):
        *first, last = tokenizer.encode(text.split("\n"))
        assert document == [*(ids.tolist() for ids in first), [*last.tolist(), 2]]


def test_both_kinds_of_file_give_the_same_bytes(build, corpus_files):
    from_text, from_json = build(corpus_files.txt, name="txt"), build(corpus_files.jsonl, name="jsonl")
    for name in ("shard-00000.bin", "shard-00000.idx"):
        assert (from_text / name).read_bytes() == (from_json / name).read_bytes()


def test_one_thread_and_a_second_run_build_the_same_bytes(dataset_folder, tokenizer_folder, corpus_files, tmp_path):
    program = "import sys; from mpnet_ds.data import build_dataset\n"
    program += "build_dataset([sys.argv[1]], sys.argv[2], sys.argv[3], workers=1, holdout=0.1)"
    arguments = [corpus_files.txt, str(tokenizer_folder), str(tmp_path / "again")]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True)
    assert DatasetManifest.load(tmp_path / "again").checksum == DatasetManifest.load(dataset_folder).checksum
    assert (tmp_path / "again/shard-00000.bin").read_bytes() == (dataset_folder / "shard-00000.bin").read_bytes()


def test_the_manifest_counts_what_the_shards_hold(dataset_folder, read_shard):
    for folder in (dataset_folder, dataset_folder / "holdout"):
        content = json.loads((folder / "dataset.json").read_text())
        shards = [read_shard(folder / entry["name"]) for entry in content["shards"]]
        assert content["documents"] == sum(len(shard.documents) for shard in shards)
        assert content["sequences"] == sum(len(shard.sequences) for shard in shards)
        assert content["tokens"] == sum(len(shard.tokens) for shard in shards)
        assert content["documents"] == sum(shard.tokens.count(2) for shard in shards)


def test_the_manifest_holds_the_checksums_that_other_programs_compute(dataset_folder):
    for folder in (dataset_folder, dataset_folder / "holdout"):
        for entry in json.loads((folder / "dataset.json").read_text())["shards"]:
            for suffix, record in entry["files"].items():
                content = (folder / f"{entry['name']}.{suffix}").read_bytes()
                assert record["bytes"] == len(content)
                assert record["sha256"] == hashlib.sha256(content).hexdigest()
                assert record["xxh3_64"] == xxhash.xxh3_64_hexdigest(content)


def test_the_manifest_records_how_the_dataset_was_made(dataset_folder, corpus_files, tokenizer):
    manifest = DatasetManifest.load(dataset_folder)
    assert manifest.options["holdout"] == 0.1
    assert [source["path"] for source in manifest.sources] == [corpus_files.txt]
    assert (manifest.vocab_size, manifest.dtype) == (999, "uint16")
    assert manifest.special_ids == {"bos": 0, "pad": 1, "eos": 2, "mask": tokenizer.mask_id}


def test_the_copied_tokenizer_is_the_one_that_was_used(dataset_folder, tokenizer):
    for folder in (dataset_folder, dataset_folder / "holdout"):
        copied = PretrainingTokenizer.load(folder / "tokenizer")
        assert copied.fingerprint == DatasetManifest.load(folder).tokenizer_fingerprint == tokenizer.fingerprint


def test_a_full_shard_is_followed_by_the_next_one(build, corpus_files, documents_of, read_shard):
    whole, parts = build(corpus_files.txt), build(corpus_files.txt, name="parts", tokens_per_shard=5000)
    manifest = DatasetManifest.load(parts)
    assert [shard.name for shard in manifest.shards] == [f"shard-{i:05d}" for i in range(len(manifest.shards))]
    assert len(manifest.shards) > 5
    assert all(5000 <= shard.tokens < 15_000 for shard in manifest.shards[:-1])
    assert documents_of(parts) == documents_of(whole)
    tokens = [token for shard in manifest.shards for token in read_shard(parts / shard.name).tokens]
    assert tokens == read_shard(whole / "shard-00000").tokens


def test_a_large_vocabulary_is_stored_in_four_bytes(save_word_tokenizer, tmp_path, read_shard):
    save_word_tokenizer(tmp_path / "tokenizer", 70_000)
    write_text(tmp_path / "text.txt", ["w0 w69999"])
    build_dataset([str(tmp_path / "text.txt")], tmp_path / "tokenizer", tmp_path / "dataset", show_progress=False)
    shard = read_shard(tmp_path / "dataset" / "shard-00000")
    assert (shard.code, shard.tokens) == (4, [5, 70_004, 2])


def test_a_document_without_any_token_is_left_out(build, tmp_path, documents_of):
    folder = build(write_text(tmp_path / "text.txt", ["one", "\x01\x02", "two\n\x01"]))
    assert len(documents_of(folder)) == DatasetManifest.load(folder).documents == 2


def test_holdout_is_decided_by_the_hash_of_the_text(dataset_folder, corpus_files, tokenizer, documents_of):
    sides = {True: [], False: []}
    for text in corpus_files.documents:
        ids = [token for part in tokenizer.encode(text.split("\n")) for token in part.tolist()]
        sides[expected_fraction(text) < HOLDOUT].append((*ids, 2))
    assert documents_of(dataset_folder) == sides[False]
    assert documents_of(dataset_folder / "holdout") == sides[True]
    assert not set(sides[True]) & set(sides[False])


def test_holdout_shares_are_near_the_wish():
    fractions = [holdout_fraction_of(f"document {i}") for i in range(10_000)]
    for share in (0.01, 0.1, 0.5):
        held_out = sum(fraction < share for fraction in fractions)
        assert abs(held_out - 10_000 * share) < 5 * (10_000 * share * (1 - share)) ** 0.5


def test_no_document_changes_sides_when_the_corpus_is_reordered_or_grows(
    build, dataset_folder, corpus_files, tmp_path, documents_of
):
    changed = [f"A new document with number {i}." for i in range(100)] + corpus_files.documents[::-1]
    rebuilt = build(write_text(tmp_path / "changed.txt", changed), holdout=HOLDOUT)
    for side in ("", "holdout"):
        before, after = Counter(documents_of(dataset_folder / side)), Counter(documents_of(rebuilt / side))
        assert before <= after
        assert after.total() > before.total()


def test_a_larger_holdout_keeps_what_was_held_out(build, dataset_folder, corpus_files, documents_of):
    larger = build(corpus_files.txt, holdout=0.3)
    assert set(documents_of(dataset_folder / "holdout")) < set(documents_of(larger / "holdout"))


def test_without_holdout_there_is_no_second_dataset(build, corpus_files):
    folder = build(corpus_files.txt)
    assert not (folder / "holdout").exists()
    assert PretrainingDataset(folder, 64).holdout_folder is None


def test_a_full_output_is_refused_and_left_alone(build, corpus_files, tmp_path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="dataset exists and is not empty"):
        build(corpus_files.txt)
    assert [path.name for path in tmp_path.rglob("*")] == ["dataset", "mine.txt"]
    assert (tmp_path / "dataset" / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\n\nal\xe4s\n", r"a\.txt: byte 8 \(line 3\) is not UTF-8"),
        ("a.jsonl", b'{"text": "fine"}\n{"body": "lost"}\n', r"a\.jsonl, line 2 has no text in field 'text'"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": "cut\n', r"a\.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": "half a pair \\ud83d"}\n', r"a\.jsonl, line 2"),
        ("a.txt", b"\n \n", r"no document for training in .*a\.txt"),
    ],
)
def test_a_failing_build_names_the_place_and_leaves_nothing(build, corpus_files, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    inputs = [tmp_path / name] if not content.strip() else [corpus_files.txt, tmp_path / name]
    with pytest.raises(UserError, match=message):
        build(*inputs, holdout=0.0)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("holdout", [-0.1, 1.0, float("nan")])
def test_an_impossible_holdout_is_refused(build, corpus_files, holdout):
    with pytest.raises(UserError, match="--holdout"):
        build(corpus_files.txt, holdout=holdout)


def test_a_holdout_that_leaves_a_side_empty_is_refused(build, tmp_path):
    path = write_text(tmp_path / "one.txt", ["a single document"])
    fraction = holdout_fraction_of("a single document")
    with pytest.raises(UserError, match="left no document for evaluation"):
        build(path, holdout=fraction / 2)
    with pytest.raises(UserError, match="no document for training"):
        build(path, holdout=(1 + fraction) / 2)
    assert [path.name for path in tmp_path.iterdir()] == ["one.txt"]


def test_a_missing_tokenizer_is_named_before_anything_is_written(corpus_files, tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer at .*nowhere"):
        build_dataset([corpus_files.txt], tmp_path / "nowhere", tmp_path / "dataset", show_progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_is_not_written_over_another(corpus_files, tokenizer_folder):
    before = (tokenizer_folder / "tokenizer.json").read_bytes()
    with pytest.raises(UserError, match="exists and is not empty"):
        train_tokenizer_on([corpus_files.txt], 200, tokenizer_folder)
    assert (tokenizer_folder / "tokenizer.json").read_bytes() == before
