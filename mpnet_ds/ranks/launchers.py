"""The launchers that start ranks, and what they tell each process: its rank, the number of ranks, and where they meet.

Known launchers are ``torchrun`` and ``deepspeed`` (which set RANK and related variables), OpenMPI's ``mpirun``, MPICH's and
Intel's ``mpiexec``, and SLURM's ``srun``. A process that none of them started is alone.
"""

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import psutil

from mpnet_ds.errors import UserError

PORT = 29500
"""Port at which ranks meet by default, the same as torch's and DeepSpeed's."""
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
"""Environment variable of torchrun, which torch reads too: whether its agent's store is at MASTER_PORT."""
JOIN_TIMEOUT = 300.0
"""Seconds for which ranks wait for each other before a run."""


@dataclass(frozen=True)
class Task:
    """One of several processes that a launcher started."""

    launcher: str
    rank: int
    size: int
    variable: str
    """The environment variable that holds the rank."""


@dataclass(frozen=True)
class Placement:
    """Where this process is among the ranks."""

    launcher: str = "none"
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    """Ranks on this host."""
    address: str = "127.0.0.1"
    """Name or IP address of rank 0's host."""
    port: int = 0
    """Port on which rank 0 listens; 0, for a single rank: any that is free then."""
    has_agent_store: bool = False
    """Whether torchrun's agent listens there instead, with a store that outlives the ranks."""

    @property
    def has_other_hosts(self) -> bool:
        """Whether some ranks are on other hosts."""
        return self.local_world_size < self.world_size

    def environment(self) -> dict[str, str]:
        """Return the environment variables that torch and DeepSpeed read."""
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "LOCAL_SIZE": str(self.local_world_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
            AGENT_STORE: str(self.has_agent_store),
        }


# Launcher; variables of the rank, the number of ranks, the local rank, the number of local ranks. mpirun and mpiexec come
# first: in a SLURM job they start their own daemons with srun, and its variables, which count daemons, reach the ranks too.
_LAUNCHERS = (
    ("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("mpiexec", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
)


def find_task(environment: Mapping[str, str]) -> Task | None:
    """Return this process's task under ``mpirun``, ``mpiexec`` or ``srun``; None without them, or if it is the only one."""
    for launcher, rank, size, *_ in _LAUNCHERS:
        if rank in environment and size in environment and read_number(environment, size) > 1:
            return Task(launcher, read_number(environment, rank), read_number(environment, size), rank)
    return None


def find_placement(environment: Mapping[str, str]) -> Placement:
    """Read rank, world size and address; raise ``UserError`` if the launcher's variables do not suffice."""
    if "RANK" in environment:
        return _of_torch(environment)
    task = find_task(environment)
    if task is None:
        if read_number(environment, "SLURM_NTASKS", 1) > 1 and "SLURM_STEP_ID" not in environment:
            text = f"SLURM_NTASKS is {environment['SLURM_NTASKS']}, but this process is the only one"
            raise UserError(f"{text}: start it with srun (launch/slurm.sh), deepspeed or torchrun.")
        return Placement()
    local_rank, local_size = _place_on_host(task, environment)
    port = read_number(environment, "MASTER_PORT", _slurm_port(environment) if task.launcher == "srun" else PORT)
    has_other_hosts = local_size < task.size
    address = environment.get("MASTER_ADDR") or _address(task, environment, has_other_hosts)
    return Placement(task.launcher, task.rank, local_rank, task.size, local_size, address, port)


def _of_torch(environment: Mapping[str, str]) -> Placement:
    size = read_number(environment, "WORLD_SIZE", 1)
    usual = size if "LOCAL_RANK" in environment else 1  # a PyTorchJob's pods have one rank each and no LOCAL_RANK
    local_size = read_number(environment, "LOCAL_WORLD_SIZE", read_number(environment, "LOCAL_SIZE", usual))
    return Placement(
        "torchrun" if "TORCHELASTIC_RUN_ID" in environment else "deepspeed",
        read_number(environment, "RANK"),
        read_number(environment, "LOCAL_RANK", 0),
        size,
        local_size,
        environment.get("MASTER_ADDR", "127.0.0.1"),
        read_number(environment, "MASTER_PORT", PORT),
        environment.get(AGENT_STORE) == "True",
    )


def _place_on_host(task: Task, environment: Mapping[str, str]) -> tuple[int, int]:
    """Read the local rank and the number of local ranks."""
    local_rank, local_size = next(names[3:] for names in _LAUNCHERS if names[0] == task.launcher)
    if task.launcher == "srun":
        tasks = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", str(task.size)))
        return read_number(environment, local_rank), tasks[read_number(environment, "SLURM_NODEID", 0)]
    if local_rank not in environment or local_size not in environment:  # an older MPICH under srun
        local_rank, local_size = "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"
    return read_number(environment, local_rank), read_number(environment, local_size)


def _address(task: Task, environment: Mapping[str, str], has_other_hosts: bool) -> str:
    if not has_other_hosts:
        return "127.0.0.1"
    if task.launcher == "srun":
        return first_host(environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", ""))
    text = f"{task.launcher} does not say where rank 0 is: set MASTER_ADDR to the name or address of the first host"
    raise UserError(f"{text} on all hosts, mpirun -x MASTER_ADDR=…, as launch/mpi.sh does.")


def _slurm_port(environment: Mapping[str, str]) -> int:
    """Choose a port that is the same for all tasks of a job step, and most likely no other job's on the same machine."""
    step = environment.get("SLURM_STEP_ID", "0")
    return 20000 + (read_number(environment, "SLURM_JOB_ID", 0) + (int(step) if step.isdigit() else 0)) % 10000


def tasks_per_node(text: str) -> list[int]:
    """Expand SLURM's short form: ``2(x3),1`` is [2, 2, 2, 1]."""
    counts = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not found:
            raise UserError(f"SLURM_STEP_TASKS_PER_NODE is '{text}', not of the form 2(x3),1.")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def first_host(nodelist: str) -> str:
    """Return the first name of SLURM's short form: ``gpu[03-07,12]-ib,login`` begins with ``gpu03-ib``."""
    found = re.match(r"(?:[^\[\],]|\[[^\]]*\])+", nodelist)
    if not found:
        raise UserError(f"SLURM_STEP_NODELIST is '{nodelist}', not a list of hosts: set MASTER_ADDR to the first host.")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", found[0])


def hosts_of_command(command: Sequence[str]) -> list[str]:
    """Return the host of each rank from a command line of DeepSpeed's ``launch.py``; empty for another command."""
    for word in command:
        if word.startswith("--world_info="):
            slots = json.loads(base64.urlsafe_b64decode(word.partition("=")[2]))
            return [host for host, numbers in slots.items() for _ in numbers]
    return []


def launched_hosts() -> list[str]:
    """Return the host of each rank from the command line of DeepSpeed's launcher, this process's parent; else nothing."""
    try:
        return hosts_of_command(psutil.Process().parent().cmdline())
    except (psutil.Error, AttributeError, ValueError):
        return []


def name_ranks(ranks: Iterable[int], hosts: Mapping[int, str] | Sequence[str]) -> str:
    """Name ranks with their hosts, if those are known: ``ranks 2, 3 (node-b), rank 5 (node-c)``."""
    by_host: dict[str, list[int]] = {}
    for rank in sorted(ranks):
        by_host.setdefault(hosts[rank] if hosts else "", []).append(rank)
    parts = [_of_one_host(numbers) + (f" ({host})" if host else "") for host, numbers in by_host.items()]
    return ", ".join(parts[:6]) + (f" and those of {len(parts) - 6} more hosts" if len(parts) > 6 else "")


def _of_one_host(ranks: list[int]) -> str:
    if len(ranks) > 6:
        return f"{len(ranks)} ranks starting with {ranks[0]}"
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def read_number(environment: Mapping[str, str], name: str, default: int | None = None, cure: str = "") -> int:
    """Read a variable; ``UserError``, with a ``cure``, if it is not a number, or is missing without a default."""
    value = environment.get(name, "")
    if not value and default is not None:
        return default
    if not re.fullmatch(r"[0-9]+", value):
        raise UserError(f"the variable {name} is '{value}', not a number{cure and f': {cure}'}.")
    return int(value)
