"""A real SLURM of one node on this machine, with a munge of its own, in a temporary folder.

    munged (own key, socket) ◄── slurmctld (own state, port) ◄──► slurmd (own spool, port) ──► jobs
                             ◄── sbatch, squeue, scontrol: Slurm.run(…)

Everything is named by files in the folder (``SLURM_CONF``, ``AuthInfo``), so a SLURM or munge that the machine has is not
touched, and several of these can run at once. All daemons stay in the foreground as children, and ``stop`` ends them and
whatever their jobs have left.

SLURM checks time limits each 30 seconds, and sends a warning that is due before the next check: 0 to 30 s too early.
"""

import os
import re
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from tests.runs import free_port

SECONDS_TO_START = 60

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
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
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
CREDENTIAL_SECONDS = 5
"""A requeued job waits until its credential has expired, by default two minutes."""


class Slurm:
    """``with Slurm(folder) as slurm: slurm.run("sbatch", …)``; raises ``AssertionError`` where it does not come up."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._daemons: list[subprocess.Popen] = []
        self._mark = secrets.token_hex(8)  # in the environment of everything below
        self.environment = os.environ | {
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",  # where Debian has the daemons
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

    def run(self, *command, **more) -> str:
        """What a command of SLURM prints; ``AssertionError`` where it fails."""
        words = [str(word) for word in command]
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60, **more)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}\n{self.logs()}"
        return done.stdout

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
        self.folder.chmod(0o755)  # munge wants its socket to be reachable for everybody
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                folder=self.folder,
                host=socket.gethostname().split(".")[0],
                controller_port=free_port(),
                node_port=free_port(),
                credential_seconds=CREDENTIAL_SECONDS,
            )
        )
        files = [f"--{name}-file={self.folder}/munged.{name}" for name in ("log", "pid", "seed")]
        # --force: the folder above may be writable for everybody, as /tmp is.
        self._spawn("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self._socket}", *files)
        self.wait_until(self._socket.exists, SECONDS_TO_START, "munged answers")
        self._spawn("slurmctld", "-D", "-i")
        self._spawn("slurmd", "-D")
        self.wait_until(self._is_up, SECONDS_TO_START, "the node is idle")

    @property
    def _socket(self) -> Path:
        return self.folder / "munge.socket"

    def _spawn(self, *command: str) -> None:
        log = open(self.folder / f"{Path(command[0]).name}.log", "w")
        with log:
            self._daemons.append(
                subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
            )

    def _is_up(self) -> bool:
        dead = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
        assert not dead, f"ended at once: {dead}\n{self.logs()}"
        command = ["sinfo", "--noheader", "--format=%t"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout.split() == ["idle"]

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
