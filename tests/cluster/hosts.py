"""Clusters of two to four hosts on one machine, for tests of what happens between hosts.

    with Cluster(3) as cluster:
        first, second, third = cluster.hosts
        done = first.run("ssh", second.name, "hostname -I")     # node1 → node2 by ssh
        hostfile = cluster.hostfile({first: 2, second: 1})      # for deepspeed --hostfile
        second.cut()                                            # packets vanish; no connection is closed
        second.mend()
        cluster.break_link(first, third)                        # both still reach the second
        second.kill()                                           # SIGKILL to all that runs there
        second.disk(tmp_path / "disk")                          # this path is another disk on the second host
        second.bind(changed_file, installed_file)               # the second host sees another file there

Each host has its own network with one ``eth0`` at a switch, address and name, process ids, /dev/shm and /run, and serves
ssh at port 22; the names are in everybody's /etc/hosts, as on Debian (``hosts_file``). All other files are the machine's,
as on a shared file system: the same Python, the same data, the same output folder. Root logs in everywhere by ssh without
a password. A program that the hosts run has ``HOST_ENVIRONMENT`` and not the environment of the tests; one that is started
with ``run`` or ``popen`` has the environment of the tests and that. Two processes may have a cluster each at the same time:
all of them are apart.

Everything goes with the ``with`` block, whatever happens in it, and with the process, whatever ends it (namespaces.py). A
process that was killed leaves only a temporary folder behind, which the next cluster removes.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

from tests.cluster.namespaces import Inside, Namespace, kill
from tests.cluster.ssh import SshFiles
from tests.runs import TIMEOUT, environment

NETWORK = "10.77.0"  # each cluster has a network of its own, so that this need not differ
HOST_ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
FOLDER = "mpnet-cluster-"  # then the pid of the owner

SETUP = """
mount -t tmpfs none /dev/shm
mount -t tmpfs -o mode=755 none /run
mkdir /run/sshd /run/lock
mount --bind {hosts} /etc/hosts
mount --bind {wrapper} {ssh}
hostname {name}
ip link set lo up
"""


class Host:
    """One host of a cluster: ``name`` (node1, node2, …) and ``address``."""

    def __init__(self, name: str, address: str, namespace: Namespace, switch: Namespace, folder: Path):
        self.name, self.address = name, address
        self.namespace, self._switch, self._folder = namespace, switch, folder
        self._plug_in()

    def run(self, *command: object, timeout: float = TIMEOUT, env: Mapping[str, str] | None = None, cwd: Path | str = "."):
        """Runs a command on this host to its end, as ``tests.runs.command`` does on the machine: code, out, err.

        ``env`` is added to its environment. What takes longer than ``timeout`` seconds fails the test, and everything on
        this host is killed.
        """
        process = self.popen(
            *command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, cwd=cwd
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            out, err = process.communicate(timeout=10)
            raise AssertionError(f"{command} took more than {timeout} s on {self.name}:\n{out}\n{err}") from None
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def popen(self, *command: object, env: Mapping[str, str] | None = None, **options) -> Inside:
        """Starts a command on this host; signals sent to the process that is returned reach the command itself."""
        own = environment() | HOST_ENVIRONMENT | {"HOSTNAME": self.name} | dict(env or {})
        return self.namespace.popen(*command, env=own, text=True, **options)

    def processes(self, *words: str) -> list[psutil.Process]:
        """What runs here, but for sshd, by its ids outside; with ``words`` only where all are in the command line."""
        found = []
        for process in self.namespace.processes():
            try:
                line = " ".join(process.cmdline())
                if not process.name().startswith("sshd") and line and all(word in line for word in words):
                    found.append(process)
            except psutil.Error:  # it has just ended
                continue
        return found

    def kill(self, *words: str) -> None:
        """SIGKILL to all of ``processes(*words)`` until there are none. The other hosts see their connections closed.

        After ``cut`` they do not: that is a host that lost its power.
        """
        deadline = time.monotonic() + 10
        while running := self.processes(*words):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{running} on {self.name} do not end")
            kill(running)
            time.sleep(0.02)

    def kill_server(self) -> None:
        """From now on nobody can log in here."""
        kill(self._servers())

    def restrict_to_cores(self, cores: set[int]) -> None:
        """From now on what is started here by ssh has these processor cores only."""
        for server in self._servers():
            with suppress(psutil.NoSuchProcess):  # one of a login that has just ended
                server.cpu_affinity(sorted(cores))

    def _servers(self) -> list[psutil.Process]:
        found = []
        for process in self.namespace.processes():
            with suppress(psutil.NoSuchProcess):  # it has just ended
                if process.name().startswith("sshd"):
                    found.append(process)
        return found

    def cut(self) -> None:
        """Pulls the cable at the switch: packets from and to this host vanish, and no connection is told."""
        self._ip("link", "set", self.name, "nomaster")

    def mend(self) -> None:
        """Undoes ``cut``: connections that still wait go on."""
        self._ip("link", "set", self.name, "master", "switch")

    def limit(self, rate: str) -> None:
        """Slows this host's link down, in both directions: ``limit("100mbit")`` (as tc writes rates)."""
        shape = ["root", "tbf", "rate", rate, "burst", "64kb", "latency", "50ms"]
        self.namespace.run("tc", "qdisc", "replace", "dev", "eth0", *shape)
        self._switch.run("tc", "qdisc", "replace", "dev", self.name, *shape, only_network=True)

    def bind(self, source: Path, target: Path) -> None:
        """Lets this host see a file or folder ``source`` where the others see ``target`` (which must exist)."""
        self.namespace.run("mount", "--bind", Path(source).resolve(), Path(target).resolve())

    def disk(self, path: Path) -> Path:
        """Mounts an empty disk of this host at ``path``; returns the folder in which the test sees its files."""
        Path(path).mkdir(parents=True, exist_ok=True)
        disk = Path(tempfile.mkdtemp(prefix=f"disk-{self.name}-", dir=self._folder))
        self.bind(disk, path)
        return disk

    def unmount(self, path: Path) -> None:
        """Undoes ``bind`` or ``disk``."""
        self.namespace.run("umount", Path(path).resolve())

    def _plug_in(self) -> None:
        peer = ["peer", "name", "eth0", "netns", self.namespace.pid]
        self._ip("link", "add", self.name, "type", "veth", *peer)
        self._ip("link", "set", self.name, "master", "switch", "up")
        self.namespace.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.namespace.run("ip", "link", "set", "eth0", "up")

    def _ip(self, *words: object) -> None:
        self._switch.run("ip", *words, only_network=True)


class Cluster:
    """A context manager: ``hosts`` at one switch."""

    def __init__(self, num_hosts: int):
        self.num_hosts = num_hosts
        self.hosts: list[Host] = []

    def __enter__(self) -> "Cluster":
        remove_leftovers()
        with ExitStack() as stack:
            self.folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-"))
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self._stack.close()

    def hostfile(self, slots: Mapping[Host, int]) -> Path:
        """A new file for ``deepspeed --hostfile``: these hosts in this order."""
        handle, path = tempfile.mkstemp(prefix="hostfile-", dir=self.folder)
        with open(handle, "w") as file:
            file.writelines(f"{host.name} slots={number}\n" for host, number in slots.items())
        return Path(path)

    def break_link(self, one: Host, other: Host) -> None:
        """From now on packets between these two vanish; both still reach the other hosts."""
        for here, there in ((one, other), (other, one)):  # what is sent to this hardware address reaches nobody
            address = [there.address, "lladdr", "02:00:00:00:00:00", "dev", "eth0", "nud", "permanent"]
            here.namespace.run("ip", "neighbour", "replace", *address)

    def mend_link(self, one: Host, other: Host) -> None:
        """Undoes ``break_link``."""
        for here, there in ((one, other), (other, one)):
            here.namespace.run("ip", "neighbour", "del", there.address, "dev", "eth0")

    def _start(self, stack: ExitStack) -> None:
        addresses = {f"node{i + 1}": f"{NETWORK}.{i + 11}" for i in range(self.num_hosts)}
        ssh = SshFiles(self.folder / "ssh", addresses, HOST_ENVIRONMENT)
        switch = self._namespace(stack, "ip link add switch type bridge\nip link set switch up")
        for name, address in addresses.items():
            hosts = self.folder / f"{name}.hosts"
            hosts.write_text(hosts_file(name, addresses))
            setup = SETUP.format(hosts=hosts, wrapper=ssh.wrapper, ssh=ssh.program, name=name)
            host = Host(name, address, self._namespace(stack, setup), switch, self.folder)
            self.hosts.append(host)
            self._serve(stack, host, ssh)

    def _namespace(self, stack: ExitStack, setup: str) -> Namespace:
        namespace = Namespace(setup)
        stack.callback(namespace.close)
        return namespace

    def _serve(self, stack: ExitStack, host: Host, ssh: SshFiles) -> None:
        log = self.folder / f"{host.name}.sshd.log"
        with open(log, "w") as file:
            server = host.namespace.popen(*ssh.server(host.name), stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        stack.callback(self._reap, host, server)
        deadline = time.monotonic() + 10
        while "Server listening" not in log.read_text():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"sshd does not start on {host.name}:\n{log.read_text()}")
            time.sleep(0.01)

    def _reap(self, host: Host, server: Inside) -> None:
        host.namespace.close()  # ends the server with everything else
        server.wait()


def hosts_file(name: str, addresses: Mapping[str, str]) -> str:
    """/etc/hosts of one host, as Debian installs it: the host's own name leads to 127.0.1.1, which others cannot reach."""
    lines = [f"{'127.0.1.1' if each == name else address} {each}" for each, address in addresses.items()]
    return "\n".join(["127.0.0.1 localhost", *lines, ""])


def remove_leftovers() -> None:
    """Removes the folders of clusters whose process has ended without doing so."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        owner = folder.name.removeprefix(FOLDER).split("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
