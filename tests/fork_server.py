"""A server that starts programs as forks of itself: importing torch, DeepSpeed and transformers takes 9 CPU seconds.

    python tests/fork_server.py SOCKET

One server serves a whole test session, all workers of pytest-xdist: as a plugin of pytest this file starts it and ends it.
It imports at the first request and starts no thread. A request holds arguments, environment and working directory as JSON,
and standard output and error as open files; the answers are the process ID and, at its end, the exit code, a line each. A
program whose client closes the connection is killed. What a library reads from the environment while it is imported is the
server's.

A fork runs its script as ``__main__``. Where there is a GPU it starts a new interpreter: CUDA does not survive a fork.
"""

import atexit
import gc
import importlib
import json
import os
import select
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

ADDRESS = "MPNET_DS_TESTS_FORK_SERVER"
"""Environment variable with the path of the server's socket."""
ROOT = Path(__file__).parent.parent
SECONDS_BETWEEN_LOOKS = 5.0
"""How often the server looks whether pytest is still there."""
MODULES = [
    *[
        "tensorboard.summary.writer.record_writer",
        "torch.utils.cpp_extension",
        "torch._subclasses.schema_check_mode",
        "setuptools",
    ],
    *["deepspeed.launcher.runner", "deepspeed.ops.op_builder.all_ops", "deepspeed.module_inject.auto_ep_layer"],
    *["deepspeed.runtime.superoffload.superoffload_stage3", "mpnet_ds.training.pretrain", "mpnet_ds.checkpoint.shard_files"],
]
"""What is imported at the first request."""


class Fork:
    """A Python script that the server runs for a test, with the methods of ``subprocess.Popen`` that tests need."""

    def __init__(self, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], output: IO, errors: IO):
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(os.environ[ADDRESS])
        request = json.dumps({"arguments": list(arguments), "cwd": str(cwd), "environment": dict(environment)}).encode()
        head = struct.pack("<Q", len(request))
        socket.send_fds(self._connection, [head], [output.fileno(), errors.fileno()])
        self._connection.sendall(request)
        self._answers = self._connection.makefile("rb")
        self.pid = self._answer()
        self.returncode: int | None = None

    def _answer(self) -> int:
        line = self._answers.readline()
        if not line:
            raise RuntimeError("the fork server has ended:\n" + Path(os.environ[ADDRESS]).with_name("log").read_text())
        return int(line)

    def fileno(self) -> int:
        """What becomes readable when the process ends."""
        return self._connection.fileno()

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, as ``Popen.wait``: ``-N`` for signal N; raise ``subprocess.TimeoutExpired``."""
        if self.returncode is None:
            if not select.select([self], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            self.returncode = self._answer()
            self.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process is known to have ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def close(self) -> None:
        """End the connection, and with it the process."""
        self._answers.close()
        self._connection.close()


def run(arguments: Sequence[str], cwd: Path, environments: Sequence[Mapping[str, str]], timeout: float):
    """Run a script once in each environment, all at the same time, into the same standard output and error.

    As under a launcher, the first process that fails ends the others, and its exit code is the whole run's.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        forks = [Fork(arguments, cwd, environment, output, errors) for environment in environments]
        try:
            code = _wait_for_all(forks, arguments, time.monotonic() + timeout)
        finally:
            for fork in forks:
                fork.close()
        texts = [_content(file) for file in (output, errors)]
    return subprocess.CompletedProcess(list(arguments), code, *texts)


def _wait_for_all(forks: list[Fork], arguments: Sequence[str], deadline: float) -> int:
    running, code = set(forks), 0
    while running:
        ready, _, _ = select.select(list(running), [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise subprocess.TimeoutExpired(list(arguments), 0)
        running -= set(ready)
        codes = [fork.wait() for fork in ready]
        if not code and any(codes):
            code = next(filter(None, codes))
            for fork in running:
                fork.send_signal(signal.SIGTERM)
            deadline = min(deadline, time.monotonic() + 30)
    return code


def _content(file: IO) -> str:
    file.seek(0)
    return file.read().decode().replace("\r\n", "\n")


def pytest_configure(config) -> None:
    """Start the server, in the process that the workers are started by."""
    if not hasattr(config, "workerinput"):
        config.fork_server = _start()


def pytest_unconfigure(config) -> None:
    """End the server, and with it all that runs there still."""
    if server := getattr(config, "fork_server", None):
        server.terminate()
        server.wait()
        shutil.rmtree(Path(os.environ.pop(ADDRESS)).parent)


def _start() -> subprocess.Popen:
    address = Path(tempfile.mkdtemp(prefix="fork-server-")) / "socket"
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    with open(address.with_name("log"), "w") as log:
        server = subprocess.Popen(
            [sys.executable, __file__, address],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | variables, start_new_session=True,
            pass_fds=(), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
    while not address.exists():
        assert server.poll() is None, address.with_name("log").read_text()
        time.sleep(0.01)
    os.environ[ADDRESS] = str(address)
    return server


class Server:
    """The process that forks."""

    def __init__(self, address: str):
        self.parent = os.getppid()
        self.listener = socket.socket(socket.AF_UNIX)
        self.selector = selectors.DefaultSelector()
        self.clients: dict[int, socket.socket] = {}
        self.has_imported = self.has_gpu = False
        self.woken, self.wakes = socket.socketpair()
        for end in (self.woken, self.wakes):
            end.setblocking(False)
        signal.set_wakeup_fd(self.wakes.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self.end())
        self.selector.register(self.woken, selectors.EVENT_READ)
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.listener.bind(f"{address}.new")
        self.listener.listen(64)
        os.rename(f"{address}.new", address)

    def serve(self) -> dict:
        """Answer requests for ever; return in each fork, with the request that it is for."""
        while True:
            if os.getppid() != self.parent:  # pytest was killed
                self.end()
            for key, _ in self.selector.select(SECONDS_BETWEEN_LOOKS):
                if key.fileobj is self.listener:
                    if request := self.fork(self.listener.accept()[0]):
                        return request
                elif key.fileobj is self.woken:
                    self.woken.recv(4096)
                    self.collect()
                elif key.data in self.clients:  # nothing comes from a client but the end of its connection
                    os.kill(key.data, signal.SIGKILL)
                    self.selector.unregister(key.fileobj)

    def fork(self, client: socket.socket) -> dict | None:
        """Start a process; return None in the server."""
        head, files, _, _ = socket.recv_fds(client, 8, 2)
        with client.makefile("rb") as stream:
            request = json.loads(stream.read(*struct.unpack("<Q", head)))
        self.import_once()
        pid = os.fork()
        if pid:
            self.clients[pid] = client
            self.selector.register(client, selectors.EVENT_READ, pid)
            client.sendall(f"{pid}\n".encode())
            for file in files:
                os.close(file)
            return None
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        for number, file in enumerate(files, start=1):
            os.dup2(file, number)
            os.close(file)
        for connection in (self.listener, self.selector, self.woken, self.wakes, client, *self.clients.values()):
            connection.close()
        return request | {"has_gpu": self.has_gpu}

    def collect(self) -> None:
        """Tell the clients of processes that have ended."""
        while self.clients:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            client = self.clients.pop(pid)
            if client in self.selector.get_map():
                self.selector.unregister(client)
                client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            client.close()

    def import_once(self) -> None:
        """Import what the programs import, those modules included that DeepSpeed loads while it builds an engine."""
        if self.has_imported:
            return
        import torch
        from transformers import AutoModelForMaskedLM, MPNetForMaskedLM  # noqa: F401 (they are loaded when they are named)

        from mpnet_ds.deepspeed_workarounds import leave_out_compiler

        leave_out_compiler()
        for name in MODULES:
            importlib.import_module(name)
        self.has_imported, self.has_gpu = True, torch.cuda.is_available()
        assert len(os.listdir("/proc/self/task")) == 1, "a thread would not survive a fork"
        gc.collect()
        gc.freeze()  # pages that a collection writes to would be copied in each fork

    def end(self) -> None:
        """Leave, and all processes with it."""
        for pid in self.clients:
            os.kill(pid, signal.SIGKILL)
        os._exit(0)


def execute(request: dict) -> None:
    """Run a script as its interpreter would, and leave."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    if encoding := os.environ.get("PYTHONIOENCODING"):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(encoding=encoding.partition(":")[0], errors="strict")
    script, *arguments = request["arguments"]
    if request["has_gpu"]:
        os.execv(sys.executable, [sys.executable, script, *arguments])
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    module = types.ModuleType("__main__")
    module.__file__ = script
    sys.modules["__main__"] = module
    code = 0
    try:
        exec(compile(Path(script).read_bytes(), script, "exec"), vars(module))
    except SystemExit as left:
        code = left.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else bool(code))  # taking all modules apart would write to every page of theirs


if __name__ == "__main__":
    execute(Server(sys.argv[1]).serve())
