"""What is checked before a model is built: each check is a function that returns findings."""

import os
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path

from mpnet_ds.config.deepspeed_config import EngineConfig
from mpnet_ds.config.recipe import Recipe
from mpnet_ds.findings import Finding
from mpnet_ds.machine import Capacity, available_cores, show_bytes
from mpnet_ds.preflight.memory_estimate import MemoryEstimate, Workload, estimate
from mpnet_ds.ranks import process_group
from mpnet_ds.ranks.launchers import Placement

LARGEST_SEED = 2**63 - 1
STALE_AFTER = 300  # seconds in which a build that is still running writes something


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
