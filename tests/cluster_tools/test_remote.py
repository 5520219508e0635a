"""Connections: each way in which ssh fails is told with its cure, and nothing outlives a connection."""

import asyncio
import os
import signal
import sys
import time

import psutil
import pytest

from mpnet_ds.cluster.hostfile import Host
from mpnet_ds.cluster.remote import HostLost, RemoteAgent, Route
from tests.runs import ROOT, free_port

ROUTE = Route(sys.executable, str(ROOT), {"PYTHONPATH": str(ROOT)})


def connect(name: str, route: Route = ROUTE, act=None):
    """Starts an agent, lets ``act`` use it, and closes the connection."""

    async def run():
        agent = RemoteAgent(Host(name, 1), route)
        try:
            await agent.start()
            return await act(agent) if act else None
        finally:
            await agent.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        ("ssh: Could not resolve hostname n1: Name or service not known", "n1: this name leads to no address: .*hosts"),
        ("ssh: connect to host n1 port 22: Connection timed out", "n1: not reachable by ssh"),
        ("ssh: connect to host n1 port 22: No route to host", "n1: not reachable by ssh"),
        ("ssh: connect to host n1 port 22: Connection refused", "n1: the host is up, but refuses ssh: .*--ssh_port"),
        ("root@n1: Permission denied (publickey).", "n1: ssh does not let .* without a password: .*ssh-copy-id n1"),
        ("Host key verification failed.", "n1: its ssh key is not known here: log in once by hand, ssh n1"),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            "n1: its ssh key is another than before: .*ssh-keygen -R n1",
        ),
        ("kex_exchange_identification: Connection closed by remote host", "n1: its ssh server closed the connection"),
        ("something new", "n1: ssh failed with exit code 255: something new"),
    ],
)
def test_failures_of_ssh_are_told_with_their_cure(fake_ssh, printed, message):
    fake_ssh("n1", f'printf "%s\\n" "{printed}" >&2; exit 255')
    with pytest.raises(HostLost, match=message):
        connect("n1")


def test_ssh_never_asks_and_takes_the_port(fake_ssh, tmp_path):
    fake_ssh("n1", "exit 255")
    with pytest.raises(HostLost):
        connect("n1", Route(sys.executable, "/", ssh_port=2222))
    options = (tmp_path / "ssh" / "options").read_text().split("\n")
    assert "-oBatchMode=yes" in options
    assert options[options.index("-p") + 1] == "2222"


def test_what_is_missing_on_a_host_is_named(fake_ssh, tmp_path):
    with pytest.raises(HostLost, match="n1: no folder /nowhere, in which the run would start"):
        connect("n1", Route(sys.executable, "/nowhere"))
    with pytest.raises(HostLost, match="n1: no Python interpreter /nowhere/python"):
        connect("n1", Route("/nowhere/python", str(tmp_path)))
    fake_ssh("n1", f'set -- n1 "cd {tmp_path}; exec {sys.executable} -I -S -m mpnet_ds.cluster.agent"')
    with pytest.raises(HostLost, match=r"n1: .* has no module mpnet_ds"):
        connect("n1")


def test_ssh_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostLost, match="there is no ssh on this machine"):
        connect("n1")


def test_what_a_login_shell_prints_is_passed_over(fake_ssh):
    fake_ssh("n1", 'echo "Welcome to n1"; echo "{}"')
    assert abs(connect("n1", act=lambda agent: agent.ask("time", 10)) - time.time()) < 5


def test_a_host_that_stops_answering_is_lost(fake_ssh):
    async def freeze(agent):
        os.kill(agent._process.pid, signal.SIGSTOP)
        try:
            await agent.ask("time", 0.5)
        finally:
            os.kill(agent._process.pid, signal.SIGCONT)

    with pytest.raises(HostLost, match=r"n1: no answer within 0 s \(request 'time'\)"):
        connect("n1", act=freeze)


def test_a_connection_that_ends_is_told(fake_ssh):
    async def kill(agent):
        os.kill(agent._process.pid, signal.SIGKILL)
        await agent.ask("time", 10)

    with pytest.raises(HostLost, match=r"n1: the connection ended \(request 'time'\)"):
        connect("n1", act=kill)


def test_a_fault_of_the_check_names_the_host(fake_ssh):
    with pytest.raises(HostLost, match=r"n1: the check itself failed there .*: KeyError: 'dance'"):
        connect("n1", act=lambda agent: agent.ask("dance", 10))


def test_nothing_outlives_a_connection(fake_ssh):
    """The agent is measuring with a rank that never comes, and has a child, when the connection is closed."""
    plan = {"first_rank": 0, "ranks_here": 1, "world_size": 2, "address": "127.0.0.1", "port": free_port()}

    async def leave_early(agent):
        request = agent.ask("measure", 120, **plan, interface="lo", backend="gloo", seconds=100)
        waiting = asyncio.create_task(request)
        family, deadline = [], time.monotonic() + 20
        while not family and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
            family = psutil.Process(agent._process.pid).children(recursive=True)
        waiting.cancel()
        return agent, [*family, psutil.Process(agent._process.pid)]

    begin = time.monotonic()
    agent, family = connect("n1", act=leave_early)
    assert len(family) == 2
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    assert agent._process.returncode == 0  # it left, and was not killed
    assert time.monotonic() - begin < 30
