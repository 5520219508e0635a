"""Checkpoints as transactions.

    OUT/checkpoints/
      latest                      name of the newest whole checkpoint, moved by os.replace
      step-00000200/
        mp_rank_00_model_states.pt, zero_pp_rank_…   what DeepSpeed writes
        tokenizer/                the run's tokenizer, so that the folder is enough to export
        manifest.json             written last: step, samples, settings, size and checksums of each file, and its own

Saving: each rank writes its shards, puts them on disk and reads them back; all ranks tell each other how it went; the
manifest is written; ``latest`` moves; checkpoints that are no longer kept go. A folder without a manifest is not a
checkpoint: it is what a kill left, and the next save removes it. Where a rank could not write, the new folder goes and the
others stay as they are. Kept are the newest ones (two by default) and the one with the lowest evaluation loss.
"""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import xxhash

from mpnet_ds.checkpoint.tensor_file import contents_checksum
from mpnet_ds.errors import UserError
from mpnet_ds.files import file_record, write_atomically

MANIFEST = "manifest.json"
LATEST = "latest"
FORMAT_VERSION = 3


class SaveFailed(Exception):
    """A checkpoint could not be written; raised on all ranks, with the first reason."""


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
    """At this very step, nats; None if it was not evaluated here."""
    layout: dict = field(default_factory=dict)
    """What else decides how the optimizer's numbers lie in the shards, see training/engine.py."""
    losses: dict = field(default_factory=dict)
    """State of the trainer's ``LossWindow``, and how many updates were skipped."""


class CheckpointStore:
    """The ``checkpoints`` folder of a run.

    Args:
        keep: how many of the newest are kept.
    """

    def __init__(self, output: str | Path, keep: int = 2):
        self.root, self.keep = Path(output) / "checkpoints", keep

    def all(self) -> list[Path]:
        """Folders with a manifest, oldest first."""
        return sorted(path.parent for path in self.root.glob(f"step-*/{MANIFEST}"))

    def newest(self) -> Path | None:
        """The checkpoint that was finished last, or None."""
        whole = self.all()
        return whole[-1] if whole else None

    def save(self, engine, info: CheckpointInfo, tokenizer_folder: Path, ranks) -> Path:
        """Saves the state of an engine whose ``checkpoint_engine`` is a ``ShardFiles``.

        Every rank must call it, and all return when the checkpoint is whole. Raises ``SaveFailed`` on all of them if any
        could not write: then nothing but the unfinished folder has changed, and that is gone.
        """
        folder = self.root / f"step-{info.step:08d}"
        if ranks.on_main(lambda: (folder / MANIFEST).is_file()):
            return folder  # the same run at the same update: the same state
        ranks.on_main(lambda: _remove(folder))
        engine.save_checkpoint(str(self.root), tag=folder.name, save_latest=False)
        outcomes = ranks.gather((engine.checkpoint_engine.written, engine.checkpoint_engine.failure))
        failures = [failure for _, failure in outcomes if failure]
        if not failures:
            written = {path: record for files, _ in outcomes for path, record in files.items()}
            failures = ranks.on_main(lambda: self._commit(folder, info, written, tokenizer_folder))
        if failures:
            ranks.on_main(lambda: _remove(folder))
            raise SaveFailed(failures[0])
        ranks.on_main(lambda: self._prune(folder))
        return folder

    def _commit(self, folder: Path, info: CheckpointInfo, written: dict[Path, dict], tokenizer_folder: Path) -> list[str]:
        """Makes a checkpoint of a folder full of shards; returns what went wrong."""
        try:
            shutil.copytree(tokenizer_folder, folder / "tokenizer", dirs_exist_ok=True)
            _write_manifest(folder, info, written)
            write_atomically(self.root / LATEST, folder.name)
        except OSError as error:  # copytree puts its reasons into the text
            return [f"{folder}: {error.strerror or error}"]
        return []

    def _prune(self, just_saved: Path) -> None:
        """Removes what is no longer kept; what cannot be removed stays until the next time."""
        for path in self.root.glob("step-*"):
            if not (path / MANIFEST).is_file():
                _remove(path)  # what a kill during a save left
        whole = self.all()
        losses = {path: loss for path in whole if (loss := _eval_loss(path)) is not None}
        best = min(losses, key=losses.get, default=None)
        for path in whole[: -self.keep]:
            if path not in (best, just_saved):
                _remove(path / MANIFEST)  # from here on it is no checkpoint
                _remove(path)

    def set_aside(self, checkpoint: Path) -> Path:
        """Gives a damaged checkpoint another name, under which it is none; returns it."""
        aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
        _remove(aside)
        os.replace(checkpoint, aside)
        return aside


def _remove(path: Path) -> None:
    """A file or a folder, as far as that is possible."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def read_info(folder: str | Path) -> CheckpointInfo:
    """The manifest's content without the list of files."""
    return CheckpointInfo(**_read_manifest(Path(folder))["info"])


def _eval_loss(checkpoint: Path) -> float | None:
    try:
        return read_info(checkpoint).eval_loss
    except UserError:  # a damaged manifest: nothing is known of it
        return None


def verify(folder: str | Path) -> None:
    """Reads every file of a checkpoint and compares size and checksum; raises ``UserError`` at the first difference."""
    folder = Path(folder)
    for name, expected in _read_manifest(folder)["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing, the checkpoint's {MANIFEST} names it. Use another checkpoint.")
        found = file_record(path)
        if found != {key: expected[key] for key in found}:
            raise UserError(f"{path} is not what {MANIFEST} says (size or checksum): damaged. Use another checkpoint.")


def verify_quickly(folder: str | Path) -> None:
    """Whether a checkpoint's files are those that its manifest names, by sizes and the directories that shards end with.

    Reads no tensors; whoever reads them holds them against the checksums in those directories (see tensor_file.py). Raises
    ``UserError`` at the first difference.
    """
    folder = Path(folder)
    files = _read_manifest(folder)["files"]
    for path in sorted(folder.glob("*.pt")):
        if path.name not in files:
            raise UserError(f"{path} is one too many: the checkpoint's {MANIFEST} does not name it.")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing, the checkpoint's {MANIFEST} names it. Use another checkpoint.")
        if path.stat().st_size != expected["bytes"]:
            raise UserError(f"{path} is not what {MANIFEST} says: {path.stat().st_size:,} bytes, not {expected['bytes']:,}.")
        if "contents" in expected and contents_checksum(path) != expected["contents"]:
            raise UserError(f"{path} is not what {MANIFEST} says: it is damaged, or of another checkpoint.")


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
        version, body = content["version"], {"info": content["info"], "files": content["files"]}
        is_whole = content["xxh3_64"] == _checksum(body)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged or of another version: {error!r}. Use another checkpoint.") from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, this program reads {FORMAT_VERSION}: use the release that wrote it."
        )
    if not is_whole:
        raise UserError(f"{path} is damaged: its checksum is not that of its content. Use another checkpoint.")
    return content


def _checksum(body: dict) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(body, sort_keys=True).encode())


def _write_manifest(folder: Path, info: CheckpointInfo, written: dict[Path, dict]) -> None:
    """Names what the ranks wrote, and the tokenizer's files."""
    others = [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in written]
    for path in others:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    files = written | {path: file_record(path) for path in others}
    records = {str(path.relative_to(folder)): files[path] for path in sorted(files)}
    body = {"info": asdict(info), "files": records}
    content = {"version": FORMAT_VERSION, "xxh3_64": _checksum(json.loads(json.dumps(body)))} | body
    write_atomically(folder / MANIFEST, json.dumps(content, indent=2) + "\n")
