"""What reaches the disk: a write that fails is noted, and never raised where other ranks would wait for this one."""

from pathlib import Path

import pytest
import torch

from mpnet_ds.checkpoint import shard_files
from mpnet_ds.checkpoint.shard_files import ShardFiles


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_file_that_is_cut_before_or_after_it_was_read_back_is_noted(tmp_path, monkeypatch, when):
    """As by a disk that is failing, or by a host that writes to the same file."""
    read_back = shard_files.file_record

    def read(path: Path) -> dict:
        if when == "before":
            cut(path)
        record = read_back(path)
        if when == "after":
            cut(path)
        return record

    monkeypatch.setattr(shard_files, "file_record", read)
    files, path = ShardFiles(), tmp_path / "shard.pt"
    files.save({"weights": torch.arange(6.0)}, str(path))
    assert str(path) in files.failure
    assert files.written == {}
