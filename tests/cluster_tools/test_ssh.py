"""Calls on hosts: each way in which ssh fails is told with what to do, and nothing outlives a call."""

import asyncio
import inspect
import json
import signal
import subprocess
import sys
import time

import psutil
import pytest

from mpnet_ds.cluster import links, on_host, probe
from mpnet_ds.cluster.ssh import START, Launch, RemoteCall
from mpnet_ds.errors import UserError
from tests.cluster_tools.conftest import LAUNCH, call_all
from tests.runs import ROOT

LISTEN = {"name": "n1", "token": "0" * 32, "to": "127.0.0.1", "master_port": None}


def call(function=probe.import_libraries, launch=LAUNCH, seconds=10, **arguments):
    return call_all(function, arguments or {"names": []}, launch=launch, seconds=seconds)[0]


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        ("ssh: Could not resolve hostname n1: Name or service not known", "n1: this name has no address: .*hosts"),
        ("ssh: connect to host n1 port 22: Connection timed out", "n1: not reachable by ssh"),
        ("ssh: connect to host n1 port 22: No route to host", "n1: not reachable by ssh"),
        ("ssh: connect to host n1 port 22: Connection refused", "n1: the host is up, but refuses ssh: .*--ssh_port"),
        ("root@n1: Permission denied (publickey).", "n1: ssh does not let .* without a password: .*ssh-copy-id n1"),
        ("Host key verification failed.", "n1: its ssh key is not known here: log in once, ssh n1"),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            "n1: its ssh key has changed: .*ssh-keygen -R n1",
        ),
        ("kex_exchange_identification: Connection closed by remote host", "n1: its ssh server closed the connection"),
        ("something new", "n1: ssh failed with exit code 255: something new"),
        ("", "n1: ssh failed with exit code 255"),
    ],
)
def test_failures_of_ssh_are_told_with_their_cure(fake_ssh, printed, message):
    fake_ssh("n1", f'printf "%s\\n" "{printed}" >&2; exit 255')
    with pytest.raises(UserError, match=message):
        call()


def test_ssh_never_asks_and_takes_the_port(fake_ssh, tmp_path):
    fake_ssh("n1", "exit 255")
    with pytest.raises(UserError):
        call(launch=Launch(sys.executable, "/", {}, ssh_port=2222))
    options = (tmp_path / "ssh" / "options").read_text().split("\n")
    assert "-oBatchMode=yes" in options
    assert options[options.index("-p") + 1] == "2222"


def test_what_is_missing_on_a_host_is_named(fake_ssh, tmp_path):
    with pytest.raises(UserError, match="n1: there is no folder /nowhere, in which the run would start"):
        call(launch=Launch(sys.executable, "/nowhere", {}))
    with pytest.raises(UserError, match="n1: there is no Python interpreter /nowhere/python"):
        call(launch=Launch("/nowhere/python", str(tmp_path), {}))


def test_ssh_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no ssh on this machine"):
        call()


def test_what_a_login_shell_prints_is_passed_over(fake_ssh):
    fake_ssh("n1", 'echo "Welcome to n1"; echo "{}"')
    assert abs(call()["clock"]) < 5


def test_a_host_without_the_package_says_so_and_tells_what_else_is_known(fake_ssh, tmp_path):
    fake_ssh("n1", f"""set -- n1 "$(echo "$2" | sed "s|{sys.executable} -u|{sys.executable} -I -S -u|")" """)
    launch = Launch(sys.executable, str(tmp_path), {})
    facts = call(probe.look, launch, data=["d"], output_dir="runs", verify_data=False, libraries=["json", "mpnet_ds"])
    assert facts["disk"]["folder"] == str(tmp_path)
    assert facts["files"] == {}
    (missing,) = facts["problems"]
    assert missing.startswith("cannot import mpnet_ds: ModuleNotFoundError: No module named 'mpnet_ds'")


def test_a_user_error_there_is_one_here_with_the_host(fake_ssh):
    with pytest.raises(UserError, match=r"n1: .* does not know the host nowhere\.invalid"):
        call(links.listen, **LISTEN | {"to": "nowhere.invalid"})


def test_a_fault_of_the_check_names_the_host(fake_ssh):
    with pytest.raises(UserError, match=r"n1: the check itself failed there \(import_libraries\): TypeError: .*'dance'"):
        call(dance=1)


@pytest.fixture
def library(tmp_path):
    """A function (code): how processes start that find a library of this name and code."""

    def write(name, code):
        (tmp_path / f"{name}.py").write_text(code)
        return Launch(sys.executable, str(tmp_path), {"PYTHONPATH": str(tmp_path)})

    return write


def test_a_host_that_stops_answering_is_lost(fake_ssh, library):
    launch = library("endless", "import time; time.sleep(600)")
    with pytest.raises(UserError, match=r"n1: no answer within 1 s \(mpnet_ds\.cluster\.probe\.import_libraries\)"):
        call(launch=launch, seconds=1, names=["endless"])


def test_a_connection_that_ends_is_told_with_the_last_that_was_said(fake_ssh, library):
    launch = library("crash", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(UserError, match=r"n1: the connection ended \(.*import_libraries\): importing crash"):
        call(launch=launch, names=["json", "crash"])


def test_nothing_outlives_a_call(fake_ssh):
    """A host listens as long as its call is open, and no longer."""

    async def run():
        remote = RemoteCall("n1", LAUNCH, links.listen, 10, LISTEN)
        try:
            found = await remote.result()
            peers = [("n1", found["address"], found["port"])]
            assert await asyncio.to_thread(links.connect, peers, LISTEN["token"], 5) == {"outcomes": {"n1": links.OK}}
        finally:
            await remote.close()
        assert links.connect(peers, LISTEN["token"], 5) == {"outcomes": {"n1": links.REFUSED}}
        return remote._process.returncode

    assert asyncio.run(run()) == 0  # it ended by itself


def test_what_runs_on_a_host_ends_when_this_side_is_killed(fake_ssh, library, tmp_path):
    library("endless", f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(f'{{os.getpid()}} '); time.sleep(600)")
    code = f"""
from tests.cluster_tools.conftest import Launch, call_all
from mpnet_ds.cluster import probe
launch = Launch({sys.executable!r}, {str(tmp_path)!r}, {{"PYTHONPATH": {str(tmp_path)!r}}})
call_all(probe.import_libraries, {{"names": ["endless"]}}, launch=launch)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as ours:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().endswith(" "):
            assert ours.poll() is None
            time.sleep(0.02)
        there = psutil.Process(int((tmp_path / "pid").read_text()))
        ours.kill()
    _, alive = psutil.wait_procs([there], timeout=10)
    assert not alive


def test_what_nobody_ends_ends_after_its_time():
    """The connection is broken, and neither side has noticed."""
    job = {"source": "import time", "function": "time", "arguments": {}, "seconds": 1}
    with subprocess.Popen([sys.executable, "-c", START], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        process.stdin.write("".join(json.dumps(line) + "\n" for line in (inspect.getsource(on_host), job)).encode())
        process.stdin.flush()
        assert process.wait(20) == -signal.SIGALRM
