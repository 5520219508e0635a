"""Checkpoints of other programs (foreign.py), of our engine (own.py), and of models to export, made once for all tests."""

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

RARE = {
    1: [
        *[f"zero{stage}-{precision}" for stage in range(4) for precision in ("fp32", "bf16", "fp16")],
        *["universal2-fp32", "zero0-bf16-fused", "zero0-idle", "zero0-adagrad", "zero2-without_frozen"],
        *["zero3-subgroups", "zero1-bf16-accumulated_in_fp32"],
    ],
    2: [
        *["zero1-fp16", "zero3-fp16", "universal1-fp32", "universal2-bf16", "zero2-fused", "zero3-fused"],
        *["zero2-cpu_adam", "zero2-offload", "zero1-aligned", "zero2-aligned", "zero3-subgroups-bf16"],
        *["zero1-without_frozen", "zero2-idle", "zero1-scalar", "zero3-sgd", "zero2-momentum", "zero2-adagrad"],
        *["zero3-client", "zero2-bf16_masters", "zero3-fp32-other_run"],
        *["zero3-frozen_later-fp16", "universal3-frozen_later", "zero2-frozen_later", "zero2-outside"],
    ],
    3: ["zero3-bf16", "universal3-fp32", "zero2-aligned-round_robin", "zero1-bf16-accumulated_in_fp32"],
}
"""Number of ranks → kinds that are read by the same code as some in ``MADE``: for tests that are marked ``long``."""
MADE = {
    1: ["zero0-fp32", "zero1-fp32", "zero2-bf16", "zero3-bf16", "universal3-bf16", "zero2-aligned"],
    2: [kind for kind in KINDS if kind not in RARE[2]],
    3: ["zero1-fp32", "zero2-bf16", "zero3-subgroups"],
}
"""Number of ranks → kinds, one of each that is stored in another way."""
RARE[1] = [kind for kind in RARE[1] if kind not in MADE[1]]
OWN = ["zero0:1", "zero1:1", "zero2:1", "zero3:1", "bf16:1", "zero2:2", "zero3:2"]
OWN += ["zero3:2:1:zero0-bf16,zero2_offload-fp32,zero3-fp32", "bf16:1:2:zero0-fp32,zero1-bf16,zero2-fp32,zero3_offload-bf16"]
ALL_KINDS = ",".join([f"zero{stage}-{precision}" for stage in range(4) for precision in ("fp32", "bf16")])
ALL_KINDS += ",zero2_offload-fp32,zero3_offload-bf16"
OWN_RARE = ["zero1:2", "zero3:2", "zero0:1", "bf16:1"]
OWN_RARE += [f"{pair}:{ALL_KINDS}" for pair in ("zero1:2:1", "zero0:1:2", "zero3:2:1", "bf16:1:2")]


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
    """``foreign(kind, ranks)``: one of the kinds in ``MADE`` or ``RARE``; all of either are made at the first request."""

    def get(kind: str, ranks: int = 2) -> Foreign:
        name, kinds = ("foreign", MADE) if kind in MADE[ranks] else ("foreign-rare", RARE)
        jobs = [f"{count}:{','.join(names)}" for count, names in kinds.items()]
        output = made_once(name, lambda folder: _run("foreign.py", folder, *jobs)) / str(ranks)
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


@pytest.fixture(scope="session")
def own(made_once, tokenizer_folder):
    """``own("zero2", 2)``: checkpoints that own.py trained; ``own("zero3", 2, loaded_by=1)``: what it converted.

    With ``rare`` the jobs of ``OWN_RARE``, which tests that are marked ``long`` ask for.
    """

    def get(config: str, ranks: int = 1, loaded_by: int = 0, rare: bool = False) -> Path:
        name, jobs = ("own-rare", OWN_RARE) if rare else ("own", OWN)
        output = made_once(name, lambda folder: _run("own.py", folder, tokenizer_folder, *jobs))
        return output / (f"{config}-{ranks}-{loaded_by}" if loaded_by else f"{config}-{ranks}")

    return get


def _run(program: str, *arguments) -> None:
    done = command(sys.executable, ROOT / "tests" / "checkpoint" / program, *arguments)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
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
    """The folder of checkpoints of ``MODELS``, and of ``OTHER_TOKENIZERS``: each has all weights at random."""

    def save_all(folder: Path) -> None:
        others = {name: {"tokenizer": str(save(folder / f"{name}-tokenizer"))} for name, save in OTHER_TOKENIZERS.items()}
        (folder / "models.json").write_text(json.dumps(MODELS | others))
        _run("save_many.py", folder, tokenizer_folder, folder / "models.json")

    return made_once("saved", save_all)


def save_bpe_without_frame(folder: Path) -> Path:
    """A tokenizer with RoBERTa's special tokens that puts none of them around a text."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), vocab_size=400, show_progress=False
    )
    return save_trained(backend, trainer, folder)


def save_unigram(folder: Path) -> Path:
    """A tokenizer as sentencepiece makes them, with XLM-RoBERTa's special tokens."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    return save_trained(backend, trainer, folder)


def save_trained(backend: tokenizers.Tokenizer, trainer, folder: Path) -> Path:
    backend.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 20, trainer)
    folder.mkdir(parents=True)
    backend.save(str(folder / "tokenizer.json"))
    return folder


OTHER_TOKENIZERS = {"bpe": save_bpe_without_frame, "unigram": save_unigram}


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
