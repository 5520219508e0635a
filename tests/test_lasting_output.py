"""A program goes on when whoever read its output has gone."""

import os
import pty
import subprocess
import sys

import pytest

from mpnet_ds import command_line
from mpnet_ds.lasting_output import LastingStream

PROGRAM = """
import os, sys
from mpnet_ds.lasting_output import outlive_readers
outlive_readers()
print("first", flush=True)
sys.stdin.readline()  # until the reader has gone
for stream in (sys.stdout, sys.stderr):
    print("x" * 100_000, file=stream)
    stream.flush()
    print("again", file=stream, flush=True)
print("left in the buffer")
os.write(1, b"to the file itself")
open(sys.argv[1], "w").write(f"{sys.stdout.encoding} {sys.stderr.isatty()}")
sys.exit(75)
"""


def test_a_program_outlives_its_readers(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", PROGRAM, tmp_path / "end"], text=True, **pipes) as process:
        assert process.stdout.readline() == "first\n"
        process.stdout.close()
        process.stderr.close()
        process.stdin.write("go on\n")
        process.stdin.close()
        assert process.wait(30) == 75
    assert (tmp_path / "end").read_text() == "utf-8 False"


def test_a_terminal_that_is_closed_is_written_to_in_vain():
    master, terminal = pty.openpty()
    stream = LastingStream(os.fdopen(terminal, "w"))
    os.close(master)
    for _ in range(2):
        print("x", file=stream, flush=True)
    assert os.path.samestat(os.fstat(stream.fileno()), os.stat(os.devnull))  # other code's output is discarded, too
    stream.close()


def test_a_full_disk_is_an_error_for_a_program_whose_output_counts_and_none_for_a_run():
    stream = LastingStream(open("/dev/full", "w"))
    with pytest.raises(OSError, match="No space left"):
        print("x", file=stream, flush=True)
    stream.never_fails = True
    print("x", file=stream, flush=True)


def test_a_program_whose_reader_has_gone_does_its_work_and_one_without_output_too(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    done = []

    def main() -> None:
        print("x", flush=True)
        done.append("all")

    for output in (os.fdopen(writing, "w"), None):
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as left:
            command_line.run(main)
        assert left.value.code == 0
    assert done == ["all", "all"]


def test_what_is_read_arrives():
    source = "import sys; from mpnet_ds.lasting_output import outlive_readers as last; last(); last(); print('out')"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("out\n", "")
