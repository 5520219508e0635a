import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from mpnet_ds.data import BuildOptions, PretrainingDataset, ReadOptions, build_dataset
from mpnet_ds.data.builder.estimate import estimate
from mpnet_ds.data.builder.learn_tokenizer import train_tokenizer_on
from mpnet_ds.data.builder.merge import merge_datasets
from mpnet_ds.data.builder.shard_builder import holdout_fraction_of
from mpnet_ds.data.samples.show import describe
from mpnet_ds.data.storage.manifest import DatasetManifest
from mpnet_ds.errors import UserError
from mpnet_ds.files import fast_checksum
from mpnet_ds.programs import build_dataset as build_program
from mpnet_ds.tokenizer import PretrainingTokenizer
from mpnet_ds.tokenizer_training import train_tokenizer
from tests.test_tokenizer import byte_level_backend

HOLDOUT = 0.1


@pytest.fixture
def build(tokenizer_folder, tmp_path):
    """A function (*inputs, **options): builds a dataset and returns its folder."""

    def build_next(*inputs, name="dataset", reading=None, workers=1, **options):
        what = ([str(path) for path in inputs], tokenizer_folder, tmp_path / name, BuildOptions(workers=workers, **options))
        build_dataset(*what, reading, show_progress=False)
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


def files_of(folder):
    """The bytes of each file, but for the command in the manifest."""
    found = {}
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        found[str(path.relative_to(folder))] = path.read_bytes()
        if path.name == "dataset.json":
            found[str(path.relative_to(folder))] = json.loads(path.read_text()) | {"command": ""}
    return found


def test_any_number_of_processes_builds_the_same_bytes(build, corpus_files):
    options = {"holdout": 0.1, "shard_bytes": 10_000}
    alone = build(corpus_files.txt, corpus_files.jsonl, name="alone", **options)
    together = build(corpus_files.txt, corpus_files.jsonl, name="together", workers=3, **options)
    assert len(DatasetManifest.load(alone).shards) > 10
    assert files_of(together) == files_of(alone)


def test_a_single_large_file_is_split_into_even_shards(build, corpus_files):
    folder = build(corpus_files.txt, shard_bytes=Path(corpus_files.txt).stat().st_size // 4 + 1)
    shards = DatasetManifest.load(folder).shards
    assert len(shards) == 4
    assert max(shard.tokens for shard in shards) < 1.5 * min(shard.tokens for shard in shards)


def test_sequences_may_be_lines_or_documents_over_the_same_ids(build, corpus_files, read_shard):
    lines, documents = (build(corpus_files.txt, name=name, sentences=name) for name in ("line", "document"))
    assert (lines / "shard-00000.bin").read_bytes() == (documents / "shard-00000.bin").read_bytes()
    whole = read_shard(documents / "shard-00000")
    assert [len(document) for document in whole.documents] == [1] * len(corpus_files.documents)
    assert len(read_shard(lines / "shard-00000").sequences) > len(whole.sequences)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_manifest_counts_what_the_shards_hold(build, corpus_files, read_shard, workers):
    built = build(corpus_files.txt, workers=workers, holdout=0.1, shard_bytes=20_000)
    for folder in (built, built / "holdout"):
        content = json.loads((folder / "dataset.json").read_text())
        shards = [read_shard(folder / entry["name"]) for entry in content["shards"]]
        assert content["documents"] == sum(len(shard.documents) for shard in shards)
        assert content["sequences"] == sum(len(shard.sequences) for shard in shards)
        assert content["tokens"] == sum(len(shard.tokens) for shard in shards)
        assert content["documents"] == sum(shard.tokens.count(2) for shard in shards)
        ids = [id_ for shard in shards for id_ in shard.tokens]
        found = DatasetManifest.load(folder).decoded_piece_counts()
        np.testing.assert_array_equal(found, np.bincount(ids, minlength=999))
        assert "piece_counts" not in json.dumps(content["shards"])  # only their sum
        assert len(shards) > 2


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


def test_shards_hold_the_documents_in_order(build, corpus_files, documents_of, read_shard):
    whole, parts = build(corpus_files.txt), build(corpus_files.txt, name="parts", shard_bytes=10_000)
    manifest = DatasetManifest.load(parts)
    assert [shard.name for shard in manifest.shards] == [f"shard-{i:05d}" for i in range(len(manifest.shards))]
    assert len(manifest.shards) > 5
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
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["dataset", "mine.txt"]
    assert (tmp_path / "dataset" / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\n\nal\xe4s\n", r"a\.txt: byte 8 \(line 3\): not UTF-8"),
        ("a.jsonl", b'{"text": "fine"}\n{"body": "lost"}\n', r"a\.jsonl: byte 17 \(line 2\): no field 'text'"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": "cut\n', r"a\.jsonl: byte 17 \(line 2\): not JSON"),
        ("a.txt", b"\n \n", r"no document for training in .*a\.txt"),
        ("a.txt", b"", r"no document for training in .*a\.txt"),
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


def test_a_corpus_that_cannot_be_read_is_not_said_to_be_empty(build, tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "one"}]')
    with pytest.raises(UserError, match=r"no document for training in .*a\.json: .* Unreadable .* 1\. First: .*a JSON list"):
        build(tmp_path / "a.json", reading=ReadOptions(on_error="skip"))
    with pytest.raises(
        UserError, match=r"no text to train a tokenizer on: check --input\. Unreadable .* First: .*a JSON list"
    ):
        train_tokenizer_on([str(tmp_path / "a.json")], 100, tmp_path / "tokenizer", ReadOptions(on_error="skip"))


def test_a_link_to_itself_is_not_there(build, tmp_path):
    (tmp_path / "a.txt").symlink_to("a.txt")
    with pytest.raises(UserError, match=r"a\.txt: no such file or folder"):
        build(tmp_path / "a.txt")


def test_a_missing_tokenizer_is_named_before_anything_is_written(corpus_files, tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer at .*nowhere"):
        build_dataset([corpus_files.txt], tmp_path / "nowhere", tmp_path / "dataset", show_progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_is_not_written_over_another(corpus_files, tokenizer_folder):
    before = (tokenizer_folder / "tokenizer.json").read_bytes()
    with pytest.raises(UserError, match="exists and is not empty"):
        train_tokenizer_on([corpus_files.txt], 200, tokenizer_folder)
    assert (tokenizer_folder / "tokenizer.json").read_bytes() == before


def test_faulty_and_empty_documents_are_counted_in_the_manifest(build, tmp_path, documents_of):
    (tmp_path / "a.txt").write_bytes(b"one\n\ntw\xff\n\n\x01\n\nthree\n")
    folder = build(tmp_path / "a.txt", reading=ReadOptions(on_error="skip"))
    left_out = json.loads((folder / "dataset.json").read_text())["left_out"]
    assert (left_out["faulty_documents"], left_out["empty_documents"]) == (1, 1)
    assert "a.txt: byte 7" in left_out["first_fault"]
    assert len(documents_of(folder)) == 2


def test_the_program_tells_empty_documents_and_files_that_it_passed_over(tokenizer_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.jsonl").write_text('{"text": null}\n{"text": ""}\n{"text": "one"}\n')
    (tmp_path / "text" / "notes.md").write_text("notes")
    arguments = ["--input", tmp_path / "text", "--tokenizer", tokenizer_folder, "--output", tmp_path / "out"]
    for more in (["--dry_run"], ["--workers", "1"]):
        monkeypatch.setattr(sys, "argv", ["build_dataset", *map(str, arguments), *more])
        build_program.main()
        said = "".join(capsys.readouterr())
        assert "2 of 3 documents (66.7 %) are empty: is 'text' the right --text_field?" in said
        assert f"1 files passed over: 1 of unknown kind: {tmp_path}/text/notes.md" in said
    assert "left out: 2 empty documents\n1 files passed over" in describe(tmp_path / "out")


def test_paths_need_not_be_utf8(tokenizer_folder, tmp_path, documents_of):
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    text = root / os.fsdecode(b"t\xe9xt")
    text.mkdir(parents=True)
    (text / os.fsdecode(b"a\xe9.txt")).write_text("one\n")
    (text / os.fsdecode(b"b\xe9.jsonl")).write_text('{"text": "two"}\nno object\n')
    pq.write_table(table := pa.table({"text": ["three"]}), sink := pa.BufferOutputStream())
    (text / os.fsdecode(b"c\xe9.parquet")).write_bytes(sink.getvalue())
    with pa.ipc.new_stream(sink := pa.BufferOutputStream(), table.schema) as stream:
        stream.write_table(table)
    (text / os.fsdecode(b"d\xe9.arrow")).write_bytes(sink.getvalue())
    (text / os.fsdecode(b"e\xe9.md")).write_text("notes")
    tokenizer = Path(shutil.copytree(tokenizer_folder, root / "tokenizer"))
    for _ in range(2):  # it is found finished
        build_dataset([str(text)], tokenizer, root / "out", BuildOptions(workers=1), ReadOptions(on_error="skip"))
    manifest = DatasetManifest.load(root / "out")
    assert manifest.documents == len(documents_of(root / "out")) == 4
    told = json.dumps([manifest.sources, manifest.left_out])
    assert told.count("caf\\\\udce9/t\\\\udce9xt/") == 6  # four sources, the first fault, the file that is passed over
    assert len(PretrainingDataset(root / "out", 8)) == 1
    merge_datasets([root / "out"], root / "copied", copy=True)
    with pytest.raises(UserError, match=r"cannot hold a path that is not UTF-8.*--copy"):
        merge_datasets([root / "out"], tmp_path / "merged")


def test_a_finished_dataset_is_taken_as_it_is_by_the_same_command_and_refused_by_another(build, corpus_files):
    folder = build(corpus_files.txt)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert build(corpus_files.txt) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(UserError, match=r"holds another dataset \(--holdout was 0.0 and is now 0.2\)"):
        build(corpus_files.txt, holdout=0.2)


def test_nothing_but_the_dataset_is_left_after_a_build(build, corpus_files, tmp_path):
    folder = build(corpus_files.txt, shard_bytes=50_000, holdout=0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]
    suffixes = {path.suffix for path in folder.rglob("*") if path.parent.name != "tokenizer" and path.is_file()}
    assert suffixes == {".bin", ".idx", ".json"}
    assert [path.name for path in folder.rglob("*.json") if path.parent.name != "tokenizer"] == ["dataset.json"] * 2


def test_standard_input_is_a_source(build, corpus_files, tmp_path, monkeypatch):
    with open(corpus_files.jsonl, encoding="utf-8") as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        build("-", name="piped", reading=ReadOptions(stdin_format="jsonl"))
    by_name = build(corpus_files.jsonl)
    for name in ("shard-00000.bin", "shard-00000.idx"):
        assert (tmp_path / "piped" / name).read_bytes() == (by_name / name).read_bytes()
    assert not list((tmp_path / "piped").glob("standard-input*"))
    (source,) = DatasetManifest.load(tmp_path / "piped").sources
    assert (source["path"], source["version"]) == ("standard input", fast_checksum(Path(corpus_files.jsonl)))


@pytest.mark.parametrize(("streaming", "workers"), [(False, 1), (True, 1), pytest.param(True, 2, marks=pytest.mark.long)])
def test_a_dataset_of_the_datasets_library_is_built_by_any_number_of_processes(
    corpus_files, tokenizer_folder, tmp_path, monkeypatch, streaming, workers, documents_of, build
):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "files").mkdir()
    lines = Path(corpus_files.jsonl).read_text().splitlines(keepends=True)
    for number in range(4):
        (tmp_path / "files" / f"{number}.jsonl").write_text("".join(lines[number * 50 : (number + 1) * 50]))
    what = ([], tokenizer_folder, tmp_path / "from_set", BuildOptions(shard_bytes=20_000, workers=workers))
    reading = ReadOptions(dataset=str(tmp_path / "files"), streaming=streaming)
    built = build_dataset(*what, reading, show_progress=False)
    assert len(built.shards) > 1
    assert documents_of(tmp_path / "from_set") == documents_of(build(tmp_path / "files"))


@pytest.mark.long
def test_memory_does_not_grow_with_a_shard(tmp_path, tokenizer_folder):
    """Twenty times the text in one indivisible file takes as much memory as the text once."""
    peaks = []
    for times in (1, 20):
        path = tmp_path / f"{times}.txt.gz"
        lines = "".join(f"line {i} of a text {i * i}\n" + "\n" * (i % 10 == 0) for i in range(40_000))
        path.write_bytes(gzip.compress(lines.encode()) * times)
        command = [sys.executable, "-c", BUILD_AND_REPORT, path, tokenizer_folder, tmp_path / str(times)]
        done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
        sequences, peak = map(int, done.stdout.split())
        assert sequences == 40_000 * times
        peaks.append(peak)
    assert peaks[1] < 1.15 * peaks[0]


BUILD_AND_REPORT = """
import resource, sys
from mpnet_ds.data import BuildOptions, build_dataset
built = build_dataset([sys.argv[1]], sys.argv[2], sys.argv[3], BuildOptions(workers=1), show_progress=False)
print(built.sequences, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_lines_are_refused_where_they_would_get_other_ids_than_in_their_document(corpus_files, tmp_path, capsys):
    backend = byte_level_backend()
    PretrainingTokenizer(backend, "bytes").save(tmp_path / "tokenizer")
    what = ([corpus_files.txt], tmp_path / "tokenizer", tmp_path / "dataset")
    with pytest.raises(UserError, match="add --sentences document"):
        build_dataset(*what, show_progress=False)
    build_dataset(*what, BuildOptions(sentences="document", workers=1, max_unknown=1))
    assert "BPE uses the encoder of the tokenizers library" in capsys.readouterr().err


CODE = "if a:\n    b = 1\n\n\tc = 2  \n"


@pytest.mark.parametrize(
    ("name", "reading", "texts"),
    [
        ("a.jsonl", {}, [CODE, "  x\n"]),
        ("a.csv", {}, [CODE, "  x\n"]),
        ("a.parquet", {}, [CODE, "  x\n"]),
        ("a.txt", {}, ["if a:\n    b = 1", "\tc = 2  \n  x"]),
        ("a.txt", {"txt_documents": "line"}, ["if a:", "    b = 1", "\tc = 2  ", "  x"]),
    ],
)
def test_white_space_reaches_a_tokenizer_to_which_it_means_something(
    tmp_path, documents_of, monkeypatch, name, reading, texts
):
    monkeypatch.chdir(tmp_path)
    rows = {"text": [CODE, "  x\n", " \n "]}
    if name == "a.parquet":
        pq.write_table(pa.table(rows), name)
    elif name == "a.csv":
        Path(name).write_text("text\n" + "".join(f'"{text}"\n' for text in rows["text"]), newline="")
    else:
        as_json = "".join(json.dumps({"text": text}) + "\n" for text in rows["text"])
        Path(name).write_text(as_json if name == "a.jsonl" else CODE + "  x\n")
    backend = byte_level_backend(texts=[CODE] * 9)
    PretrainingTokenizer(backend, "code").save("code")
    build_dataset([name], "code", "data", BuildOptions(sentences="document"), ReadOptions(**reading), show_progress=False)
    expected = [backend.encode(text, add_special_tokens=False).ids for text in texts]
    assert documents_of("data") == [(*ids, 2) for ids in expected]


@pytest.fixture(scope="module")
def short_words(tmp_path_factory):
    """Folder of a tokenizer that knows the words of one sentence."""
    folder = tmp_path_factory.mktemp("short-words")
    train_tokenizer(["the cat sat on the mat"] * 9, 64).save(folder)
    return folder


@pytest.mark.parametrize(
    ("unknown_words", "is_refused"), [pytest.param(1, False, id="some"), pytest.param(30, True, id="many")]
)
def test_unknown_tokens_are_counted_and_refused_where_they_are_many(short_words, tmp_path, unknown_words, is_refused):
    text = write_text(tmp_path / "a.txt", [" ".join(["the cat sat"] * 20 + ["☃"] * unknown_words)])
    what = ([str(text)], short_words, tmp_path / "out")
    tokens = 61 + unknown_words
    foreseen = estimate(*what, BuildOptions(workers=1))
    assert foreseen.counts.unknown == unknown_words
    assert ("MORE THAN --max_unknown 0.2" in str(foreseen)) == is_refused
    if is_refused:
        with pytest.raises(UserError, match=r"33 % of the tokens are \[UNK\].*--max_unknown 0\.2"):
            build_dataset(*what, BuildOptions(workers=1), show_progress=False)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt"]
    manifest = build_dataset(*what, BuildOptions(workers=1, max_unknown=0.5), show_progress=False)
    assert (manifest.unknown_tokens, manifest.tokens) == (unknown_words, tokens)
    share = f"{100 * unknown_words / tokens:.3g} %"
    described = describe(tmp_path / "out")
    assert f"tokens ({share} unknown)" in described
    assert f"Warning: {share} of the tokens are unknown" in described
    merged = merge_datasets([tmp_path / "out"], tmp_path / "merged", show_progress=False)
    assert merged.unknown_tokens == unknown_words


def test_text_that_cannot_be_divided_into_words_is_told(tmp_path):
    text = write_text(tmp_path / "a.txt", ["acgtacagt" * 100 + " a c g t", "a c g t"])
    train_tokenizer(["acgt a c g t"], 64, sample=1).save(tmp_path / "tokenizer")
    what = ([str(text)], tmp_path / "tokenizer", tmp_path / "out")
    manifest = build_dataset(*what, BuildOptions(workers=1, max_unknown=1), show_progress=False)
    assert (manifest.unknown_tokens, manifest.indivisible_tokens) == (1, 0)
    learned = train_tokenizer(["acgt a c g t", "acgtacagt" * 100], 64, sample=1)
    learned.save(tmp_path / "cutting")
    manifest = build_dataset(
        *what[:1], tmp_path / "cutting", tmp_path / "out2", BuildOptions(workers=1), show_progress=False
    )
    assert (manifest.unknown_tokens, manifest.indivisible_tokens) == (0, 900)
    assert "are not in words" in PretrainingDataset(tmp_path / "out2", 64).describe()
