"""Checkpoints as transactions.

    OUT/checkpoints/
      latest                      name of the newest complete checkpoint, moved by os.replace
      step-00000200/
        mp_rank_00_model_states.pt, zero_pp_rank_…   what DeepSpeed writes
        tokenizer/                the run's tokenizer, so that the folder is enough to export
        manifest.json             written last: step, samples, settings, size and checksums of each file, and its own

Where hosts save to local disks, each disk has such a folder with the shards of its ranks (see other_disks.py, and
ranks/disks.py for who writes what). A checkpoint is complete when all of them are: they are made and removed together.

Saving: checkpoints that are not kept are removed, which may give a full disk room; each rank writes its shards, syncs them
to disk and reads them back; all ranks exchange the outcome; the manifest is written; ``latest`` moves; what is no longer
kept now is removed. A folder without a manifest is not a checkpoint: a killed save left it, and the next save removes it.
Where a rank could not write, the new folder is removed and the others stay as they are. Kept are the newest ones (two by
default) and the one with the lowest validation loss.
"""

import json
import os
import shutil
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import xxhash

from mpnet_ds.checkpoint.other_disks import check_gathered, check_rank, elsewhere_of, files_elsewhere, is_sound
from mpnet_ds.errors import UserError, fault_of_disk
from mpnet_ds.files import file_record, write_atomically
from mpnet_ds.zero.torch_archive import contents_checksum

MANIFEST = "manifest.json"
LATEST = "latest"
FORMAT_VERSION = 5


class SaveFailed(Exception):
    """A checkpoint could not be written; raised on all ranks, with the first reason."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint's manifest says besides its files."""

    step: int
    consumed_samples: int
    objective: dict
    """The recipe's section, with ``name``."""
    zero_stage: int
    precision: str
    world_size: int
    model: dict
    """The recipe's section."""
    vocab_size: int
    """Rows of the model's vocabulary; those beyond the tokenizer's pieces are padding."""
    seq_length: int
    identity: dict
    """Identity of the run, see run/run_folder.py: what must agree for another run to resume from here."""
    eval_loss: float | None = None
    """Validation loss at this very step, nats; None if it was not evaluated here."""
    layout: dict = field(default_factory=dict)
    """What else decides how optimizer states are laid out in the shards, see ``config/deepspeed_config.py:layout``."""
    losses: dict = field(default_factory=dict)
    """State of the trainer's ``LossWindow``, and the number of skipped steps."""


class CheckpointStore:
    """The ``checkpoints`` folder of a run, of which the newest ``keep`` are kept, and the best."""

    def __init__(self, output: str | Path, keep: int = 2):
        self.root, self.keep = Path(output) / "checkpoints", keep

    def all(self) -> list[Path]:
        """List folders with a manifest, oldest first."""
        return sorted(path.parent for path in self.root.glob(f"step-*/{MANIFEST}"))

    def newest(self) -> Path | None:
        """The newest complete checkpoint, or None."""
        whole = self.all()
        return whole[-1] if whole else None

    @property
    def latest(self) -> str:
        """Name in the file ``latest``; empty if there is none."""
        path = self.root / LATEST
        return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""

    def save(self, engine, info: CheckpointInfo, tokenizer_folder: Path, disks) -> Path:
        """Save the state of an engine whose ``checkpoint_engine`` is a ``ShardFiles``.

        Every rank must call it, and all return when the checkpoint is complete on all disks. Raises ``SaveFailed`` on all
        ranks if any could not write: then nothing but the unfinished folders has changed, and those are removed.
        """
        folder = self.root / f"step-{info.step:08d}"
        if all(disks.on_each(lambda: _noting(folder, lambda: (folder / MANIFEST).is_file(), disks))):
            return folder  # the same run at the same step: the same state
        self.prune(disks)
        disks.on_each(lambda: _remove_checkpoint(folder))
        engine.save_checkpoint(str(self.root), tag=folder.name, save_latest=False)
        try:
            self._commit(folder, info, engine.checkpoint_engine, tokenizer_folder, disks)
        except SaveFailed:
            disks.on_each(lambda: _remove_checkpoint(folder))
            raise
        self.prune(disks, folder)
        return folder

    def _commit(self, folder: Path, info: CheckpointInfo, shards, tokenizer_folder: Path, disks) -> None:
        """Make a checkpoint of folders full of shards; raise ``SaveFailed`` on all ranks."""
        failure = shards.failure and disks.at_host(shards.failure)
        outcomes = disks.ranks.gather((shards.written, failure, uuid.uuid4().hex))
        written = [
            {path: record | {"rank": rank} for path, record in files.items()} for rank, (files, *_) in enumerate(outcomes)
        ]
        here, others = ([written[rank] for rank in ranks] for ranks in disks.here_and_elsewhere)
        if not disks.is_one:  # before failures: hosts that overwrite each other's files have some, for this reason
            disks.on_each(lambda: _noting(folder, lambda: _check_apart(folder, here, others), disks))
        failures = [failure for _, failure, _ in outcomes if failure]
        if failures:
            raise SaveFailed(failures[0])

        def complete() -> dict:
            shutil.copytree(tokenizer_folder, folder / "tokenizer", dirs_exist_ok=True)
            return {"host": disks.ranks.host, "folder": str(folder.absolute()), "files": _list_files(folder, here)}

        def write_manifest() -> None:
            files, elsewhere = lists[disks.number]["files"], elsewhere_of(disks.number, lists)
            _write_manifest(folder, {"save": outcomes[0][2], "info": asdict(info), "files": files, "elsewhere": elsewhere})

        lists = disks.on_each(lambda: _noting(folder, complete, disks))
        disks.on_each(lambda: _noting(folder, write_manifest, disks))
        disks.on_each(lambda: _noting(folder, lambda: write_atomically(self.root / LATEST, folder.name), disks))

    def newest_everywhere(self, disks) -> Path | None:
        """The newest checkpoint that all disks have and show; every rank must call it."""
        names = disks.on_each(lambda: _unless_disk_fails(lambda: {path.name for path in self.all()}) or set())
        whole = sorted(set.intersection(*names))
        return self.root / whole[-1] if whole else None

    def prune(self, disks, *just_saved: Path) -> None:
        """Remove what is not kept, on all disks alike; what cannot be removed, or looked at, stays until the next time."""
        losses = disks.on_each(
            lambda: _unless_disk_fails(lambda: {path.name: _eval_loss(path) for path in self.all()}),
        )
        if None in losses:
            return
        kept = {*(path.name for path in just_saved), *_to_keep(losses, self.keep)}

        def remove_others() -> None:
            for path in self.root.glob("step-*"):  # also what a killed save left
                if path.name not in kept:
                    _remove_checkpoint(path)

        disks.on_each(lambda: _unless_disk_fails(remove_others))

    def set_aside(self, checkpoint: Path) -> Path:
        """Rename a damaged checkpoint so that it does not count as one; return the new path."""
        aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(checkpoint, aside)
        return aside


def _to_keep(losses: list[dict[str, float | None]], newest: int) -> set[str]:
    """Choose the newest ones that all disks have, and the one with the lowest validation loss.

    ``losses``: for each disk, the name of each checkpoint → its validation loss, if there is one.
    """
    whole = sorted(set.intersection(*map(set, losses)))
    evaluated = [name for name in whole if losses[0][name] is not None]
    return {*whole[-newest:], *sorted(evaluated, key=losses[0].get)[:1]}


def _noting(folder: Path, function, disks):
    """Return what ``function`` returns; raise ``SaveFailed`` instead of an ``OSError``."""
    try:
        return function()
    except OSError as error:
        raise SaveFailed(disks.at_host(fault_of_disk(error, folder) or f"{folder}: {error.strerror or error}")) from error


def _unless_disk_fails(function):
    """Return what ``function`` returns, or None after an ``OSError``."""
    try:
        return function()
    except OSError:
        return None


def _remove_checkpoint(folder: Path) -> None:
    """Remove a folder as far as that is possible, first its manifest: from there on it is not a checkpoint."""
    with suppress(OSError):
        (folder / MANIFEST).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def read_info(folder: str | Path) -> CheckpointInfo:
    """Read the manifest's content without the list of files."""
    return CheckpointInfo(**_read_manifest(Path(folder))["info"])


def _eval_loss(checkpoint: Path) -> float | None:
    try:
        return read_info(checkpoint).eval_loss
    except UserError:  # a damaged manifest: nothing is known of it
        return None


def read_save(folder: str | Path) -> str:
    """Read the identifier that the manifests of one save share on all disks, and no others."""
    return _read_manifest(Path(folder))["save"]


def verify(folder: str | Path) -> None:
    """Read every file of a checkpoint and compare size and checksum; raise ``UserError`` at the first difference.

    Files of other hosts' disks are compared if they were copied here.
    """
    folder = Path(folder)
    for name, expected in _expected_files(folder).items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing, the checkpoint's {MANIFEST} lists it. Use another checkpoint.")
        found = file_record(path)
        if found != {key: expected[key] for key in found}:
            raise UserError(f"{path} is damaged: its size or checksum is not what {MANIFEST} says. Use another checkpoint.")


def verify_quickly(folder: str | Path) -> None:
    """Compare a checkpoint's files with its manifest by size and by the archive directories at the end of shards.

    Reads no tensors; whoever reads them compares them with the checksums in those directories (zero/torch_archive.py).
    Raises ``UserError`` at the first difference, and where files are missing that are on other hosts' disks.
    """
    folder = Path(folder)
    check_gathered(folder, _read_manifest(folder)["elsewhere"])
    files = _expected_files(folder)
    for path in sorted(folder.glob("*.pt")):
        if path.name not in files:
            raise UserError(f"unexpected file {path}: the checkpoint's {MANIFEST} does not list it.")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing, the checkpoint's {MANIFEST} lists it. Use another checkpoint.")
        if path.stat().st_size != expected["bytes"]:
            raise UserError(f"{path} is not what {MANIFEST} says: {path.stat().st_size:,} bytes, not {expected['bytes']:,}.")
        if "contents" in expected and contents_checksum(path) != expected["contents"]:
            raise UserError(f"{path} is not what {MANIFEST} says: it is damaged, or of another checkpoint.")


def check_at_hand(folder: str | Path, rank: int, conversion: str) -> None:
    """Check that a rank finds here what it resumes from: its own files, or those of all ranks for a conversion.

    Raises ``UserError``, naming the host that has them.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    if conversion:
        check_gathered(folder, manifest["elsewhere"], f"a conversion ({conversion}) needs the files of all")
    check_rank(folder, manifest["elsewhere"], rank)
    for name, record in manifest["files"].items():
        if record.get("rank") == rank and not (folder / name).is_file():
            raise UserError(f"{folder / name} is not on this host, rank 0's host has it: copy the checkpoint to all hosts.")


def _expected_files(folder: Path) -> dict[str, dict]:
    """Name → record of what should be in a folder: files that were saved there, or copied there from other disks."""
    manifest = _read_manifest(folder)
    copied = {name: record for name, record in files_elsewhere(manifest["elsewhere"]).items() if (folder / name).is_file()}
    return manifest["files"] | copied


def find_checkpoint(path: str | Path) -> Path:
    """Find a checkpoint by its folder, or the newest one by a run's folder or its ``checkpoints`` folder."""
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
        raise UserError(f"{folder} is not a complete checkpoint: {MANIFEST} is missing.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, body = content["version"], {key: content[key] for key in content if key not in ("version", "xxh3_64")}
        kinds = (("save", str), ("info", dict), ("files", dict))
        is_sane = all(isinstance(body[key], kind) for key, kind in kinds) and is_sound(body["elsewhere"])
        is_whole = is_sane and content["xxh3_64"] == _checksum(body)
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


def _check_apart(folder: Path, here: list[dict], others: list[dict]) -> None:
    """Raise ``SaveFailed`` where a folder holds what only ranks of other disks wrote: it is not on a disk of its own.

    ``here``, ``others``: for each rank of this disk, and each other one, path → record of what it wrote.
    """
    foreign = {path for files in others for path in files}.difference(*here).intersection(folder.rglob("*"))
    if foreign:
        raise SaveFailed(
            f"{min(foreign)} came from a host whose disk seemed to be another one: the file system shows files late"
        )


def _list_files(folder: Path, here: list[dict]) -> dict[str, dict]:
    """Name → record of what else is there, which is synced to disk, and of what each rank of this disk wrote (``here``)."""
    written = {path: record for files in reversed(here) for path, record in files.items()}
    rest = [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in written]
    for path in rest:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    files = written | {path: file_record(path) for path in rest}
    return {str(path.relative_to(folder)): files[path] for path in sorted(files)}


def _write_manifest(folder: Path, body: dict) -> None:
    content = {"version": FORMAT_VERSION, "xxh3_64": _checksum(json.loads(json.dumps(body)))} | body
    write_atomically(folder / MANIFEST, json.dumps(content, indent=2) + "\n")
