"""File access of a DeepSpeed engine: its shards on the way to the disk and back.

DeepSpeed writes the shards of all ranks between barriers. A rank that raised there (disk full, say) would leave the others
waiting for ever, so a failed write is only recorded; the store asks all ranks afterwards. Every file is synced to disk and
read back before it counts. Reading runs no foreign code.
"""

import os
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine

from mpnet_ds.deepspeed_workarounds import choose_writer_of_weights, share_names_of_tied_weights
from mpnet_ds.errors import UserError
from mpnet_ds.files import file_record
from mpnet_ds.zero.torch_archive import contents_checksum
from mpnet_ds.zero.torch_file import load_shard


class ShardFiles(CheckpointEngine):
    """Replacement of DeepSpeed's own file access: ``replace_file_access(engine, ShardFiles())``.

    Attributes:
        written: path → {"bytes", "xxh3_64", "contents"} of the files that this rank wrote since ``create``.
        failure: the first failure since ``create``, in words, or None.
    """

    def __init__(self):
        super().__init__()
        self.name = "mpnet_ds"
        self.written: dict[Path, dict] = {}
        self.failure: str | None = None

    def create(self, info: CheckpointCommitInfo) -> None:
        """Begin a new checkpoint."""
        self.written, self.failure = {}, None

    def makedirs(self, path, exist_ok: bool = False) -> None:
        """Make a folder; record a failure."""
        try:
            os.makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self._note(path, error)

    def save(self, state_dict: Any, path: str) -> None:
        """Write one file, sync it to disk and read it back; record a failure."""
        hashing = None
        try:
            with open(path, "wb") as file:
                hashing = _HashingFile(file)
                torch.save(state_dict, hashing)
                file.flush()
                os.fsync(file.fileno())
            record = file_record(Path(path))
            if record != {"bytes": hashing.size, "xxh3_64": hashing.hasher.hexdigest()}:
                raise OSError("what was read back is not what was written")
            self.written[Path(path)] = record | {"contents": contents_checksum(Path(path))}
        except (OSError, RuntimeError, UserError) as error:
            self._note(path, (hashing and hashing.error) or error)

    def load(self, path: str, map_location=None) -> dict:
        """Load one shard into memory of its own: it is kept and changed when the file may be gone."""
        return load_shard(Path(path))

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """Do nothing: the store commits."""
        return True

    def _note(self, path, error: Exception) -> None:
        if self.failure is None:  # the first says why
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip().splitlines()[0]
            self.failure = f"{path}: {reason}"


def save_on_each_disk(engine, disks) -> None:
    """Let the keeper of each disk write the file that all ranks read (ZeRO 0 to 2); on a shared disk that is rank 0.

    The file is the same on all disks, byte for byte, so whichever is kept when they are gathered is the right one.
    """
    choose_writer_of_weights(engine, disks.is_keeper)
    if not disks.is_one:
        share_names_of_tied_weights(engine, disks.ranks.on_main)


class _HashingFile:
    """A file opened for writing that counts and hashes what was written."""

    def __init__(self, file: BinaryIO):
        self.file, self.size, self.hasher = file, 0, xxhash.xxh3_64()
        self.error: OSError | None = None  # torch reports it as something else

    def write(self, block) -> int:
        self.hasher.update(block)
        self.size += len(block)
        try:
            return self.file.write(block)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()
