"""The launchers that start ranks, and what they tell each process: its rank, the number of ranks, and where they meet.

Known launchers are ``torchrun`` and ``deepspeed`` (which set RANK and related variables), OpenMPI's and Spectrum's
``mpirun``, MPICH's, Intel's and Cray's ``mpiexec``, MVAPICH's ``mpirun_rsh``, ``jsrun``, ``flux run`` and SLURM's ``srun``.
A process that none of them started is alone. Variables that are half there, or contradict each other, are refused at once:
a run would wait for ranks that never come, or train alone on each host.
"""

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from math import gcd
from typing import NamedTuple

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


class _Launcher(NamedTuple):
    """A launcher and its variables."""

    name: str
    rank: str
    size: str
    local_rank: str
    local_size: str = ""


# In the order in which they count. mpirun and mpiexec come before srun: in a SLURM job they start their own daemons with
# srun, and its variables, which count daemons, reach the ranks too. jsrun and flux set those of others besides their own.
_LAUNCHERS = (
    _Launcher("jsrun", *(f"JSM_NAMESPACE_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))),
    _Launcher("mpirun", *(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))),
    _Launcher("mpirun_rsh", *(f"MV2_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))),
    _Launcher("flux", "FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID"),
    _Launcher("mpiexec", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    _Launcher("mpiexec", "PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"),
    _Launcher("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)
_PLATFORMS = {
    "SageMaker": ("SM_HOSTS", 'distribution={"torch_distributed": {"enabled": True}}'),
    "Azure": ("AZ_BATCH_HOST_LIST", "distribution type PyTorch or MPI"),
    "PaddlePaddle": ("PADDLE_TRAINER_ENDPOINTS", ""),
    "Kubeflow": ("PET_NNODES", ""),
    "SkyPilot": ("SKYPILOT_NUM_NODES", ""),
    "dstack": ("DSTACK_NODES_NUM", ""),
    "TensorFlow's job": ("TF_CONFIG", "a job of PyTorch's kind"),
}
"""Platforms that start one process on each host → the variable that lists or counts them, and what starts ranks."""


def find_task(environment: Mapping[str, str]) -> Task | None:
    """Return this process's task under a launcher other than ``torchrun`` and ``deepspeed``; None if it is the only one."""
    launcher = _find_launcher(environment)
    if launcher is None:
        return None
    rank, size = read_number(environment, launcher.rank), read_number(environment, launcher.size)
    if rank >= size:
        raise UserError(f"{launcher.rank} is {rank}, but {launcher.size} is {size}: ranks count from 0. Unset both.")
    return Task(launcher.name, rank, size, launcher.rank)


def _find_launcher(environment: Mapping[str, str]) -> _Launcher | None:
    """Return the launcher of several processes, of which this is one; ``UserError`` where it says only half."""
    of_slurm = _pmi_of_srun(environment)
    for one in _LAUNCHERS:
        if one.rank not in environment or (one.rank == "PMI_RANK" and of_slurm):
            continue
        if one.size in environment:
            if read_number(environment, one.size) > 1:
                local = one.local_rank in environment or one.name == "srun"
                rivals = [other for other in _LAUNCHERS if other.rank == one.rank and other.local_rank in environment]
                return one if local or not rivals else rivals[0]
        elif one.name != "srun":  # a batch script has a SLURM_PROCID too
            raise UserError(f"{one.rank} is set, and {one.size} is not: unset it, or start all ranks with {one.name}.")
    return None


def _pmi_of_srun(environment: Mapping[str, str]) -> bool:
    """Whether it was srun that set PMI's variables (MpiDefault or --mpi is pmi2, cray_shasta, …), and no mpiexec inside."""
    pairs = (("PMI_RANK", "SLURM_PROCID"), ("PMI_SIZE", "SLURM_STEP_NUM_TASKS"))
    same = all(environment.get(one, "") == environment.get(other) for one, other in pairs)
    return same and "MPI_LOCALRANKID" not in environment


def find_placement(environment: Mapping[str, str]) -> Placement:
    """Read rank, world size and address; raise ``UserError`` if the launcher's variables do not suffice, or contradict.

    An empty variable counts as none: templates of job descriptions leave such behind.
    """
    environment = {name: value for name, value in environment.items() if value}
    task = find_task(environment)
    if "RANK" in environment and not _is_overruled(environment, task):
        placement = _of_torch(environment, task)
    elif task is not None:
        placement = _of_task(task, environment)
    else:
        _refuse_alone(environment)
        return Placement()
    _check(placement)
    return placement


def _is_overruled(environment: Mapping[str, str], task: Task | None) -> bool:
    """Whether RANK does not count, since all tasks inherited one value; ``UserError`` if that cannot be told.

    torchrun and ``deepspeed`` may be started once on each host by such a launcher, and say so.
    """
    if task is None or any(name in environment for name in ("TORCHELASTIC_RUN_ID", "CROSS_SIZE")):
        return False
    rank, size = read_number(environment, "RANK"), read_number(environment, "WORLD_SIZE", 0)
    if (rank, size) == (task.rank, task.size) or (size > task.size and "LOCAL_RANK" in environment):
        return False
    if size == task.size and "MASTER_ADDR" not in environment:
        return True
    found = (
        f"RANK is {rank} and WORLD_SIZE is {size or 'not set'}, but {task.launcher} started task {task.rank} of {task.size}"
    )
    raise UserError(f"{found}: unset RANK and WORLD_SIZE, which the job inherits from the shell that started it.")


def _of_task(task: Task, environment: Mapping[str, str]) -> Placement:
    size = read_number(environment, "WORLD_SIZE", task.size)
    if size != task.size:
        text = f"WORLD_SIZE is {size}, but {task.launcher} started {task.size} tasks"
        raise UserError(f"{text}: unset it, it is inherited from the shell that started the job.")
    local_rank, local_size = _place_on_host(task, environment)
    port = _port(environment, _slurm_port(environment) if task.launcher == "srun" else PORT)
    has_other_hosts = local_size < task.size
    address = environment.get("MASTER_ADDR") or _address(task, environment, has_other_hosts)
    return Placement(task.launcher, task.rank, local_rank, task.size, local_size, address, port)


def _refuse_alone(environment: Mapping[str, str]) -> None:
    """Raise ``UserError`` where a process without a rank is one of several all the same."""
    if read_number(environment, "SLURM_NTASKS", 1) > 1 and "SLURM_STEP_ID" not in environment:
        text = f"SLURM_NTASKS is {environment['SLURM_NTASKS']}, but this process is the only one"
        raise UserError(f"{text}: start it with srun (launch/slurm.sh), deepspeed or torchrun.")
    cure = "start it with deepspeed or torchrun, or unset it to train on this machine alone"
    sizes = {one.size: 2 for one in _LAUNCHERS if one.name not in ("srun", "flux")}  # a job's shell has theirs
    for name, least in ({"WORLD_SIZE": 2, "LOCAL_RANK": 1, "NODE_RANK": 1, "PMIX_RANK": 1} | sizes).items():
        if read_number(environment, name, 0) >= least:
            raise UserError(f"{name} is {environment[name]}, and RANK is not set: {cure}.")
    for platform, (name, number, way) in _listed_hosts(environment).items():
        if number > 1:
            text = f"{platform} runs {number} hosts ({name}), and RANK is not set: each would train alone"
            raise UserError(f"{text}. Start {way and f'ranks with {way}, or '}torchrun on each host; or unset {name}.")


def _listed_hosts(environment: Mapping[str, str]) -> dict[str, tuple[str, int, str]]:
    """Count the hosts that platforms list: platform → the variable, their number, and what starts ranks."""
    found = {
        platform: (name, _count_hosts(environment[name]), way)
        for platform, (name, way) in _PLATFORMS.items()
        if name in environment
    }
    if volcano := [name for name in environment if re.fullmatch(r"VC_\w+_HOSTS", name)]:
        found["Volcano"] = (volcano[0], sum(_count_hosts(environment[name]) for name in volcano), "the plugin pytorch")
    return found


def _count_hosts(value: str) -> int:
    """Count the hosts of a list; of a number, or a range such as 1:2, the most; of TensorFlow's JSON, those of all kinds."""
    if number := re.fullmatch(r"(?:\d+:)?(\d+)", value):
        return int(number[1])
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        return sum(map(len, json.loads(value)["cluster"].values()))
    return len(re.findall(r"[\w.:-]+", value))


_PORT_CURE = "give a free port of rank 0's host, from 1024 to 65535"


def _port(environment: Mapping[str, str], default: int) -> int:
    of_service = environment.get("MASTER_PORT", "").startswith("tcp://")
    cure = "Kubernetes sets it for a service named master: rename that, or set MASTER_PORT in the pod"
    return read_number(environment, "MASTER_PORT", default, cure if of_service else _PORT_CURE)


def _check(placement: Placement) -> None:
    """Raise ``UserError`` with everything that is impossible about a placement."""
    rank, size = placement.rank, placement.world_size
    local_rank, local_size = placement.local_rank, placement.local_world_size
    findings = []
    if rank >= size:
        findings.append(f"RANK is {rank}, but WORLD_SIZE is {size}: ranks count from 0. Set both, or neither.")
    if local_rank >= local_size:
        findings.append(f"the local rank is {local_rank}, but {local_size} ranks are on its host: they count from 0.")
    if size > 1 and rank < local_rank < local_size:
        findings.append(f"RANK is {rank}, and the local rank {local_rank}, which cannot exceed it: correct one of them.")
    if local_size > size:
        findings.append(f"{local_size} ranks are said to be on this host, but WORLD_SIZE is {size}: correct one of them.")
    if size > 1:
        findings += _wrong_meeting_point(placement.address, placement.port)
    if findings:
        raise UserError(*findings)


def _wrong_meeting_point(address: str, port: int) -> list[str]:
    findings = [] if 0 < port < 65536 else [f"MASTER_PORT is {port}, not a port: {_PORT_CURE}."]
    with suppress(ValueError):
        ip_address(address.partition("%")[0])
        return findings
    if not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?", address):
        cure = "give only the name or address of rank 0's host, and the port in MASTER_PORT"
        findings.append(f"MASTER_ADDR is '{address}', not a host: {cure}.")
    return findings


def _of_torch(environment: Mapping[str, str], task: Task | None) -> Placement:
    if not environment.get("WORLD_SIZE"):
        cure = "a launcher sets both; unset RANK to train with one rank"
        raise UserError(f"RANK is {environment['RANK']}, and WORLD_SIZE is not set: {cure}.")
    rank, size = read_number(environment, "RANK"), read_number(environment, "WORLD_SIZE")
    if task and (rank, size) == (task.rank, task.size) and not any(name in environment for name in _SIZES_ON_HOST):
        placement = _of_task(task, environment)  # a script has passed on what its launcher set
        return replace(placement, local_rank=read_number(environment, "LOCAL_RANK", placement.local_rank))
    usual = _usual_local_size(environment, rank, size)
    of_deepspeed = "CROSS_SIZE" in environment and "TORCHELASTIC_RUN_ID" not in environment
    own, other = reversed(_SIZES_ON_HOST) if of_deepspeed else _SIZES_ON_HOST
    local_size = read_number(environment, own, read_number(environment, other, usual))
    if local_size < size and not environment.get("MASTER_ADDR"):
        text = f"WORLD_SIZE is {size}, {local_size} of them on this host, and MASTER_ADDR is not set"
        raise UserError(f"{text}: set it to the name or address of rank 0's host, on all hosts.")
    return Placement(
        "torchrun" if "TORCHELASTIC_RUN_ID" in environment else "deepspeed",
        rank,
        read_number(environment, "LOCAL_RANK", 0),
        size,
        local_size,
        environment.get("MASTER_ADDR") or "127.0.0.1",
        _port(environment, PORT),
        environment.get(AGENT_STORE) == "True",
    )


_SIZES_ON_HOST = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")  # torchrun's, DeepSpeed's; one of them may be inherited


def _usual_local_size(environment: Mapping[str, str], rank: int, size: int) -> int:
    """Guess the number of ranks on this host where nothing says it: all hosts have as many."""
    if "LOCAL_RANK" not in environment:
        return 1  # a PyTorchJob's pods have one rank each
    local_rank = read_number(environment, "LOCAL_RANK")
    hosts = max((number for _, number, _ in _listed_hosts(environment).values()), default=1)
    most = size // hosts if hosts and size % hosts == 0 else size
    return min(size, max(gcd(rank - local_rank, most), local_rank + 1)) if size else 1


def _place_on_host(task: Task, environment: Mapping[str, str]) -> tuple[int, int]:
    """Read the local rank and the number of local ranks."""
    launcher = _find_launcher(environment)
    if task.launcher == "srun":
        tasks = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", str(task.size)))
        node = read_number(environment, "SLURM_NODEID", 0)
        if node >= len(tasks) or sum(tasks) != task.size:
            found = f"SLURM_NODEID is {node}, SLURM_STEP_TASKS_PER_NODE is {tasks}, SLURM_STEP_NUM_TASKS is {task.size}"
            raise UserError(f"{found}, which contradict each other: start all ranks in one step, with srun.")
        return read_number(environment, launcher.local_rank), tasks[node]
    cure = f"{task.launcher} does not say how many ranks are on a host; start the run with deepspeed or torchrun"
    if task.launcher == "flux":
        hosts = read_number(environment, "FLUX_JOB_NNODES", 1)
        if task.size % hosts:
            raise UserError(f"{task.size} tasks on {hosts} hosts: give each host as many, flux run --tasks-per-node.")
        return read_number(environment, launcher.local_rank, cure=cure), task.size // hosts
    return tuple(read_number(environment, name, cure=cure) for name in (launcher.local_rank, launcher.local_size))


def _address(task: Task, environment: Mapping[str, str], has_other_hosts: bool) -> str:
    if not has_other_hosts:
        return "127.0.0.1"
    if task.launcher == "srun":
        return first_host(environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", ""))
    if master := environment.get("AZ_BATCH_MASTER_NODE"):  # Azure's, with a port
        return master.partition(":")[0]
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


def launch_command() -> list[str]:
    """Return the command line of this process's parent, which may be DeepSpeed's ``launch.py``; nothing if it is gone."""
    try:
        return psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):
        return []


def launched_hosts() -> list[str]:
    """Return the host of each rank from the command line of DeepSpeed's launcher, this process's parent; else nothing."""
    try:
        return hosts_of_command(launch_command())
    except ValueError:
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
