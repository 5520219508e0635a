"""Exports load in the versions of transformers and sentence-transformers that people have, and compute the same there."""

import json
import sys

import pytest
import torch

from mpnet_ds.hub.export import export_huggingface
from tests.environments import ended_well, make_environment
from tests.hub import other_versions

ENVIRONMENTS = {
    "oldest": ["transformers==4.57.*", "sentence-transformers==3.*", "datasets==3.*"],
    "transformers 4": ["transformers==4.57.*", "sentence-transformers==5.*", "datasets==3.*"],
    "transformers 5": ["sentence-transformers==5.*"],
}
TEXTS = ["the quick fox", "the lazy dog jumps over a brown fox.", " Two  blanks\tand Ünïcode"]


def loaded(python, folder) -> dict:
    return json.loads(ended_well(python, other_versions.__file__, folder, "the <mask> fox", *TEXTS, cwd=folder))


@pytest.fixture(scope="module")
def exports(saved, tmp_path_factory):
    """Folders of exports with tokenizers of each kind, and what this interpreter's versions make of them."""
    folders = {name: tmp_path_factory.mktemp("exports") / name for name in ("padded", "bpe", "unigram")}
    for name, folder in folders.items():
        export_huggingface(saved / name, folder, sentence_transformers=True)
    return {folder: loaded(sys.executable, folder) for folder in folders.values()}


@pytest.mark.long
@pytest.mark.parametrize("versions", ENVIRONMENTS)
def test_other_versions_compute_the_same(exports, tmp_path_factory, versions):
    python = make_environment(tmp_path_factory.mktemp("environment") / "env", *ENVIRONMENTS[versions]) / "python"
    for folder, expected in exports.items():
        found = loaded(python, folder)
        assert found["versions"] != expected["versions"]
        for key in ("ids", "pair", "inputs", "max_seq_length"):
            assert found[key] == expected[key], (folder.name, key)
        for key in ("embeddings", "probabilities"):
            torch.testing.assert_close(torch.tensor(found[key]), torch.tensor(expected[key]), atol=1e-5, rtol=0)
        assert found["words"] == expected["words"]
        for warning in ("LOAD REPORT", "not initialized", "not used", "Warning"):
            assert warning not in found["said"], found["said"]
