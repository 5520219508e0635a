import io
import re
import sys

import numpy as np
import pytest

from mpnet_ds.data.builder.import_indexed import import_dataset
from mpnet_ds.data.storage import lengths as lengths_module
from mpnet_ds.data.storage.lengths import DocumentLengths, length_histogram


@pytest.fixture
def dataset_of_lengths(tokenizer_folder, write_foreign, tmp_path):
    """A function (lengths): a dataset whose documents have so many tokens."""

    def make(lengths):
        documents = [[[5] * (length - 1)] for length in lengths]
        prefix = write_foreign(tmp_path / "foreign", documents)
        import_dataset([str(prefix)], tokenizer_folder, tmp_path / "dataset", tokens_per_shard=1000, show_progress=False)
        return tmp_path / "dataset"

    return make


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
    assert found.share_above(75_000) == found.share_above(79_999) == 1 / 302
    assert found.share_above(80_000) == 0


def test_documents_are_counted_the_same_in_parts(dataset_folder, monkeypatch):
    whole = DocumentLengths(dataset_folder).buckets()
    monkeypatch.setattr(lengths_module, "DOCUMENTS_AT_ONCE", 7)
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
    lines = length_histogram(dataset_of_lengths([2] * 100 + [8] * 50 + [600]), width, unicode).splitlines()
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
    assert length_histogram(dataset_folder, 80).isascii()
