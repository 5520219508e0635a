"""Checkpoints as transactions.

    OUT/checkpoints/
      latest                      name of the newest whole checkpoint, moved by os.replace
      step-00000200/
        mp_rank_00_model_states.pt, zero_pp_rank_…   what DeepSpeed writes
        tokenizer/                the run's tokenizer, so that the folder is enough to export
        manifest.json             written last: step, samples, settings, size and checksum of each file

A folder without a manifest is not a checkpoint: it is what a kill left, and the next save removes it. The newest two
and the one with the lowest evaluation loss are kept.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from mpnet_ds.errors import UserError
from mpnet_ds.files import fast_checksum, write_atomically

MANIFEST = "manifest.json"
LATEST = "latest"
FORMAT_VERSION = 1
NEWEST_KEPT = 2


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself, besides its files."""

    step: int
    consumed_samples: int
    objective: str
    zero_stage: int
    precision: str
    world_size: int
    model_config: dict
    """As ``transformers.MPNetConfig`` writes it."""
    seq_length: int
    identity: dict
    """Of the run, see training/run_folder.py: what must agree for another run to go on from here."""
    eval_loss: float | None = None
    """Of the last evaluation before the save, nats."""


class CheckpointStore:
    """The ``checkpoints`` folder of a run."""

    def __init__(self, output: str | Path):
        self.root = Path(output) / "checkpoints"

    def all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(path.parent for path in self.root.glob(f"step-*/{MANIFEST}"))

    def newest(self) -> Path | None:
        """The checkpoint that was finished last, or None."""
        whole = self.all()
        return whole[-1] if whole else None

    def save(self, engine, info: CheckpointInfo, tokenizer_folder: Path, ranks) -> Path:
        """Saves the engine's state; every rank must call it, and all return when the checkpoint is whole."""
        folder = self.root / f"step-{info.step:08d}"
        if ranks.is_main and folder.exists():
            shutil.rmtree(folder)
        ranks.barrier()
        engine.save_checkpoint(str(self.root), tag=folder.name, save_latest=False)
        ranks.barrier()
        if ranks.is_main:
            shutil.copytree(tokenizer_folder, folder / "tokenizer", dirs_exist_ok=True)
            _write_manifest(folder, info)
            write_atomically(self.root / LATEST, folder.name)
            self._prune(just_saved=folder)
        ranks.barrier()
        return folder

    def _prune(self, just_saved: Path) -> None:
        for path in self.root.glob("step-*"):
            if not (path / MANIFEST).is_file():
                shutil.rmtree(path)  # what a kill during a save left
        whole = self.all()
        losses = {path: read_info(path).eval_loss for path in whole}
        scored = [path for path in whole if losses[path] is not None]
        best = min(scored, key=losses.get) if scored else None
        for path in whole[:-NEWEST_KEPT]:
            if path not in (best, just_saved):
                (path / MANIFEST).unlink()  # from here on it is no checkpoint
                shutil.rmtree(path)


def read_info(folder: str | Path) -> CheckpointInfo:
    """The manifest's content without the list of files."""
    return CheckpointInfo(**_read_manifest(Path(folder))["info"])


def verify(folder: str | Path) -> None:
    """Reads every file of a checkpoint and compares size and checksum; raises ``UserError`` at the first difference."""
    folder = Path(folder)
    for name, expected in _read_manifest(folder)["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing, the checkpoint's {MANIFEST} names it. Use another checkpoint.")
        if _record(path) != expected:
            raise UserError(f"{path} is not what {MANIFEST} says (size or checksum): damaged. Use another checkpoint.")


def find_checkpoint(path: str | Path) -> Path:
    """A checkpoint folder from itself, from a run's folder or from its ``checkpoints`` folder (then the newest)."""
    path = Path(path)
    if (path / MANIFEST).is_file():
        return path
    root = path.parent if path.name == "checkpoints" else path
    newest = CheckpointStore(root).newest()
    if newest is None:
        raise UserError(f"no checkpoint in {path}: give a run's folder, or a step-… folder with a {MANIFEST}.")
    return newest


def _read_manifest(folder: Path) -> dict:
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} is not a whole checkpoint: {MANIFEST} is missing.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. Use another checkpoint.") from error
    if content.get("version") != FORMAT_VERSION:
        raise UserError(f"{path} has format version {content.get('version')}, this program reads {FORMAT_VERSION}.")
    return content


def _write_manifest(folder: Path, info: CheckpointInfo) -> None:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    files = {str(path.relative_to(folder)): _record(path) for path in paths}
    content = {"version": FORMAT_VERSION, "info": asdict(info), "files": files}
    write_atomically(folder / MANIFEST, json.dumps(content, indent=2) + "\n")


def _record(path: Path) -> dict:
    return {"bytes": path.stat().st_size, "xxh3_64": fast_checksum(path)}
