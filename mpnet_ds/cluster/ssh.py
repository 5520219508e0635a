"""Calls functions of the check on hosts, over the ssh, interpreter, folder and variables that DeepSpeed's launcher takes."""

import asyncio
import inspect
import json
import re
import shlex
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

from mpnet_ds.cluster import on_host
from mpnet_ds.errors import UserError

SECONDS_TO_START = 60  # ssh, a login shell, Python from a slow disk
SECONDS_TO_END = 5
LONGEST_LINE = 1 << 27  # bytes of an answer
NO_FOLDER, NO_PYTHON = 91, 92  # exit codes of the command below
OPTIONS = ("-T", "-oBatchMode=yes", "-oConnectTimeout=10", "-oServerAliveInterval=5")  # BatchMode: ssh asks nothing
START = "import json, sys; exec(json.loads(sys.stdin.readline()))"


class Launch(NamedTuple):
    """How a process of a run is started on every host: interpreter and working directory, environment, port of ssh."""

    python: str
    folder: str
    variables: Mapping[str, str]
    ssh_port: int | None = None

    def command(self, host: str, title: str) -> list[str]:
        """The command that starts on_host.py; ``title`` is seen in the host's list of processes."""
        exports = "".join(f"export {name}={shlex.quote(value)}; " for name, value in self.variables.items())
        python = shlex.quote(self.python)
        script = (
            f"{exports}cd {shlex.quote(self.folder)} || exit {NO_FOLDER}; test -x {python} || exit {NO_PYTHON}; "
            f"exec {python} -u -c {shlex.quote(START)} {title}"
        )
        return ["ssh", *OPTIONS, *(["-p", str(self.ssh_port)] if self.ssh_port else []), host, script]


class RemoteCall:
    """One call of a function on a host; what it starts there lives until ``close``."""

    def __init__(self, host: str, launch: Launch, function: Callable[..., dict], seconds: float, arguments: Mapping):
        self.host, self._launch, self._seconds, self._process = host, launch, seconds, None
        self._title = f"{function.__module__}.{function.__name__}"
        source = inspect.getsource(sys.modules[function.__module__])
        job = {"source": source, "function": function.__name__, "arguments": arguments, "seconds": 60 + 2 * seconds}
        self._input = "".join(json.dumps(line) + "\n" for line in (inspect.getsource(on_host), job)).encode()

    async def result(self) -> dict:
        """What the function returns, and as ``clock`` how many seconds the host's clock is ahead of this one.

        Raises ``UserError`` where nothing comes of it, with the host, the reason and what to do.
        """
        # A session of its own: Ctrl-C is for this program, which then closes the connections.
        streams = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, "limit": LONGEST_LINE, "start_new_session": True}
        command = self._launch.command(self.host, self._title)
        try:
            self._process = await asyncio.create_subprocess_exec(*command, **streams)
        except FileNotFoundError:
            raise UserError(f"{self.host}: there is no ssh on this machine: install it (openssh-client).") from None
        self._errors = asyncio.create_task(self._process.stderr.read())
        self._process.stdin.write(self._input)
        first = await self._answer(SECONDS_TO_START, self._why_not_started)
        last = await self._answer(self._seconds, lambda code, errors: f"the connection ended ({self._title}): {errors[-1]}")
        if "findings" in last:
            raise UserError(*(f"{self.host}: {text}" for text in last["findings"]))
        return last["result"] | {"clock": max(first["clock"], last["clock"])}  # of the one that was less delayed

    async def close(self) -> None:
        """Ends what runs on the host."""
        if self._process:
            self._process.stdin.close()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._process.wait(), SECONDS_TO_END)
            with suppress(ProcessLookupError):
                self._process.kill()
            await asyncio.gather(self._process.wait(), self._errors)

    async def _answer(self, seconds: float, explain: Callable[[int, list[str]], str]) -> dict:
        try:
            line = await asyncio.wait_for(self._next_line(), seconds)
        except asyncio.TimeoutError:
            text = f"{self.host}: no answer within {seconds:.0f} s ({self._title})"
            raise UserError(f"{text}: find out whether the host hangs, or a file system that it mounts.") from None
        if not line:
            code, errors = await self._process.wait(), (await self._errors).decode(errors="replace").strip().splitlines()
            raise UserError(f"{self.host}: {explain(code, errors or ['nothing was printed'])}")
        answer = json.loads(line.removeprefix(on_host.MARK.encode()))
        return answer | {"clock": answer["clock"] - time.time()}

    async def _next_line(self) -> bytes:
        async for line in self._process.stdout:
            if line.startswith(on_host.MARK.encode()):
                return line
        return b""

    def _why_not_started(self, code: int, errors: list[str]) -> str:
        """Why, and what to do, from ssh's exit code and what was printed as errors."""
        if code == NO_FOLDER:
            return f"there is no folder {self._launch.folder}, in which the run would start: mount or copy it there."
        if code == NO_PYTHON:
            return f"there is no Python interpreter {self._launch.python}: install the environment at that path."
        port = f"-p {self._launch.ssh_port} " if self._launch.ssh_port else ""
        for signs, cure in _SSH_ERRORS.items():
            if re.search(signs, "\n".join(errors)):
                return cure.format(host=self.host, port=port)
        return f"ssh failed with exit code {code}: {errors[-1]}"


_SSH_ERRORS = {
    "Could not resolve hostname": "this name has no address: correct the hostfile, or add the host to DNS or /etc/hosts.",
    "IDENTIFICATION HAS CHANGED": "its ssh key has changed: if it was reinstalled, forget the old one: ssh-keygen -R {host}",
    "Host key verification|key is known": "its ssh key is not known here: log in once, ssh {port}{host}, and confirm it.",
    "Permission denied|Too many auth": "ssh does not let this user in without a password: ssh-copy-id {port}{host}",
    "Connection refused": "the host is up, but refuses ssh: start sshd there, or name its port with --ssh_port.",
    "timed out|No route|unreachable|is down": "not reachable by ssh (no answer): is it up, and not behind a firewall?",
    "Connection (closed|reset) by": "its ssh server closed the connection: see journalctl -u ssh; is MaxStartups too low?",
}
