"""Checkpoints to export: of a run, of models that were made for one test, with another manifest; and one export for all."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import tokenizers
import xxhash
from tokenizers import decoders, models, pre_tokenizers, trainers

from mpnet_ds.checkpoint.huggingface import export_huggingface
from tests.runs import ROOT, command

WEIGHT = "mpnet.encoder.layer.1.output.dense.weight"
MODELS = {
    "padded": {"vocab_size": 1024, "seq_length": 160, "config": "bf16"},
    "short": {"vocab_size": 998},
    "nan": {"weights": {WEIGHT: float("nan")}},
    "infinite": {"weights": {WEIGHT: float("inf")}, "config": "zero0"},
    "large": {"weights": {WEIGHT: 1e5}},
}


@pytest.fixture(scope="session")
def saved(tokenizer_folder, tmp_path_factory) -> Path:
    """The folder of checkpoints of ``MODELS``, and of ``bpe``: each has all weights at random."""
    folder = tmp_path_factory.mktemp("saved")
    bpe = {"bpe": {"tokenizer": str(save_bpe_without_frame(folder / "bpe-tokenizer"))}}
    (folder / "models.json").write_text(json.dumps(MODELS | bpe))
    program = ROOT / "tests" / "checkpoint" / "save_many.py"
    done = command(sys.executable, program, folder, tokenizer_folder, folder / "models.json")
    assert done.returncode == 0, done.stderr
    return folder


def save_bpe_without_frame(folder: Path) -> Path:
    """A tokenizer with RoBERTa's special tokens that puts none of them around a text."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), vocab_size=400, show_progress=False
    )
    backend.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 20, trainer)
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory) -> Path:
    """The export of a run at ZeRO 3 with two ranks; not to be changed."""
    folder = tmp_path_factory.mktemp("export") / "model"
    export_huggingface(trained("zero3", 2).folder, folder)
    return folder


@pytest.fixture
def with_manifest(trained, tmp_path):
    """A function: a copy of a run's newest checkpoint whose manifest says otherwise, with a checksum that is right."""

    def change(**model_config) -> Path:
        copy = shutil.copytree(trained().newest_checkpoint, tmp_path / "checkpoint", dirs_exist_ok=True)
        content = json.loads((copy / "manifest.json").read_text())
        content["info"]["model_config"] |= model_config
        body = {"info": content["info"], "files": content["files"]}
        content["xxh3_64"] = xxhash.xxh3_64_hexdigest(json.dumps(body, sort_keys=True).encode())
        (copy / "manifest.json").write_text(json.dumps(content))
        return copy

    return change
