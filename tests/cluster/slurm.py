"""A real SLURM on this machine, or on the hosts of a cluster (hosts.py), with a munge of its own, in a temporary folder.

    munged (own key, socket) ◄── slurmctld (own state, port) ◄──► slurmd of each node (own spool, port) ──► jobs
                             ◄── sbatch, squeue, scontrol: Slurm.run(…)

Everything is named by files in the folder (``SLURM_CONF``, ``AuthInfo``), so a SLURM or munge that the machine has is not
touched, and several of these can run at once. All daemons stay in the foreground as children, and ``stop`` ends them and
whatever their jobs have left. slurmctld and the commands run on the first node.

SLURM checks time limits each 30 seconds, and sends a warning that is due before the next check: 0 to 30 s too early.
"""

import re
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.cluster.hosts import Host
from tests.runs import ROOT, environment, free_port

SECONDS_TO_START = 60

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={nodes[0].name}({nodes[0].address})
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={credential_seconds}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
JobRequeue=1
KillWait=30
SchedulerParameters=sched_interval=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
{lines}
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
CREDENTIAL_SECONDS = 5
"""A requeued job waits until its credential has expired, by default two minutes."""


@dataclass(frozen=True)
class Node:
    """Where daemons and commands run: this machine, or a host of a cluster."""

    name: str
    address: str
    popen: Callable[..., subprocess.Popen]
    """Arguments: the words of a command, and options of ``subprocess.Popen``."""


def this_machine() -> Node:
    def popen(*command: str, **options) -> subprocess.Popen:
        return subprocess.Popen(command, text=True, start_new_session=True, **options)

    return Node(socket.gethostname().split(".")[0], "127.0.0.1", popen)


LONGEST_SOCKET = 107
"""Characters in the path of a Unix socket, of which slurmstepd makes one for each step; beyond it just ends."""


class Slurm:
    """``with Slurm(folder) as slurm: slurm.run("sbatch", …)``; raises ``AssertionError`` where it does not come up.

    Without ``hosts`` it has one node, this machine. Each node has two processors.
    """

    def __init__(self, folder: Path, hosts: Sequence[Host] = ()):
        self.folder = folder
        self.nodes = [Node(host.name, host.address, host.popen) for host in hosts] or [this_machine()]
        self._daemons: list[subprocess.Popen] = []
        self._mark = secrets.token_hex(8)  # in the environment of everything below
        self.environment = environment() | {
            "PATH": f"{environment()['PATH']}:/usr/sbin:/sbin",  # where Debian has the daemons
            "DS_ACCELERATOR": "cpu",
            "SLURM_CONF": str(folder / "slurm.conf"),
            "MPNET_DS_TEST_SLURM": self._mark,
        }

    def __enter__(self) -> "Slurm":
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info) -> None:
        self.stop()

    def run(self, *command) -> str:
        """What a command of SLURM prints; ``AssertionError`` where it fails."""
        words = [str(word) for word in command]
        code, out, err = self._call(*words)
        assert code == 0, f"{' '.join(words)}: {out}{err}\n{self.logs()}"
        return out

    def job(self, number: str) -> dict[str, str]:
        """What SLURM tells of a job, also of one that has just ended: ``JobState``, ``Restarts``, ``ExitCode`` …"""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", number)))

    def wait_until(self, holds: Callable[[], object], seconds: float, what: str) -> None:
        """``AssertionError`` with the logs unless it holds in time."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}\n{self.logs()}"
            time.sleep(0.5)

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in logs)

    def _start(self) -> None:
        longest = max(len(f"{self.folder}/spool-{node.name}/{node.name}_99.4294967291") for node in self.nodes)
        assert longest <= LONGEST_SOCKET, f"{self.folder} is too long: SLURM's sockets there would have {longest} characters"
        self.folder.mkdir(exist_ok=True)
        self.folder.chmod(0o755)  # munge wants its socket to be reachable for everybody
        for name in ("state", *(f"spool-{node.name}" for node in self.nodes)):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                folder=self.folder,
                nodes=self.nodes,
                lines="\n".join(f"NodeName={node.name} NodeAddr={node.address} CPUs=2" for node in self.nodes),
                controller_port=free_port(),
                node_port=free_port(),
                credential_seconds=CREDENTIAL_SECONDS,
            )
        )
        first, files = self.nodes[0], [f"--{name}-file={self.folder}/munged.{name}" for name in ("log", "pid", "seed")]
        # --force: the folder above may be writable for everybody, as /tmp is.
        self._spawn(first, "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self._socket}", *files)
        self.wait_until(self._socket.exists, SECONDS_TO_START, "munged answers")
        self._spawn(first, "slurmctld", "-D", "-i")
        for node in self.nodes:
            self._spawn(node, "slurmd", "-D")
        self.wait_until(self._is_up, SECONDS_TO_START, "all nodes are idle")
        self.wait_until(self._runs_steps, SECONDS_TO_START, "all nodes run what they are given")  # the first may fail
        self.wait_until(self._is_up, SECONDS_TO_START, "all nodes are idle again")

    @property
    def _socket(self) -> Path:
        return self.folder / "munge.socket"

    def _spawn(self, node: Node, *command: str) -> None:
        with open(self.folder / f"{command[0]}-{node.name}.log", "w") as log:
            self._daemons.append(
                node.popen(*command, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            )

    def _call(self, *command: str) -> tuple[int, str, str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        process = self.nodes[0].popen(*command, env=self.environment, cwd=ROOT, **pipes)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def _is_up(self) -> bool:
        dead = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
        assert not dead, f"ended at once: {dead}\n{self.logs()}"
        return self._call("sinfo", "--noheader", "--Node", "--format=%t")[1].split() == ["idle"] * len(self.nodes)

    def _runs_steps(self) -> bool:
        return self._call("srun", f"--nodes={len(self.nodes)}", "--ntasks-per-node=1", "true")[0] == 0

    def stop(self) -> None:
        """Ends the daemons, newest first, and every process that descends from them."""
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in self._left():
            with suppress(psutil.Error):
                process.kill()

    def _left(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("MPNET_DS_TEST_SLURM") == self._mark:
                    found.append(process)
        return found
