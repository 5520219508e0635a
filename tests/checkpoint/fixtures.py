"""Checkpoints of other programs (foreign.py), and of runs and models to export, each made once for all tests."""

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from mpnet_ds.checkpoint import consolidate, load_consolidated
from mpnet_ds.errors import UserError
from mpnet_ds.hub.export import export_huggingface
from tests.checkpoint.foreign import KINDS
from tests.manifests import write_manifest
from tests.runs import ROOT, command

OF_ONE_RANK = [
    *[f"zero{stage}-{precision}" for stage in range(4) for precision in ("fp32", "bf16", "fp16")],
    *["universal2-fp32", "universal3-bf16", "zero0-bf16-fused", "zero0-idle", "zero0-adagrad", "zero2-aligned"],
    *["zero2-without_frozen", "zero3-subgroups", "zero1-bf16-accumulated_in_fp32"],
]
OF_THREE_RANKS = [
    *["zero1-fp32", "zero2-bf16", "zero3-bf16", "universal3-fp32", "zero2-aligned-round_robin", "zero3-subgroups"],
    "zero1-bf16-accumulated_in_fp32",
]
MADE = {1: OF_ONE_RANK, 2: list(KINDS), 3: OF_THREE_RANKS}
"""Number of ranks → kinds that there are."""


@dataclass(frozen=True)
class Foreign:
    """A checkpoint as DeepSpeed left it: do not change its files, copy them.

    Attributes:
        root: what ``engine.save_checkpoint`` was given: holds ``latest`` and the checkpoints.
        folder: the newest checkpoint in it, or the universal one.
        truth: name → tensor, what a reader must find.
    """

    root: Path
    folder: Path
    truth: dict[str, Tensor]


@pytest.fixture(scope="session")
def foreign(made_once):
    """``foreign(kind, ranks)``: one of the kinds in ``MADE``; all of a number of ranks are made at the first request."""

    def get(kind: str, ranks: int = 2) -> Foreign:
        output = made_once(f"foreign-{ranks}", lambda folder: _make(folder, ranks))
        root = output / kind
        folder = root / ("universal" if kind.startswith("universal") else "last")
        return Foreign(root, folder, torch.load(output / f"{kind}.truth", weights_only=True))

    return get


@pytest.fixture
def copied(foreign, tmp_path):
    """``copied(kind)``: a copy of that checkpoint of two ranks, in a folder with nothing else."""

    def copy(kind: str = "zero2-fp32") -> Path:
        return Path(shutil.copytree(foreign(kind, 2).folder, tmp_path / "checkpoint"))

    return copy


def assert_refused(checkpoint: Path, named: str) -> None:
    """Both readers raise an error that has ``named`` in it; nothing appears beside the checkpoint."""
    before = sorted(checkpoint.parent.iterdir())
    for read in (load_consolidated, lambda folder: consolidate(folder, checkpoint.parent / "out")):
        with pytest.raises(UserError, match=re.escape(named)):
            read(checkpoint)
        assert sorted(checkpoint.parent.iterdir()) == before


def _make(output: Path, ranks: int) -> None:
    program = ROOT / "tests" / "checkpoint" / "foreign.py"
    done = command(sys.executable, program, "--ranks", ranks, output, *MADE[ranks])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


WEIGHT = "mpnet.encoder.layer.1.output.dense.weight"
MODELS = {
    "padded": {"vocab_size": 1024, "seq_length": 160, "config": "bf16"},
    "nan": {"weights": {WEIGHT: float("nan")}},
    "infinite": {"weights": {WEIGHT: float("inf")}, "config": "zero0"},
    "large": {"weights": {WEIGHT: 1e5}},
    "spot": {"objective": "spot", "vocab_size": 1024},
    "pair": {"objective": "spot-twice", "config": "zero3"},
}


@pytest.fixture(scope="session")
def saved(tokenizer_folder, made_once) -> Path:
    """The folder of checkpoints of ``MODELS``, and of ``bpe``: each has all weights at random."""

    def save(folder: Path) -> None:
        bpe = {"bpe": {"tokenizer": str(save_bpe_without_frame(folder / "bpe-tokenizer"))}}
        (folder / "models.json").write_text(json.dumps(MODELS | bpe))
        program = ROOT / "tests" / "checkpoint" / "save_many.py"
        done = command(sys.executable, program, folder, tokenizer_folder, folder / "models.json")
        assert done.returncode == 0, done.stderr

    return made_once("saved", save)


def save_bpe_without_frame(folder: Path) -> Path:
    """A tokenizer with RoBERTa's special tokens that puts none of them around a text."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), vocab_size=400, show_progress=False
    )
    backend.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 20, trainer)
    folder.mkdir(parents=True)
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def exported(trained, made_once) -> Path:
    """The export of a run at ZeRO 3 with two ranks; not to be changed."""
    return made_once("exported", lambda folder: export_huggingface(trained("zero3", 2).folder, folder))


@pytest.fixture(scope="session")
def encoder_folder(trained, made_once) -> Path:
    """The export of a run for sentence-transformers; not to be changed."""
    run = trained().folder
    return made_once("encoder", lambda folder: export_huggingface(run, folder, sentence_transformers=True))


@pytest.fixture
def with_manifest(trained, tmp_path):
    """A function: a copy of a run's newest checkpoint whose manifest says otherwise, with a checksum that is right."""

    def change(**model) -> Path:
        copy = shutil.copytree(trained().newest_checkpoint, tmp_path / "checkpoint", dirs_exist_ok=True)
        content = json.loads((copy / "manifest.json").read_text())
        size = {"vocab_size": model.pop("vocab_size")} if "vocab_size" in model else {}
        content["info"] |= {"model": content["info"]["model"] | model, **size}
        write_manifest(copy, content)
        return copy

    return change
