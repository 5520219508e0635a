"""Files and folders that appear atomically, locks, and checksums."""

import fcntl
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import xxhash

from mpnet_ds.errors import UserError

BLOCK = 1 << 22
LOCK = ".mpnet_ds.lock"
"""Lock file in an unfinished folder, which it also identifies as ours."""
BUILD_PLAN = "plan.json"
"""File in the unfinished folder of a build that can be continued."""
TEMPORARY = ".tmp"
"""Suffix of files that are being written."""


@contextmanager
def partial_folder(output: Path) -> Iterator[Path]:
    """Open and lock ``OUT.partial``, with whatever an earlier process left in it.

    Raises ``UserError`` if it cannot be created, is in use, or is not ours: it holds something, but no file ``LOCK``.
    """
    if not output.name:
        raise UserError(f"{output} is not a valid output: name a new folder.")
    folder = output.with_name(output.name + ".partial")
    is_ours = (folder / LOCK).is_file() and not folder.is_symlink()
    if os.path.lexists(folder) and not is_ours and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is needed for creating {output.name}, but holds something else: move it away.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {output.parent}: {error.strerror}.") from error
    with locked(folder / LOCK, f"{output} is being created by another process"):
        yield folder


def obstacle_to_writing(folder: Path) -> str | None:
    """Why a folder cannot be made or written to, as the system says; None where it can. Nothing stays of the attempt."""
    missing = []
    try:
        if folder.is_file():
            return "it is a file"
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror
    except ValueError as error:  # a NUL character
        return str(error)
    finally:
        for path in missing:
            with suppress(OSError, ValueError):
                path.rmdir()


def refuse_existing(output: str | Path) -> None:
    """Raise ``UserError`` where a new folder cannot be, because something is there."""
    output = Path(output).resolve()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists and is not empty: choose another output or remove it.")


@contextmanager
def new_folder(output: str | Path) -> Iterator[Path]:
    """Create a folder atomically: fill the yielded one, which is renamed to ``output`` when the block succeeds.

    Leftovers of a killed process are removed first, except for the finished shards of a build.

    Raises:
        UserError: ``output`` is not empty or cannot be created; an interrupted build is there.
    """
    output = Path(output).resolve()
    refuse_existing(output)
    with partial_folder(output) as partial:
        if (partial / BUILD_PLAN).exists():
            raise UserError(f"{partial} holds an interrupted build: continue it, or remove it.")
        empty_folder(partial)
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_files(partial)
        rename_into_place(partial, output)


def rename_into_place(partial: Path, output: Path) -> None:
    """Rename a finished partial folder. The lock is removed last, so that no other process starts in between."""
    if output.exists():
        output.rmdir()
    os.replace(partial, output)
    (output / LOCK).unlink(missing_ok=True)
    sync_folder(output.parent)


def empty_folder(folder: Path, keep: str = "") -> None:
    """Remove everything from a folder except its lock and files whose names start with ``keep``."""
    for path in folder.iterdir():
        if path.name != LOCK and not (keep and path.name.startswith(keep)):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold ``path`` as a lock, which is released when the process ends in whatever way; ``UserError`` if another holds it.

    ``what``: what a process is doing that holds the lock, for the error.
    """
    try:
        file = open(path, "a+")
    except FileNotFoundError:  # its folder has just been renamed
        raise UserError(f"{what}, which has just ended: start again.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"{what} ({file.read().strip()}): wait for it, or stop it.") from None
        except OSError as error:
            warning = f"warning: {path} cannot be locked ({error.strerror}): do not run two processes on this folder."
            print(warning, file=sys.stderr, flush=True)
        if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
            raise UserError(f"{what}, which has just ended: start again.")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def sync_files(folder: Path) -> None:
    """Sync all files of a folder, and the folders themselves, to disk."""
    for where, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(where, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(where))


def sync_folder(folder: Path) -> None:
    """Sync the entries of a folder to disk, so that an ``os.replace`` survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically: readers see the old content or all of the new one."""
    temporary = path.with_name(path.name + TEMPORARY)
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def fast_checksum(path: Path) -> str:
    """Compute xxh3_64 (hex) of a file: detects damage, not tampering."""
    hasher = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def file_record(path: Path) -> dict:
    """Return size and checksum of a file, as manifests of checkpoints store them."""
    return {"bytes": path.stat().st_size, "xxh3_64": fast_checksum(path)}
