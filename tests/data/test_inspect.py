import io
import re
import sys

import numpy as np
import pytest

from mpnet_ds.data import PretrainingDataset, inspect
from mpnet_ds.data.import_indexed import import_dataset
from mpnet_ds.data.inspect import DocumentLengths, describe, draw_lengths, show
from mpnet_ds.errors import UserError
from mpnet_ds.tokenizer import PretrainingTokenizer

ESCAPES = re.compile(r"\x1b\[\d*m")


@pytest.fixture
def dataset_of_lengths(tokenizer_folder, write_foreign, tmp_path):
    """A function (lengths): a dataset whose documents have so many tokens."""

    def make(lengths):
        documents = [[[5] * (length - 1)] for length in lengths]
        prefix = write_foreign(tmp_path / "foreign", documents)
        import_dataset([str(prefix)], tokenizer_folder, tmp_path / "dataset", tokens_per_shard=1000, show_progress=False)
        return tmp_path / "dataset"

    return make


def test_the_summary_tells_what_the_manifest_holds(dataset_folder, corpus_files):
    text = describe(dataset_folder)
    manifest = PretrainingDataset(dataset_folder, 64).manifest
    for expected in (f"{manifest.documents:,} documents", f"{manifest.tokens:,} tokens", corpus_files.txt, "uint16"):
        assert expected in text


def test_the_figures_are_those_of_all_documents(dataset_of_lengths):
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(2, 900, 300), [70_000, 80_000]])
    found = DocumentLengths(dataset_of_lengths(lengths))
    ordered = np.sort(lengths)
    assert found.num_documents == 302
    assert found.mean == pytest.approx(lengths.mean())
    for share in (0.01, 0.5, 0.95, 1):
        assert found.quantile(share) == ordered[int(np.ceil(share * 302)) - 1]
    assert found.share_above(512) == np.mean(lengths > 512)
    assert found.share_above(75_000) == 1 / 302


def test_documents_are_counted_the_same_in_parts(dataset_folder, monkeypatch):
    whole = DocumentLengths(dataset_folder).buckets()
    monkeypatch.setattr(inspect, "DOCUMENTS_AT_ONCE", 7)
    assert DocumentLengths(dataset_folder).buckets() == whole


def test_buckets_double(dataset_of_lengths):
    lengths = [2, 3, 4, 7, 8, 15, 16, 16, 16, 127, 128, 2048]
    assert DocumentLengths(dataset_of_lengths(lengths)).buckets() == [
        (2, 3, 2),
        (4, 7, 2),
        (8, 15, 2),
        (16, 31, 3),
        (32, 63, 0),
        (64, 127, 1),
        (128, 255, 1),
        (256, 511, 0),
        (512, 1023, 0),
        (1024, 2047, 0),
        (2048, 4095, 1),
    ]


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("unicode", [False, True])
def test_the_histogram_fits_the_line(dataset_of_lengths, width, unicode):
    lines = draw_lengths(dataset_of_lengths([2] * 100 + [8] * 50 + [600]), width, unicode).splitlines()
    rows = lines[1:-1]
    assert max(map(len, rows)) == width
    assert "".join(rows).isascii() is not unicode
    long, half, least = (len(re.findall("[█#]", row)) for row in (rows[0], rows[2], rows[-1]))
    assert abs(long - 2 * half) <= 1
    assert least <= 2
    assert re.search("[▏▎▍▌▋▊▉█#]", rows[-1])
    assert lines[-1] == "median 2, mean 7.9, 95 % up to 8; 0.7 % longer than 512"


def test_an_encoding_without_blocks_gets_plain_characters(dataset_folder, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    assert draw_lengths(dataset_folder, 80).isascii()
    assert "->" in show(dataset_folder, 0)


def test_a_shown_sample_is_the_text_with_its_masking(dataset_folder, tokenizer_folder):
    data, tokenizer = PretrainingDataset(dataset_folder, 64), PretrainingTokenizer.load(tokenizer_folder)
    sample = data.batch([3])
    text, order = show(dataset_folder, 3, 64, colour=False).split("\n\n")
    true = [tokenizer.pieces[i] for i in sample["input_ids"][0]]
    drawn = r"\[([^\s→]+)→(\S+?)\](?!\])"
    restored = re.sub(drawn, r"\1", text)
    assert restored.replace(" ", "").replace("##", "") == "".join(true).replace("##", "")
    positions = [int(position) for position in sample["predicted_positions"][0] if position >= 0]
    assert order.endswith(f"in this order: {' '.join(true[position] for position in positions)}")
    inputs = dict(zip(positions, sample["predicted_inputs"][0].tolist(), strict=False))
    expected = [(true[position], tokenizer.pieces[inputs[position]]) for position in sorted(positions)]
    assert re.findall(drawn, text) == expected


def test_colours_tell_masked_kept_and_random_tokens_apart(dataset_folder):
    plain, coloured = (show(dataset_folder, 3, 256, colour=colour) for colour in (False, True))
    assert "\x1b" not in plain
    found = re.findall(r"(\x1b\[\d+m)([^\s→]+)→([^\s\x1b]+)\x1b\[0m", coloured)
    assert len(found) == plain.count("→") > 20
    for colour, true, seen in found:
        kind = "mask" if seen == "<mask>" else "kept" if seen == true else "random"
        assert colour == inspect.COLOURS[kind]
        assert f"{colour}{kind}" in coloured.split("\n\n")[1]
    assert len({colour for colour, _, _ in found}) == 3
    assert ESCAPES.sub("", coloured).split("\n\n")[1] == plain.split("\n\n")[1]


@pytest.mark.parametrize(("terminal", "no_color", "expected"), [(1, "", 1), (1, "1", 0), (0, "", 0)])
def test_colour_is_for_terminals_that_want_it(dataset_folder, monkeypatch, terminal, no_color, expected):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: bool(terminal), raising=False)
    monkeypatch.setenv("NO_COLOR", no_color)
    assert ("\x1b" in show(dataset_folder, 0)) is bool(expected)


def test_a_sample_that_is_not_there_is_refused_with_the_range(dataset_folder):
    last = len(PretrainingDataset(dataset_folder, 64)) - 1
    for index in (-1, last + 1):
        with pytest.raises(UserError, match=rf"--show {index}: .* samples 0 … {last} at 64 tokens"):
            show(dataset_folder, index, 64)
