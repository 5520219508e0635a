"""Consolidation: one set of weights from the shards of a checkpoint, in a few MiB of memory."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from mpnet_ds.checkpoint.store import MANIFEST, find_checkpoint, verify_quickly
from mpnet_ds.errors import UserError, each_of
from mpnet_ds.files import new_folder, refuse_existing
from mpnet_ds.zero.checkpoint_reader import ZeroCheckpoint
from mpnet_ds.zero.lazy_weights import StoredWeights
from mpnet_ds.zero.safetensors_writer import dtype_of, write_weights
from mpnet_ds.zero.universal import is_universal, open_universal


def named_tensors(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of a checkpoint, read one after another; a tied parameter comes once, under its first name.

    Floating-point values are fp32, from the master weights where there are any. ``folder`` and errors as in
    ``open_weights``; damage of a file may be found at the end only.
    """
    return open_weights(folder).named_tensors()


def load_consolidated(folder: str | Path) -> dict[str, Tensor]:
    """Load all weights of a checkpoint into memory: name in the module's state dict → tensor.

    Floating-point values are fp32. A tied parameter appears under each of its names, as one tensor. ``folder`` and errors
    as in ``open_weights``.
    """
    return open_weights(folder).load()


def consolidate(
    source: str | Path,
    output: str | Path,
    dtype: str = "fp32",
    max_shard_size: int | str = "5GB",
    show_progress: bool = False,
) -> list[Path]:
    """Write ``model.safetensors``, or several files and their index above ``max_shard_size``, to a new folder.

    A tied parameter is written once, under its first name. The folder appears when all is complete. Returns its files.
    """
    checks = (lambda: dtype_of(dtype), lambda: open_weights(source), lambda: refuse_existing(output))
    torch_dtype, weights, _ = each_of(*checks)
    with new_folder(output) as folder:
        written = write_weights(
            weights.tensors, folder, torch_dtype, max_shard_size, weights.tied, show_progress=show_progress
        )
        weights.check()
    return [Path(output) / path.name for path in written]


def open_weights(folder: str | Path) -> StoredWeights:
    """Open a checkpoint of any program without reading its weights.

    Args:
        folder: the checkpoint itself, also a universal one; or a folder of checkpoints: then the newest of a run of this
            project, else the one that the file ``latest`` names.
    Raises:
        UserError: there is no checkpoint; a file is missing, unexpected, damaged, of another checkpoint, or holds anything
            but tensors and a few known types. Nothing of it is run.
    Warns:
        UserWarning: it was saved without its frozen weights.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"no checkpoint folder {folder}" + (": that is a file." if path.exists() else "."))
    path = _locate(path)
    if (path / MANIFEST).is_file():
        verify_quickly(path)
    weights = open_universal(path) if is_universal(path) else ZeroCheckpoint(path).weights
    if weights.lacks:
        warnings.warn(weights.lacks, stacklevel=3)
    return weights


def _locate(path: Path) -> Path:
    if any(path.glob("*_states.pt")) or is_universal(path):
        return path
    latest = next((path / name for name in ("latest", "latest_universal") if (path / name).is_file()), None)
    if latest is not None and not any(path.glob(f"*/{MANIFEST}")):
        tag = latest.read_text(encoding="utf-8", errors="replace").strip()
        below = os.path.normpath(tag)  # a tag may have slashes
        if below.split(os.sep)[0] in ("", ".", "..") or "\0" in tag or not (path / below).is_dir():
            found = f"{latest} names '{tag}', which is not a folder below {path}"
            raise UserError(f"{found}: give the checkpoint's folder itself.")
        return path / below
    try:
        return find_checkpoint(path)
    except UserError as error:
        what = (
            "a folder that DeepSpeed saved (…_states.pt files), one that holds such folders and 'latest', or a run's folder"
        )
        raise UserError(f"no checkpoint in {path}: give {what}.") from error
