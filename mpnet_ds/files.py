"""Files that are either whole or not there, and their checksums."""

import fcntl
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from mpnet_ds.errors import UserError

BLOCK = 1 << 22
TEMPORARY = ".tmp"
"""Ending of files that are being written."""


@contextmanager
def new_folder(output: str | Path) -> Iterator[Path]:
    """A folder that appears whole or not at all: fill the yielded one, it takes its name when the block ends well.

    Raises ``UserError`` if ``output`` holds anything, or cannot be made. What a killed program left is removed first.
    """
    output = Path(output).resolve()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists and is not empty: choose another output or remove it.")
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write to {output.parent}: {error.strerror}.") from error
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if output.exists():
        output.rmdir()
    os.replace(partial, output)


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
        if not path.exists():
            raise UserError(f"{what}: that one has just ended. Start again.")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


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


def digest(path: Path, *hashers) -> list[str]:
    """Hexadecimal digests of a file, read once in blocks."""
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            for hasher in hashers:
                hasher.update(block)
    return [hasher.hexdigest() for hasher in hashers]


def fast_checksum(path: Path) -> str:
    """xxh3_64 of a file, hexadecimal: finds damage, not malice."""
    return digest(path, xxhash.xxh3_64())[0]
