"""One connection to each host: an agent (agent.py) that ssh starts there as DeepSpeed's pdsh launcher starts a rank.

The same ``ssh`` from PATH, interpreter, folder and variables are used, and ssh never asks anything (``BatchMode``).
Requests and answers are lines of JSON on the agent's standard input and output; an answer begins with ``MARK``, so that
whatever a login shell prints there is passed over. The agent leaves as soon as its standard input ends, and so it does
when this process ends, however that happens.
"""

import asyncio
import contextlib
import json
import shlex
from asyncio.subprocess import PIPE
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from mpnet_ds.cluster.agent import MARK
from mpnet_ds.cluster.hostfile import Host
from mpnet_ds.errors import UserError

SECONDS_TO_CONNECT = 10
SECONDS_TO_START = 60  # until the agent speaks: ssh, a shell, Python from a slow disk
SECONDS_TO_LEAVE = 5
LONGEST_LINE = 1 << 27  # bytes of an answer
NO_FOLDER, NO_PYTHON = 91, 92  # exit codes of the command below


class HostLost(Exception):
    """A host does not answer (any more); the text says why and what to do, and names the host."""


@dataclass(frozen=True)
class Route:
    """How agents are started, on every host alike."""

    python: str
    """Path of the interpreter."""
    folder: str
    """Working directory."""
    variables: dict[str, str] = field(default_factory=dict)
    ssh_port: int | None = None

    def command(self, host: str) -> list[str]:
        """What starts the agent on a host."""
        exports = "".join(f"export {name}={shlex.quote(value)}; " for name, value in self.variables.items())
        python = shlex.quote(self.python)
        script = (
            f"{exports}cd {shlex.quote(self.folder)} || exit {NO_FOLDER}; "
            f"test -x {python} || exit {NO_PYTHON}; exec {python} -u -m mpnet_ds.cluster.agent"
        )
        options = {"BatchMode": "yes", "ConnectTimeout": SECONDS_TO_CONNECT, "ServerAliveInterval": 5}
        port = ["-p", str(self.ssh_port)] if self.ssh_port else []
        return ["ssh", "-T", *(f"-o{name}={value}" for name, value in options.items()), *port, host, script]


class RemoteAgent:
    """The agent on one host.

    Every ``ask`` may raise ``HostLost``, after which the host is not to be asked again, or ``UserError``, whose findings
    are the answer.
    """

    def __init__(self, host: Host, route: Route):
        self.host, self._route = host, route
        self._process: asyncio.subprocess.Process | None = None
        self._errors: deque[str] = deque(maxlen=20)
        self._reading_errors: asyncio.Task | None = None
        self._number = 0

    @property
    def name(self) -> str:
        """The host's, as the hostfile has it."""
        return self.host.name

    async def start(self) -> None:
        """Connects. ``HostLost`` if there is no agent in the end."""
        # A session of its own: Ctrl-C is for this program, which then closes the connections.
        streams = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, "limit": LONGEST_LINE, "start_new_session": True}
        try:
            self._process = await asyncio.create_subprocess_exec(*self._route.command(self.name), **streams)
        except FileNotFoundError:
            raise HostLost(f"{self.name}: there is no ssh on this machine: install it (openssh-client).") from None
        self._reading_errors = asyncio.create_task(self._keep_errors())
        await self._answer(0, SECONDS_TO_START, "start")

    async def ask(self, what: str, within: float, /, **arguments) -> Any:
        """The agent's answer to one request, for which it has so many seconds."""
        self._number += 1
        line = json.dumps({"number": self._number, "what": what, "arguments": arguments})
        try:
            self._process.stdin.write(line.encode() + b"\n")
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise HostLost(await self._explain_end(what)) from None
        return await self._answer(self._number, within, what)

    async def close(self) -> None:
        """Lets the agent leave, and ends ssh if it does not."""
        if self._process is None:
            return
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), SECONDS_TO_LEAVE)
        except asyncio.TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await asyncio.gather(self._reading_errors, return_exceptions=True)

    async def _answer(self, number: int, seconds: float, what: str) -> Any:
        try:
            return await asyncio.wait_for(self._read_answer(number, what), seconds)
        except asyncio.TimeoutError:
            text = f"{self.name}: no answer within {seconds:.0f} s (request '{what}')"
            raise HostLost(f"{text}: look whether the host hangs, or a file system that it mounts.") from None

    async def _read_answer(self, number: int, what: str) -> Any:
        while line := await self._process.stdout.readline():
            if not line.startswith(MARK.encode()):
                continue
            answer = json.loads(line[len(MARK) :])
            if answer["number"] != number:  # of a request that was given up
                continue
            if "findings" in answer:
                raise UserError(*(f"{self.name}: {text}" for text in answer["findings"]))
            if "fault" in answer:
                raise HostLost(f"{self.name}: the check itself failed there (request '{what}'): {answer['fault']}")
            return answer["result"]
        raise HostLost(await self._explain_end(what))

    async def _keep_errors(self) -> None:
        while line := await self._process.stderr.readline():
            self._errors.append(line.decode(errors="replace").strip())

    async def _explain_end(self, what: str) -> str:
        code = await self._process.wait()
        await self._reading_errors
        if what == "start":
            return explain(self.name, code, list(self._errors), self._route)
        last = next((line for line in reversed(self._errors) if line), f"exit code {code}")
        return f"{self.name}: the connection ended (request '{what}'): {last}"


def explain(host: str, code: int, errors: list[str], route: Route) -> str:
    """Why ssh did not lead to an agent, and the cure, from its exit code and what was printed as errors."""
    text = "\n".join(errors)
    if code == NO_FOLDER:
        cure = "mount the shared file system there, or copy the project to the same place"
        return f"{host}: no folder {route.folder}, in which the run would start: {cure}."
    if code == NO_PYTHON:
        cure = "install the environment at the same path on every host"
        return f"{host}: no Python interpreter {route.python}, which deepspeed would start: {cure}."
    missing = next((line for line in errors if "No module named" in line), None)
    if missing:
        module = missing.partition("No module named")[2].strip(" '\"")
        return f"{host}: {route.python} has no module {module}: install the package there, or start where it lies."
    for signs, what, cure in _SSH_ERRORS:
        if any(sign in text for sign in signs):
            return f"{host}: {what}: {cure.format(host=host, port=f'-p {route.ssh_port} ' if route.ssh_port else '')}."
    last = next((line for line in reversed(errors) if line), "nothing was printed")
    what = f"ssh failed with exit code {code}" if code == 255 else f"the check ended with exit code {code} as it began"
    return f"{host}: {what}: {last}"


_SSH_ERRORS = (
    (
        ("Could not resolve hostname",),
        "this name leads to no address",
        "correct the hostfile, or add the host to DNS or /etc/hosts",
    ),
    (
        ("REMOTE HOST IDENTIFICATION HAS CHANGED",),
        "its ssh key is another than before",
        "if the host was set up anew, forget the old key with ssh-keygen -R {host}",
    ),
    (
        ("Host key verification failed", "key is known for"),
        "its ssh key is not known here",
        "log in once by hand, ssh {port}{host}, and confirm it",
    ),
    (
        ("Permission denied", "Too many authentication failures"),
        "ssh does not let this user in without a password",
        "put your key there, ssh-copy-id {port}{host}",
    ),
    (
        ("Connection refused",),
        "the host is up, but refuses ssh",
        "start sshd there, or name its port with --ssh_port",
    ),
    (
        ("timed out", "No route to host", "Network is unreachable", "Host is down"),
        "not reachable by ssh (no answer)",
        "look whether it is up, on this network, and not behind a firewall",
    ),
    (
        ("kex_exchange_identification", "Connection closed by", "Connection reset by"),
        "its ssh server closed the connection at once",
        "look into its log (journalctl -u ssh); MaxStartups in sshd_config may be too low",
    ),
)
