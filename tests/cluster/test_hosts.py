"""The hosts that the other tests stand on are apart from each other and from the machine, and leave nothing behind."""

import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.cluster.hosts import Cluster, Host, remove_leftovers
from tests.runs import ROOT

CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2)"


def connect(host: Host, address: str, port: int = 22) -> str:
    """What one who connects from a host is told: nothing, or the error."""
    return host.run(sys.executable, "-c", CONNECT, address, port).stderr


def reaches(one: Host, other: Host) -> bool:
    """Whether a connection comes about; if not, it must be because nobody answers, TCP or ARP."""
    error = connect(one, other.name)
    assert not error or "TimeoutError" in error or "No route to host" in error, error
    return not error


def until(condition: Callable[[], bool], timeout: float = 30) -> bool:
    """Whether it became true within so many seconds."""
    deadline = time.monotonic() + timeout
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds


def test_hosts_have_names_and_addresses_and_reach_each_other(cluster):
    for host in cluster.hosts:
        done = host.run("pdsh", "-R", "ssh", "-w", "node1,node2,node3", "echo `hostname` `hostname -I`")
        expected = [f"node{i}: node{i} 10.77.0.{10 + i}" for i in (1, 2, 3)]
        assert sorted(line.strip() for line in done.stdout.splitlines()) == expected, done.stderr
    assert socket.gethostname() not in [host.name for host in cluster.hosts]


def test_nothing_of_the_users_ssh_is_read_or_written(cluster):
    own = Path.home() / ".ssh"
    before = sorted(own.iterdir()) if own.exists() else None
    settings = dict(line.split(" ", 1) for line in cluster.hosts[0].run("ssh", "-G", "node2").stdout.splitlines())
    assert cluster.hosts[0].run("ssh", "node2", "ssh", "node3", "true").returncode == 0
    files = [settings[name] for name in ("identityfile", "userknownhostsfile")]
    assert [Path(name).parent.parent for name in files] == [cluster.folder] * 2
    assert (sorted(own.iterdir()) if own.exists() else None) == before


def test_hosts_and_the_machine_do_not_see_each_other(cluster):
    with socket.create_server(("0.0.0.0", 0)) as listener:
        port = listener.getsockname()[1]
        assert "Connection refused" in connect(cluster.hosts[0], "127.0.0.1", port)
    assert not {"node1", "switch"} & psutil.net_if_addrs().keys()
    assert len(cluster.hosts[0].run("ps", "-e", "-o", "comm=").stdout.split()) <= 4
    assert "node2" not in Path("/etc/hosts").read_text()


def test_two_clusters_are_apart(cluster):
    with Cluster(2) as other:
        waiting = other.hosts[1].popen("sleep", 1000)
        assert until(lambda: [process.name() for process in other.hosts[1].processes()] == ["sleep"])
        assert cluster.hosts[1].processes() == other.hosts[0].processes() == []
        cluster.hosts[1].cut()
        assert reaches(other.hosts[0], other.hosts[1])
        assert not reaches(cluster.hosts[0], cluster.hosts[1])
    assert waiting.wait(10) == -signal.SIGKILL


def answer(echo: subprocess.Popen, line: str, timeout: float) -> str | None:
    """What comes back for a line, or nothing within so many seconds."""
    echo.stdin.write(line + "\n")
    echo.stdin.flush()
    return echo.stdout.readline().strip() if select.select([echo.stdout], [], [], timeout)[0] else None


def test_a_cut_connection_hangs_and_goes_on_when_mended(cluster):
    first, second, third = cluster.hosts
    with first.popen("ssh", "node2", "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as echo:
        assert answer(echo, "before", 10) == "before"
        second.cut()
        assert answer(echo, "meanwhile", 1.5) is None
        assert echo.poll() is None
        assert not reaches(third, second)
        assert reaches(third, first)
        second.mend()
        assert select.select([echo.stdout], [], [], 20)[0]
        assert echo.stdout.readline() == "meanwhile\n"


def test_a_broken_link_parts_two_hosts_and_no_others(cluster):
    first, _, third = cluster.hosts
    cluster.break_link(first, third)
    pairs = itertools.permutations(cluster.hosts, 2)
    assert {(a.name, b.name) for a, b in pairs if not reaches(a, b)} == {("node1", "node3"), ("node3", "node1")}
    cluster.mend_link(first, third)
    assert reaches(third, first)


def test_a_limited_link_is_slow_both_ways(cluster):
    first, second, _ = cluster.hosts

    def seconds(command: str) -> float:
        begin = time.monotonic()
        assert first.run("sh", "-c", command).stdout.strip() == "2000000"
        return time.monotonic() - begin

    fetch, bring = "ssh node2 'head -c 2000000 /dev/zero' | wc -c", "head -c 2000000 /dev/zero | ssh node2 wc -c"
    second.limit("8mbit")  # 2 s, but for what a burst lets pass
    assert seconds(fetch) > 1.8
    assert seconds(bring) > 1.8


def test_killing_ends_all_programs_of_one_host(cluster):
    first, second, _ = cluster.hosts
    remote = first.popen("ssh", "node2", "setsid sleep 1000 & sleep 1000; true")
    local = first.popen("sleep", 1000)
    assert until(lambda: len(second.processes("sleep 1000")) >= 2)
    second.kill()
    assert remote.wait(10) != 0
    assert second.processes() == []
    assert local.poll() is None
    assert first.run("ssh", "node2", "true").returncode == 0


def test_signals_reach_the_program_itself_and_its_exit_code_comes_back(cluster):
    script = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); print('on', flush=True); time.sleep(60)"
    with cluster.hosts[0].popen(sys.executable, "-c", script, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "on\n"
        process.terminate()
        assert process.wait(10) == 75


def test_a_command_that_takes_too_long_is_killed_with_all_that_it_started(cluster):
    with pytest.raises(AssertionError, match=r"took more than 0.5 s on node1"):
        cluster.hosts[0].run("sh", "-c", "sleep 1000 & sleep 1000", timeout=0.5)
    assert cluster.hosts[0].processes() == []


def test_disks_and_files_of_one_host(cluster, tmp_path):
    first, second, third = cluster.hosts
    path = tmp_path / "scratch"
    disks = [host.disk(path) for host in (first, second)]
    for host in cluster.hosts:
        host.run("sh", "-c", f"hostname >> {path}/who")
    assert [(disk / "who").read_text() for disk in disks] == ["node1\n", "node2\n"]
    assert (path / "who").read_text() == "node3\n"
    assert first.run("ssh", "node2", f"cat {path}/who").stdout == "node2\n"
    second.unmount(path)
    assert second.run("cat", path / "who").stdout == "node3\n"
    third.bind(disks[0] / "who", path / "who")
    assert [host.run("cat", path / "who").stdout for host in (second, third)] == ["node3\n", "node1\n"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_when_the_body_raises(error):
    running = []
    with pytest.raises(error), Cluster(2) as cluster:  # noqa: PT012
        for host in cluster.hosts:
            host.popen("setsid", "sleep", 1000)
            assert until(lambda host=host: host.processes("sleep"))
        running = [process for host in cluster.hosts for process in host.namespace.processes()]
        raise error
    assert len(running) == 4  # an sshd and a sleep each
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in running)
    assert not cluster.folder.exists()
    assert cluster.folder.name not in Path("/proc/self/mountinfo").read_text()
    assert not {"node1", "switch"} & psutil.net_if_addrs().keys()


OWNER = """
import time
from tests.cluster.hosts import Cluster
with Cluster(2) as cluster:
    print(cluster.folder, *(host.namespace.pid for host in cluster.hosts), flush=True)
    time.sleep(1000)
"""


def test_a_cluster_ends_with_its_process_and_the_next_removes_its_folder(cluster):
    with subprocess.Popen([sys.executable, "-c", OWNER], cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        folder, *pids = owner.stdout.readline().split()
        remove_leftovers()
        kept = Path(folder).exists()
        owner.kill()
    assert kept
    assert Path(folder).name.startswith(f"mpnet-cluster-{owner.pid}-")
    assert until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
    remove_leftovers()
    assert not Path(folder).exists()
    assert cluster.folder.exists()
