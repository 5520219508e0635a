"""What is checked before a model is built, on every rank, with all findings said at once.

Each rank makes an ``Inspection``: it gathers findings, of which some are fatal, and facts, in which all ranks must agree.
Then the ranks gather all inspections, and ``conclude`` joins them: every rank raises the same ``UserError`` with
everything that must be changed, or goes on with the same warnings.

Checks are functions that return findings; what they look at outside of their arguments is said in their names.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mpnet_ds.config.deepspeed_config import EngineConfig
from mpnet_ds.config.recipe import Recipe
from mpnet_ds.data.builder.plan import available_cores
from mpnet_ds.data.samples.dataset import PretrainingDataset
from mpnet_ds.errors import UserError
from mpnet_ds.findings import Finding, disagreement
from mpnet_ds.preflight.memory_estimate import GIB, MemoryEstimate, Workload, estimate
from mpnet_ds.ranks import process_group
from mpnet_ds.ranks.launchers import Placement, name_ranks

LARGEST_SEED = 2**63 - 1
DATA, EVAL_DATA = "the dataset's checksum", "the evaluation data's checksum"
"""Names of facts."""
MOST_DIFFERENCES = 8  # that are named
STALE_AFTER = 300  # seconds in which a build that is still running writes something


@dataclass
class Inspection:
    """What one rank found."""

    rank: int = 0
    host: str = field(default_factory=socket.gethostname)
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """Name → value that can be written as JSON; all ranks that know it must have the same."""

    def attempt(self, function: Callable[[], Any]):
        """What ``function`` returns; None where it raises a ``UserError``, whose texts become findings."""
        try:
            return function()
        except UserError as error:
            self.findings += map(Finding, error.findings)
        except PermissionError as error:
            self.findings.append(Finding(f"{error.filename}: permission denied."))
        return None

    def add(self, findings: Iterable[Finding]) -> None:
        """Takes what a check returned."""
        self.findings += findings

    @property
    def is_fatal(self) -> bool:
        """Whether this rank cannot go on."""
        return any(finding.is_fatal for finding in self.findings)


def agree(inspection: Inspection, ranks: process_group.Ranks, datasets: Sequence[PretrainingDataset] = ()) -> list[str]:
    """All ranks' warnings; ``UserError`` where any rank cannot go on. Every rank must call it.

    Args:
        datasets: of this rank, whose files are named where those of other ranks differ.
    """
    inspections = ranks.gather(inspection)
    if any(differ(inspections, name) for name in (DATA, EVAL_DATA)):
        inspection.facts |= facts_of_files(datasets)  # to name the files
        inspections = ranks.gather(inspection)
    try:
        return conclude(inspections)
    except UserError:
        if ranks.is_main:
            raise
        process_group.stop()
        time.sleep(5)  # rank 0 says the same: a launcher ends all ranks as soon as one leaves, so let it speak
        raise SystemExit(2) from None


def conclude(inspections: list[Inspection]) -> list[str]:
    """Warnings of all ranks; raises one ``UserError`` with everything that is fatal.

    What all ranks found is said once; what some found, with these ranks and their hosts.
    """
    found: dict[Finding, list[Inspection]] = {}
    for inspection in inspections:
        for finding in dict.fromkeys(inspection.findings):
            found.setdefault(finding, []).append(inspection)
    for finding in compare(inspections):
        found[finding] = inspections
    texts = {
        finding: finding.text if len(who) == len(inspections) else f"{_name_ranks(who)}: {finding.text}"
        for finding, who in found.items()
    }
    fatal = [text for finding, text in texts.items() if finding.is_fatal]
    if fatal:
        raise UserError(*fatal)
    return list(texts.values())


def compare(inspections: list[Inspection]) -> list[Finding]:
    """A finding for each fact in which the ranks that know it differ: what most have, and who has something else."""
    findings = []
    names = dict.fromkeys(name for inspection in inspections for name in inspection.facts)
    for name in names:  # most ranks are right; where it is even, rank 0 is, which comes first
        known = [(inspection, inspection.facts[name]) for inspection in inspections if name in inspection.facts]
        text = disagreement(name, known, _name_ranks, "ranks")
        findings += [Finding(text)] if text else []
    if len(findings) > MOST_DIFFERENCES:
        more = len(findings) - MOST_DIFFERENCES
        findings[MOST_DIFFERENCES:] = [Finding(f"and {more} more differences between the ranks.")]
    return findings


def differ(inspections: list[Inspection], name: str) -> bool:
    """Whether the ranks that know a fact disagree on it."""
    return len({json.dumps(found.facts[name]) for found in inspections if name in found.facts}) > 1


def facts_of_files(datasets: Iterable[PretrainingDataset]) -> dict[str, str]:
    """Facts by which the files can be named in which two copies of a dataset differ."""
    facts = {}
    for data in datasets:
        files = list(data.manifest.files(data.folder))
        facts[f"the number of files of {data.folder}"] = str(len(files))
        facts |= {f"the sha256 of {path}": record.sha256 for _, path, record in files}
    return facts


def flatten(prefix: str, value: Any) -> dict[str, Any]:
    """Facts of a nested dict, one for each value: ``{"recipe.run.seed": 0, …}``."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {place: fact for key, inner in value.items() for place, fact in flatten(f"{prefix}.{key}", inner).items()}


def _name_ranks(inspections: list[Inspection]) -> str:
    return name_ranks([found.rank for found in inspections], {found.rank: found.host for found in inspections})


# Checks


def check_values(recipe: Recipe) -> list[Finding]:
    """Values of a recipe that are each allowed, but not together, or not by what computes with them."""
    findings, seed, optimization = [], recipe.run.seed, recipe.optimization
    if not 0 <= seed <= LARGEST_SEED:
        findings.append(Finding(f"run.seed is {seed}; it must lie between 0 and 2^63 - 1."))
    if optimization.warmup_steps >= optimization.max_steps:
        text = f"optimization.warmup_steps {optimization.warmup_steps} is not less than max_steps {optimization.max_steps}"
        findings.append(Finding(f"{text}: the learning rate will rise to the end and never fall.", is_fatal=False))
    return findings


def check_hostfile() -> list[Finding]:
    """A hostfile that the ``deepspeed`` command was given and that is not there: it would train on one machine only."""
    import psutil

    for process in process_group.ancestors():
        try:
            named = named_hostfile(process.cmdline())
            path = Path(process.cwd(), named) if named else None
        except psutil.Error:  # gone, or another user's
            continue
        if path and not path.is_file():
            text = f"no hostfile {named}: deepspeed would train on this machine alone"
            return [Finding(f"{text}. Correct --hostfile, or leave it out.")]
    return []


def named_hostfile(command: list[str]) -> str | None:
    """The hostfile that a command line names, where it is one of DeepSpeed's launcher."""
    from deepspeed.launcher.runner import DLTS_HOSTFILE, parse_args

    for place, word in enumerate(command[:3]):
        if Path(word).name in ("deepspeed", "ds", "deepspeed.launcher.runner", "runner.py"):
            try:
                hostfile = parse_args(command[place + 1 :]).hostfile
            except SystemExit:  # another program of that name
                return None
            return hostfile if hostfile != DLTS_HOSTFILE else None
    return None


def check_slots(placement: Placement) -> list[Finding]:
    """Whether this host has a device for each of its ranks; where there is no GPU, a processor core."""
    from deepspeed.accelerator import get_accelerator

    on_gpu = get_accelerator().device_name() != "cpu"
    found = get_accelerator().device_count() if on_gpu else available_cores()
    ranks, host = placement.local_world_size, socket.gethostname()
    if ranks <= found:
        return []
    what = "GPUs that a rank can see" if on_gpu else "processor cores, and no GPU"
    cure = "correct its slots in the hostfile, or the number of tasks"
    if on_gpu and placement.launcher == "srun":
        cure += ", or let each task see all GPUs of its node with --gpu-bind=none"
    text = f"{host} has {found} {what}, and is to run {ranks} ranks: {cure}."
    return [Finding(text, is_fatal=on_gpu or placement.has_other_hosts)]


def check_disk(output: Path, checkpoint: int, wanted: int) -> list[Finding]:
    """Whether checkpoints fit on the disk of ``output``.

    Args:
        checkpoint: bytes of one.
        wanted: how many lie there at once at most. Two must fit: the newest, and the one that is being written.
    """
    parent = next(path for path in (output, *output.absolute().parents) if path.is_dir())
    there = sum(path.stat().st_size for path in (output / "checkpoints").glob("step-*/**/*") if path.is_file())
    space = shutil.disk_usage(parent).free + there
    if space >= wanted * checkpoint:
        return []
    least = min(2, wanted)
    sizes = f"{wanted} checkpoints of {show_bytes(checkpoint)} are kept at once, {parent} has room for {show_bytes(space)}"
    cure = "free some space, choose another --output_dir, or lower the recipe's run.keep"
    return [Finding(f"{sizes}: {cure}.", is_fatal=space < least * checkpoint)]


def checkpoints_at_once(recipe: Recipe) -> int:
    """The newest, the best and the one that is being written; fewer where a run saves fewer."""
    saves = -(-recipe.optimization.max_steps // recipe.run.save_interval)
    return min(saves, recipe.run.keep + 2)


def check_build_locks(ops: set[str], now: float | None = None) -> list[Finding]:
    """Locks that a killed build of a C++ extension left: the next build waits for ever on them.

    Args:
        ops: names of the extensions that this run would build, see ``compiled_ops``.
        now: seconds since the epoch, as ``time.time()``.
    """
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    findings = []
    for lock in sorted([*root.glob("*/lock"), *root.glob("*/*/lock")]):
        try:
            newest = max(path.stat().st_mtime for path in (lock.parent, *lock.parent.iterdir()))
        except OSError:  # the build has just ended
            continue
        if (now or time.time()) - newest > STALE_AFTER:
            is_fatal = lock.parent.name in ops
            what = "this run" if is_fatal else "a run that needs this extension"
            text = f"{lock} is what a killed build left, and {what} would wait on it for ever: remove it"
            findings.append(Finding(f"{text} (rm {lock}).", is_fatal))
    return findings


def compiled_ops(config: EngineConfig) -> set[str]:
    """Names of DeepSpeed's C++ extensions that a configuration needs."""
    optimizer = config.engine.get("optimizer", {})
    kind, parameters = optimizer.get("type", "").lower(), optimizer.get("params", {})
    where = "fused" if config.offload("offload_optimizer") == "none" else "cpu"
    ops = set()
    if kind in ("adam", "adamw") and not parameters.get("torch_adam"):
        ops.add(f"{where}_adam")
    if kind == "lion":
        ops.add(f"{where}_lion")
    if kind == "adagrad" and where == "cpu":
        ops.add("cpu_adagrad")
    if kind == "lamb":
        ops.add("fused_lamb")
    if "nvme" in (config.offload("offload_optimizer"), config.offload("offload_param")):
        ops.add("async_io")
    return ops


# Memory


@dataclass(frozen=True)
class Capacity:
    """Memory that a rank has."""

    device: int
    """Bytes."""
    host: int
    """Bytes of the machine's memory, divided by its ranks."""
    is_same: bool
    """The device is the host's processor."""


def capacity_of(device: torch.device) -> Capacity:
    """Asks the device and the machine, and the control group that this process may be confined to."""
    import psutil

    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    limits = [psutil.virtual_memory().total]
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        text = path.read_text().strip() if path.is_file() else ""
        limits += [int(text)] if text.isdigit() else []
    host = min(limits) // ranks_here
    if device.type == "cpu":
        return Capacity(host, host, is_same=True)
    from deepspeed.accelerator import get_accelerator

    return Capacity(get_accelerator().total_memory(device.index), host, is_same=False)


def workload_of(recipe: Recipe, config: EngineConfig, model_config, world_size: int, on_gpu: bool) -> Workload:
    """What a run's memory depends on."""
    zero, seq_length = config.engine.get("zero_optimization", {}), recipe.data.seq_length
    section = config.engine.get("activation_checkpointing")
    layers = model_config.num_hidden_layers
    checkpointed = 0 if section is None else min(layers, section.get("number_checkpoints") or layers)
    sizes = {
        name: int(zero[key])
        for name, key in (
            ("reduce_bucket_size", "reduce_bucket_size"),
            ("max_live_parameters", "stage3_max_live_parameters"),
        )
        if key in zero
    }
    return Workload(
        model_config,
        recipe.objective,
        seq_length,
        int(recipe.data.masking.num_predicted(seq_length)),
        config.batch.micro_batch_size,
        config.precision,
        config.zero_stage,
        world_size,
        parameters_on_host=config.offload("offload_param") != "none",
        optimizer_on_host=config.offload("offload_optimizer") != "none",
        checkpointed_layers=checkpointed,
        checkpoints_on_host=bool(section and section.get("cpu_checkpointing")),
        uses_muon=config.uses_muon,
        on_gpu=on_gpu,
        **sizes,
    )


def memory_of(work: Workload, capacity: Capacity) -> MemoryEstimate:
    """The estimate, with what is offloaded counted where it will lie."""
    memory = estimate(work)
    return memory.joined() if capacity.is_same else memory


def check_memory(work: Workload, capacity: Capacity) -> list[Finding]:
    """Whether the estimate fits: states must, and with activations it should."""
    memory = memory_of(work, capacity)
    device = "This machine's memory for each rank" if capacity.is_same else "The device's memory"
    findings = []
    if memory.states > capacity.device:
        what = f"Parameters, gradients and optimizer states take about {show_bytes(memory.states)} on each rank"
        found = f"{device} is {show_bytes(capacity.device)}. {what}"
        findings.append(Finding(f"{found}: {_cures_for_states(work, capacity)}."))
    elif memory.total > capacity.device:
        what = f"this run takes about {show_bytes(memory.total)}, {show_bytes(memory.activations)} of it activations"
        found = f"{device} is {show_bytes(capacity.device)}, {what}"
        findings.append(Finding(f"{found}: {_cures_for_activations(work, capacity)}.", is_fatal=False))
    if memory.host > capacity.host:
        text = f"What is offloaded takes about {show_bytes(memory.host)} a rank, the host has {show_bytes(capacity.host)}"
        findings.append(Finding(f"{text}: use more machines, or offload less."))
    return findings


def _cures_for_states(work: Workload, capacity: Capacity) -> str:
    cures = []
    if work.zero_stage < 3 and work.world_size > 1:
        cures.append(f"a ZeRO stage above {work.zero_stage}")
    if not work.optimizer_on_host and not capacity.is_same:
        cures.append("zero_optimization.offload_optimizer")
    return "try " + ", ".join([*cures, "more ranks" if work.zero_stage else "ZeRO 2 with several ranks", "a smaller model"])


def _cures_for_activations(work: Workload, capacity: Capacity) -> str:
    smaller = [size for size in range(1, work.micro_batch_size) if work.micro_batch_size % size == 0]
    fitting = [s for s in smaller if memory_of(replace(work, micro_batch_size=s), capacity).total <= capacity.device]
    cures = [f"--micro_batch_size {fitting[-1]}"] if fitting else []
    if not work.checkpointed_layers:
        cures.append("activation checkpointing (ds_configs/activation_checkpointing.json)")
    return "try " + " or ".join(cures or ["more ranks at a higher ZeRO stage"])


def show_bytes(size: int) -> str:
    """``1.50 GiB``, ``23 MiB``."""
    for unit, name in ((GIB, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:,.{2 if size < 10 * unit else 1}f} {name}"
    return f"{size / 1024:.1f} KiB"
