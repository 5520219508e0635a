"""A namespace of its own for a host: network, process ids, mounts, name, shared memory. Nothing of the machine is changed.

A small process holds the namespace. It is process 1 in there, so Linux itself ends everything inside when it ends. It reads
from a pipe of the test process and ends when that closes: a namespace never outlives the process that made it, not even
one that was killed; and its network devices and mounts go with it.
"""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil

HOLD = """
set -e
{setup}
echo ready
trap '' CHLD  # ignored, so that Linux clears away the orphans for whom process 1 would have to wait
exec cat
"""


class Namespace:
    """Holds a namespace until ``close``. ``setup`` is shell script that runs in it first; ``RuntimeError`` if it fails."""

    def __init__(self, setup: str = ":"):
        command = ["unshare", "--fork", "--kill-child", "--mount-proc", "--net", "--pid", "--mount", "--uts", "--ipc"]
        command += ["sh", "-c", HOLD.format(setup=setup)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._holder = subprocess.Popen(command, **pipes, text=True, start_new_session=True)
        if self._holder.stdout.readline() != "ready\n":
            self._holder.wait()
            raise RuntimeError(f"no namespace could be set up: {self._holder.stderr.read().strip()}")
        (self.pid,) = _children(self._holder.pid)

    def close(self) -> None:
        """Ends all processes in it at once, and with them it. A second call does nothing."""
        self._holder.stdin.close()
        self._holder.wait()
        self._holder.stdout.close()
        self._holder.stderr.close()

    def run(self, *command: object, only_network: bool = False, stdin: str | None = None) -> str:
        """Output of a short command inside; ``RuntimeError`` with its errors if it fails.

        With ``only_network`` it sees the machine's files and process ids.
        """
        words = [str(word) for word in (*self._enter(only_network), *command)]
        done = subprocess.run(words, capture_output=True, text=True, input=stdin or "", timeout=60)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))} failed: {done.stderr.strip()}")
        return done.stdout

    def popen(self, *command: object, cwd: Path | str = ".", **options) -> "Inside":
        """Starts a command inside; options as for ``subprocess.Popen``."""
        # Not nsenter's --wd: it opens the folder outside, where mounts of the namespace are not seen.
        words = [*self._enter(), "env", f"--chdir={os.path.abspath(cwd)}", *command]
        return Inside([str(word) for word in words], start_new_session=True, **options)

    def processes(self) -> list[psutil.Process]:
        """All that run inside, by their ids outside, but for the holder."""
        mine = os.readlink(f"/proc/{self.pid}/ns/pid")
        return [each for each in psutil.process_iter() if each.pid != self.pid and _namespace_of(each.pid) == mine]

    def _enter(self, only_network: bool = False) -> list[str]:
        kinds = ["--net"] if only_network else ["--net", "--pid", "--mount", "--uts", "--ipc"]
        return ["nsenter", "--target", str(self.pid), *kinds]


class Inside(subprocess.Popen):
    """A program in a namespace. Signals go to it, and not to the ``nsenter`` that waits for it and takes its exit code."""

    def send_signal(self, number: int) -> None:
        deadline = time.monotonic() + 10
        while self.poll() is None and time.monotonic() < deadline:
            for program in _children(self.pid):
                with suppress(ProcessLookupError):  # nsenter has just taken its exit code
                    os.kill(program, number)
                return
            time.sleep(0.01)

    def __exit__(self, kind, *error) -> None:
        """Waits for the program's end, as ``subprocess.Popen`` does; after an error it ends the program first."""
        if kind:
            self.kill()
        super().__exit__(kind, *error)


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL, at once and without a chance to answer."""
    for process in processes:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _namespace_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:  # it has ended
        return ""
