"""The estimate of --dry_run against the build itself."""

import csv
import gzip
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpnet_ds.data import BuildOptions, build_dataset
from mpnet_ds.data.builder import estimate as estimate_module
from mpnet_ds.data.builder.estimate import estimate
from mpnet_ds.data.builder.plan import Part
from mpnet_ds.data.text import files
from mpnet_ds.data.text.source import ReadOptions
from mpnet_ds.errors import UserError
from tests.data.builder.test_wordpiece_memo import real_text


def test_a_small_corpus_is_counted_exactly_and_nothing_is_written(corpus_files, tokenizer_folder, tmp_path):
    what = ([corpus_files.txt], tokenizer_folder, tmp_path / "dataset")
    expected = estimate(*what)
    assert not list(tmp_path.iterdir())
    built = build_dataset(*what, show_progress=False)
    assert (expected.documents, expected.sequences, expected.tokens) == (built.documents, built.sequences, built.tokens)
    assert expected.disk_bytes == sum(file.bytes for shard in built.shards for file in shard.files.values())
    assert expected.free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    assert f"{built.tokens:,}" in str(expected)
    assert "about" not in str(expected).split("time")[0]


def test_a_larger_corpus_is_estimated_from_a_part_of_it(tokenizer_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate_module, "SAMPLED_BYTES", 1 << 17)
    (tmp_path / "text.txt").write_text("\n".join(real_text(4 << 20)), encoding="utf-8", errors="ignore")
    what = (
        [str(tmp_path / "text.txt")],
        tokenizer_folder,
        tmp_path / "dataset",
        BuildOptions(shard_bytes=1 << 19, workers=1),
    )
    expected = estimate(*what)
    assert expected.sampled_share < 0.6
    built = build_dataset(*what, show_progress=False)
    assert len(built.shards) == expected.shards
    for name in ("documents", "sequences", "tokens"):
        assert getattr(expected, name) == pytest.approx(getattr(built, name), rel=0.2)
    half = estimate(*what[:3], replace(what[3], part=Part(1, 2)))
    assert half.tokens == pytest.approx(expected.tokens / 2, rel=0.2)


def write_sorted_csv(path, long: int, short: int) -> None:
    """Long texts first, short ones after them."""
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text"])
        rows.writerows([" ".join(words * 20)] for _ in range(long))
        rows.writerows([f"{word}, {word}"] for word in words for _ in range(short // len(words)))


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_a_file_that_cannot_be_divided_is_sampled_to_its_end(tokenizer_folder, tmp_path, monkeypatch, ending):
    monkeypatch.setattr(estimate_module, "SAMPLED_BYTES", 1 << 12)
    monkeypatch.setattr(files, "CHUNK_BYTES", 1 << 14)
    write_sorted_csv(tmp_path / "a.csv", long=600, short=36_000)
    if ending == "csv.gz":
        (tmp_path / "a.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes(), 1))
    what = ([str(tmp_path / f"a.{ending}")], tokenizer_folder, tmp_path / "dataset")
    expected = estimate(*what)
    assert expected.is_exact == (ending == "csv.gz")  # it is small
    built = build_dataset(*what, show_progress=False)
    for name in ("documents", "tokens"):
        assert getattr(expected, name) == pytest.approx(getattr(built, name), rel=0.1)
    for name, (low, high) in expected.ranges.items():
        assert low <= getattr(built, name) <= high
        assert f" ({low:,} to {high:,})" in str(expected)


def test_what_was_not_seen_is_said(tokenizer_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate_module, "READ_BYTES", 1 << 17)
    monkeypatch.setattr(files, "CHUNK_BYTES", 1 << 14)
    write_sorted_csv(tmp_path / "a.csv", long=600, short=36_000)
    expected = estimate([str(tmp_path / "a.csv")], tokenizer_folder, tmp_path / "dataset")
    assert not expected.ranges
    size = (tmp_path / "a.csv").stat().st_size
    seen = (
        f"Of what can only be read from its beginning, the first {100 * 2**17 / size:.2g} % was seen; the rest may differ)"
    )
    assert str(expected).endswith(seen)


def test_a_large_document_at_the_end_is_counted(tokenizer_folder, tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n" + "two " * 300_000)
    whole = estimate([str(tmp_path / "a.txt")], tokenizer_folder, tmp_path / "out")
    assert (whole.documents, whole.is_exact) == (2, True)


def test_what_of_the_sample_cannot_be_read_is_named(tokenizer_folder, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n[]\n')
    said = str(
        estimate([str(tmp_path / "a.jsonl")], tokenizer_folder, tmp_path / "out", reading=ReadOptions(on_error="skip"))
    )
    assert f"left out: 1. First: {tmp_path}/a.jsonl: byte 16: a JSON list" in said


def test_a_disk_that_is_too_small_and_a_slow_tokenizer_are_said(corpus_files, tokenizer_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    assert "NOT ENOUGH" in str(estimate([corpus_files.txt], tokenizer_folder, tmp_path / "dataset"))


def test_standard_input_cannot_be_looked_at(tokenizer_folder, tmp_path):
    with pytest.raises(UserError, match="standard input"):
        estimate(["-"], tokenizer_folder, tmp_path / "dataset")


def test_parquet_and_parts_are_counted_in_their_own_units(tokenizer_folder, tmp_path):
    pq.write_table(pa.table({"text": ["the same text " * 50] * 4000}), tmp_path / "a.parquet", row_group_size=500)
    what = ([str(tmp_path / "a.parquet")], tokenizer_folder, tmp_path / "dataset")
    assert estimate(*what).documents == 4000
    (tmp_path / "a.txt").write_text("a document\n\n" * 4000)
    half = estimate([str(tmp_path / "a.txt")], *what[1:], BuildOptions(shard_bytes=6000, part=Part(1, 2)))
    assert half.documents == pytest.approx(2000, rel=0.05)
    assert not half.is_exact
