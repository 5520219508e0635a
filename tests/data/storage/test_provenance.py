"""What is stated of a dataset's texts stays with it, and is never claimed of texts of which it was not said."""

import sys
from argparse import Namespace

import pytest

from mpnet_ds.data.builder.merge import merge_datasets
from mpnet_ds.data.samples.show import describe
from mpnet_ds.data.storage.manifest import DatasetManifest
from mpnet_ds.data.storage.provenance import Provenance, joined, provenance_of
from mpnet_ds.errors import UserError
from mpnet_ds.programs import build_dataset, import_dataset

STATED = ["--license", "CC-BY-SA-4.0", "--language", "en", "pt-BR", "--source", "owner/texts", "our own crawl"]
EXPECTED = Provenance(["CC-BY-SA-4.0"], ["en", "pt-BR"], ["owner/texts", "our own crawl"])


@pytest.fixture
def run(monkeypatch, tokenizer_folder, tmp_path):
    """``run(program, input, name, *flags)``: a dataset made by a program's command line."""

    def make(program, source, name, *flags):
        words = ["--input", source, "--tokenizer", tokenizer_folder, "--output", tmp_path / name, *flags]
        monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, words)])
        program.main()
        return tmp_path / name

    return make


def test_statements_stay_through_build_merge_and_import_and_can_be_made_later(run, corpus_files, tmp_path):
    build = (build_dataset, corpus_files.txt, "a", "--holdout", 0.2, "--workers", 1)
    before = DatasetManifest.load(run(*build))
    assert before.provenance == Provenance()
    a = run(*build, *STATED)  # the dataset is finished already: only the manifests change
    assert DatasetManifest.load(a).provenance == DatasetManifest.load(a / "holdout").provenance == EXPECTED
    assert DatasetManifest.load(a).checksum == before.checksum
    assert DatasetManifest.load(run(*build, "--license", "mit")).provenance == Provenance(
        ["mit"], *list(vars(EXPECTED).values())[1:]
    )
    assert "licenses: mit\n" in describe(a)
    imported = run(import_dataset, a / "shard-00000", "b", *STATED)
    assert DatasetManifest.load(imported).provenance == EXPECTED
    silent = run(import_dataset, a / "shard-00000", "c")
    merge_datasets([a, imported, silent], tmp_path / "merged", copy=True, partial_holdout=True, show_progress=False)
    merged = DatasetManifest.load(tmp_path / "merged")
    assert merged.provenance.licenses == ["mit", "CC-BY-SA-4.0", "unknown"]
    assert merged.provenance.sources == ["owner/texts", "our own crawl", "unknown"]


def test_nothing_stated_anywhere_stays_nothing():
    assert joined([Provenance(), Provenance()]) == joined([]) == Provenance()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"license": " "}, "--license is empty"),
        ({"source": ["a", ""]}, "--source is empty"),
        ({"language": ["German"]}, "--language is 'German'; it must be a code"),
        ({"language": ["en,de"]}, "--language is 'en,de'"),
    ],
)
def test_a_statement_that_says_nothing_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        provenance_of(Namespace(**{"license": None, "language": [], "source": [], "name": None} | given))
