import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys

import pytest
import xxhash

from mpnet_ds.errors import UserError
from mpnet_ds.files import (
    RecordFile,
    fast_checksum,
    locked,
    new_folder,
    obstacle_to_writing,
    replacing,
    write_atomically,
)
from tests.small_disk import file_size_limit


def test_a_new_folder_appears_only_when_its_block_ends_well(tmp_path):
    output = tmp_path / "deep" / "output"
    with new_folder(output) as folder:
        (folder / "file").write_text("content")
        assert not output.exists()
    assert (output / "file").read_text() == "content"
    assert os.listdir(output.parent) == ["output"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failing_block_leaves_nothing(tmp_path, failure):
    def fill_half():
        with new_folder(tmp_path / "output") as folder:
            (folder / "file").write_text("half")
            raise failure

    with pytest.raises(failure):
        fill_half()
    assert os.listdir(tmp_path) == []


def test_what_a_killed_program_left_is_replaced(tmp_path):
    program = "import os, sys, signal; from mpnet_ds.files import new_folder\n"
    program += "with new_folder(sys.argv[1]) as f: (f / 'old').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    killed = subprocess.run([sys.executable, "-c", program, tmp_path / "output"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == ["output.partial"]
    with new_folder(tmp_path / "output") as folder:
        (folder / "new").write_text("y")
    assert os.listdir(tmp_path) == ["output"]
    assert os.listdir(tmp_path / "output") == ["new"]


def test_an_empty_folder_is_taken_and_a_full_one_refused(tmp_path):
    with new_folder(tmp_path) as folder:
        (folder / "first").write_text("1")
    with pytest.raises(UserError, match=f"{tmp_path} exists and is not empty"), new_folder(tmp_path):
        pytest.fail("the block ran")
    assert os.listdir(tmp_path) == ["first"]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="file"), new_folder(output):
            pytest.fail("the block ran")
    assert (tmp_path / "file").read_text() == "mine"


def test_the_working_directory_can_be_the_new_folder_or_is_refused(tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    with contextlib.suppress(UserError), new_folder(".") as folder:
        (folder / "file").write_text("content")
    assert os.listdir(tmp_path) == ["empty"]


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    write_atomically(path, "né")
    assert path.read_bytes() == "né".encode()


@pytest.mark.parametrize("size", [0, 1, (1 << 22) - 1, 1 << 22, (1 << 23) + 12345])
def test_checksums_cover_the_whole_file(tmp_path, size):
    content = bytes(range(251)) * (size // 251 + 1)
    content = content[:size]
    path = tmp_path / "file"
    path.write_bytes(content)
    assert fast_checksum(path) == xxhash.xxh3_64(content).hexdigest()


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.EROFS, "Read-only file system"),
        Exception("I/O error: No space left on device (os error 28)"),
        shutil.Error([("a", "b", "[Errno 122] Disk quota exceeded: 'b'")]),
    ],
)
def test_a_fault_of_the_disk_is_one_line_and_leaves_no_half_folder(tmp_path, fault):
    with pytest.raises(UserError, match=r"out: \w.+\. .*/out was not made\.$") as refused, new_folder(tmp_path / "out"):
        raise fault
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_fault_of_the_disk_names_the_file_that_could_not_be_replaced(tmp_path):
    (tmp_path / "run.png").write_text("old")
    with file_size_limit(100), pytest.raises(OSError, match=r"run\.png") as failed, replacing(tmp_path / "run.png") as new:
        new.write_bytes(bytes(200))
    assert failed.value.errno == errno.EFBIG
    assert [path.name for path in tmp_path.iterdir()] == ["run.png"]


def test_a_file_of_records_holds_whole_ones_and_catches_up(tmp_path):
    file = RecordFile(tmp_path / "records")
    for number in range(20):
        file.write(f"record {number}\n".encode())
        with file_size_limit(95 if number < 15 else 10_000), contextlib.suppress(OSError):
            file.flush()
        lines = file.path.read_text().splitlines()
        assert lines == [f"record {done}" for done in range(len(lines))]
        assert file.path.stat().st_size <= 95 or number >= 15
    assert len(lines) == 20


def test_links_that_lead_nowhere_are_named(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    expected = f"{tmp_path}/link is a link to {tmp_path}/gone, which is missing"
    assert obstacle_to_writing(tmp_path / "link") == obstacle_to_writing(tmp_path / "link" / "run") == expected


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_or_room_for_their_text_is_used(tmp_path, monkeypatch, capsys, number):
    def refuse(*what):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with file_size_limit(0), locked(tmp_path / "lock", "it is in use"):
        pass
    assert f"cannot be locked ({os.strerror(number)})" in capsys.readouterr().err
