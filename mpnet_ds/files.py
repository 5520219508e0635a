"""Files that are either whole or not there, and their checksums."""

import fcntl
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from mpnet_ds.errors import UserError

BLOCK = 1 << 22
LOCK = ".mpnet_ds.lock"
"""Held in a folder that is being made; also the mark of such a folder."""
BUILD_PLAN = "plan.json"
"""In such a folder: it belongs to a build that can go on."""
TEMPORARY = ".tmp"
"""Ending of files that are being written."""


@contextmanager
def partial_folder(output: Path) -> Iterator[Path]:
    """``OUT.partial``, held by this process alone, with whatever an earlier one left in it.

    Raises ``UserError`` if it cannot be made, is in use, or holds something that no program of this project left: its mark
    is the file ``LOCK``.
    """
    if not output.name:
        raise UserError(f"{output} cannot be an output: name a new folder.")
    folder = output.with_name(output.name + ".partial")
    is_ours = (folder / LOCK).is_file() and not folder.is_symlink()
    if os.path.lexists(folder) and not is_ours and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is needed while {output.name} is made, and holds something else: move it away.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {output.parent}: {error.strerror}.") from error
    with locked(folder / LOCK, f"{output} is being made by another program"):
        yield folder


@contextmanager
def new_folder(output: str | Path) -> Iterator[Path]:
    """A folder that appears whole or not at all: fill the yielded one, it takes its name when the block ends well.

    Raises ``UserError`` if ``output`` holds anything, or cannot be made. What a killed program left is removed first, but
    not the finished shards of a build.
    """
    output = Path(output).resolve()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists and is not empty: choose another output or remove it.")
    with partial_folder(output) as partial:
        if (partial / BUILD_PLAN).exists():
            raise UserError(f"{partial} holds an interrupted build: go on with it, or remove it.")
        empty_folder(partial)
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_files(partial)
        rename_into_place(partial, output)


def rename_into_place(partial: Path, output: Path) -> None:
    """Gives a partial folder that is complete its name. The lock goes last: nobody else may begin in between."""
    if output.exists():
        output.rmdir()
    os.replace(partial, output)
    (output / LOCK).unlink(missing_ok=True)
    sync_folder(output.parent)


def empty_folder(folder: Path, keep: str = "") -> None:
    """Removes all from a folder but its lock, and files whose names begin with ``keep``."""
    for path in folder.iterdir():
        if path.name != LOCK and not (keep and path.name.startswith(keep)):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds ``path`` as a lock of this process; it is free again as soon as the process ends, however that happens.

    Raises ``UserError`` if another process holds it: ``what`` says what that one is doing.
    """
    try:
        file = open(path, "a+")
    except FileNotFoundError:  # its folder has just been renamed
        raise UserError(f"{what}: that one has just ended. Start again.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"{what} ({file.read().strip()}): wait for it, or end it.") from None
        except OSError as error:
            print(f"{path}: no locks here ({error.strerror}): do not run two programs on it.", file=sys.stderr, flush=True)
        if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
            raise UserError(f"{what}: that one has just ended. Start again.")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def sync_files(folder: Path) -> None:
    """Puts all files of a folder, and their names, on disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(place, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(place))


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder on disk: what ``os.replace`` did survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Puts a text file in place in one step: readers see the old one or all of the new one."""
    temporary = path.with_name(path.name + TEMPORARY)
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def fast_checksum(path: Path) -> str:
    """xxh3_64 of a file, hexadecimal: finds damage, not malice."""
    hasher = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def file_record(path: Path) -> dict:
    """Size and checksum of a file, as manifests keep them."""
    return {"bytes": path.stat().st_size, "xxh3_64": fast_checksum(path)}
