"""Files and folders that appear atomically, files of whole records, locks, and checksums."""

import errno
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

from mpnet_ds.errors import UserError, fault_of_disk

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
        make_folder(folder)
    except OSError as error:
        raise UserError(f"cannot write to {output.parent}: {error.strerror}.") from error
    with locked(folder / LOCK, f"{output} is being created by another process"):
        yield folder


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, as far as they are missing; raises as ``check_links``."""
    check_links(folder)
    folder.mkdir(parents=True, exist_ok=True)


def check_links(path: Path) -> None:
    """Raise ``OSError`` where a path, or one above it, is a link that leads nowhere, as the system would not say."""
    for link in (*reversed(path.parents), path):
        if link.is_symlink() and not link.exists():
            raise FileNotFoundError(errno.ENOENT, f"{link} is a link to {os.readlink(link)}, which is missing", str(link))


def obstacle_to_writing(folder: Path) -> str | None:
    """Why a folder cannot be made or written to, as the system says; None where it can. Nothing stays of the attempt."""
    missing = []
    try:
        if folder.is_file():
            return "it is a file"
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        make_folder(folder)
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
        UserError: ``output`` is not empty or cannot be created; an interrupted build is there; the disk fails meanwhile.
    """
    output = Path(output).resolve()
    refuse_existing(output)
    with partial_folder(output) as partial:
        if (partial / BUILD_PLAN).exists():
            raise UserError(f"{partial} holds an interrupted build: continue it, or remove it.")
        empty_folder(partial)
        try:
            yield partial
            sync_files(partial)
            rename_into_place(partial, output)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if fault := fault_of_disk(error, output):
                raise UserError(f"{fault}. {output} was not made.") from error
            raise


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
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}.") from error
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
        with suppress(OSError):  # a full disk; it only helps a person
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}\n".encode())
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
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a temporary file, which becomes ``path`` when the block succeeds and is removed when it fails."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename is None:  # the write of a full disk does not name the file
            error.filename = str(path)
        raise


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder atomically, unless it is there."""
    if target.exists():
        return
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source, partial)
        sync_files(partial)
        os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


class RecordFile:
    """A file to which whole records are appended: of what does not fit nothing stays, and it is written when it fits."""

    def __init__(self, path: Path):
        self.path = path
        self.pending: list[bytes] = []
        self._end: int | None = None  # of the last whole record, while something else may follow it

    def write(self, record: bytes) -> None:
        """Add a record, which ``flush`` writes."""
        self.pending.append(record)

    def flush(self) -> None:
        """Write what is pending, and keep it for the next time if that raises ``OSError``."""
        if not self.pending:
            return
        if self._end is not None:
            with suppress(FileNotFoundError):
                os.truncate(self.path, self._end)
        try:
            with open(self.path, "ab", buffering=0) as file:
                self._end = file.tell()
                block = memoryview(b"".join(self.pending))
                while block:
                    block = block[file.write(block) :]
        except OSError:
            if self._end is not None:
                with suppress(OSError):
                    os.truncate(self.path, self._end)
            raise
        self.pending, self._end = [], None


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
