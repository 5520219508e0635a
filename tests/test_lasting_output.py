"""A program goes on when whoever read its output has gone."""

import subprocess
import sys

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


def test_what_is_read_arrives():
    source = "import sys; from mpnet_ds.lasting_output import outlive_readers as last; last(); last(); print('out')"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("out\n", "")
