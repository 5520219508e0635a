"""What is checked before a model is built: functions ``plan, ranks, disks → findings``; a ``UserError`` is one too."""

import os
import shutil
import socket
import sys
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

from mpnet_ds.cluster.shell_line import check_arrival
from mpnet_ds.config.recipe import Recipe
from mpnet_ds.files import obstacle_to_writing
from mpnet_ds.findings import Finding
from mpnet_ds.hub.init_from import check_start
from mpnet_ds.machine import Capacity, available_cores, nearest_existing_folder, show_bytes
from mpnet_ds.models.attention.backend import choose_backend
from mpnet_ds.models.mpnet.model import find_undivided_heads
from mpnet_ds.objectives.model_section import FamilySection, MPNetSection
from mpnet_ds.preflight.inspection import Check
from mpnet_ds.preflight.memory_estimate import MemoryEstimate, Workload, checkpoint_bytes, estimate
from mpnet_ds.preflight.plan import RunPlan, sizes_of, workload_of
from mpnet_ds.ranks import process_group
from mpnet_ds.ranks.disks import Disks
from mpnet_ds.ranks.launchers import launch_command, launched_hosts
from mpnet_ds.ranks.network import is_this_machine
from mpnet_ds.ranks.process_group import Ranks

MONITOR_PACKAGES = {"wandb": "wandb", "comet": "comet_ml"}


def check_values(plan: RunPlan, ranks: Ranks | None, disks: Disks | None) -> list[Finding]:
    """Values of the recipe that are each allowed, but not together, or not by what computes with them."""
    findings, optimization = [], plan.recipe.optimization
    if optimization.warmup_steps >= optimization.max_steps:
        text = f"optimization.warmup_steps {optimization.warmup_steps} is not less than max_steps {optimization.max_steps}"
        findings.append(Finding(f"{text}: the learning rate will rise to the end and never fall.", is_fatal=False))
    return findings


def check_launcher(plan: RunPlan, ranks: Ranks | None, disks: Disks | None) -> list[Finding]:
    """What the ``deepspeed`` command does otherwise than it was told, without a word.

    A hostfile that is not there, or another host as the only one, means this machine; over pdsh shells change words.
    """
    import psutil

    hosts = set(launched_hosts())
    if len(hosts) > 1:
        return list(check_arrival(launch_command(), sys.orig_argv, os.environ))
    for process in process_group.ancestors():
        try:
            options = options_of_launcher(process.cmdline())
            folder = Path(process.cwd()) if options else None
        except psutil.Error:  # gone, or another user's
            continue
        if options:
            return find_missing_hostfile(options.hostfile, folder) + [one for host in hosts for one in find_other_host(host)]
    return []


def options_of_launcher(command: list[str]) -> Namespace | None:
    """The options of a command line, where it is one of DeepSpeed's launcher."""
    from deepspeed.launcher.runner import parse_args

    for place, word in enumerate(command[:3]):
        if Path(word).name in ("deepspeed", "ds", "deepspeed.launcher.runner", "runner.py"):
            try:
                return parse_args(command[place + 1 :])
            except SystemExit:  # another program of that name
                return None
    return None


def find_missing_hostfile(named: str, folder: Path) -> list[Finding]:
    """Whether a hostfile other than the default is there; ``folder``: where the launcher was started."""
    from deepspeed.launcher.runner import DLTS_HOSTFILE

    if named == DLTS_HOSTFILE or (folder / named).is_file():
        return []
    text = f"no hostfile {named}: deepspeed would train on this machine alone"
    return [Finding(f"{text}. Correct --hostfile, or leave it out.")]


def find_other_host(host: str) -> list[Finding]:
    """Whether the only host of a run that was started on this machine is another one."""
    is_here = is_this_machine(host)
    if is_here:
        return []
    text = f"deepspeed starts a run on a single host on this machine ({socket.gethostname()}), not on {host}"
    return [Finding(f"{text}: add --force_multi before the script.", is_fatal=is_here is False)]


def check_monitors(plan: RunPlan, ranks: Ranks | None, disks: Disks | None) -> list[Finding]:
    """Whether rank 0, which writes, has the packages and folders that the monitors of DeepSpeed's JSON need."""
    if process_group.place().rank:
        return []
    texts, sections = [], {name: section for name, section in plan.engine.monitors.items() if section.get("enabled", True)}
    for name, section in sections.items():
        folder = Path(section["output_path"], section.get("job_name", "")) if "output_path" in section else None
        if folder and (obstacle := obstacle_to_writing(folder)):
            texts.append(f"{name}.output_path: cannot write to {folder}: {obstacle}. Choose another folder.")
        package = MONITOR_PACKAGES.get(name)
        if section.get("enabled") and package and find_spec(package) is None:
            texts.append(f"{name} is enabled, but not installed: pip install {package}, or leave the section {name} out.")
    return list(map(Finding, texts))


def check_slots(plan: RunPlan, ranks: Ranks | None, disks: Disks | None) -> list[Finding]:
    """Whether this host has a device for each of its ranks; where there is no GPU, a CPU core."""
    from deepspeed.accelerator import get_accelerator

    on_gpu = get_accelerator().device_name() != "cpu"
    found = get_accelerator().device_count() if on_gpu else available_cores()
    placement, host = process_group.place(), socket.gethostname()
    if placement.local_world_size <= found:
        return []
    what = "GPUs that a rank can see" if on_gpu else "CPU cores, and no GPU"
    cure = "correct its slots in the hostfile, or the number of tasks"
    if on_gpu and placement.launcher == "srun":
        cure += ", or let each task see all GPUs of its node with --gpu-bind=none"
    text = f"{host} has {found} {what}, and is to run {placement.local_world_size} ranks: {cure}."
    return [Finding(text, is_fatal=on_gpu or placement.has_other_hosts)]


def check_profiled_step(plan: RunPlan, ranks: Ranks | None, disks: Disks | None) -> list[Finding]:
    """Whether there is such a step to profile."""
    return plan.execution.check_steps(plan.recipe.optimization.max_steps)


def check_profiled_step_is_ahead(plan: RunPlan, ranks: Ranks, disks: Disks) -> list[Finding]:
    """Whether the step to profile is still to come."""
    return plan.execution.check_steps(plan.recipe.optimization.max_steps, plan.start.step)


def check_model(plan: RunPlan, ranks: Ranks | None, disks: Disks | None) -> list[Finding]:
    """Sizes of the model that do not go together, whatever the objective and the data."""
    model = plan.recipe.model
    return list(map(Finding, find_undivided_heads(model))) if isinstance(model, MPNetSection) else []


def check_layers(plan: RunPlan, ranks: Ranks | None, disks: Disks | None) -> list[Finding]:
    """Whether layers of a family of transformers can be recomputed and compiled as the run asks for."""
    section, model = plan.engine.engine.get("activation_checkpointing"), plan.recipe.model
    if not isinstance(model, FamilySection):
        return []
    name, family, findings = model.model_type, model.family, []
    if plan.execution.compile and family.not_compiled:
        findings.append(f"--compile is not possible with {name}, whose layers cannot be compiled: {family.not_compiled}.")
    if section is not None and family.not_recomputed:
        findings.append(f"activation_checkpointing is not possible with {name}: {family.not_recomputed}.")
    findings += [
        f"activation_checkpointing.{key} is DeepSpeed's own, which breaks layers of transformers' {name}: leave it out."
        for key in ("partition_activations", "cpu_checkpointing")
        if (section or {}).get(key)
    ]
    return list(map(Finding, findings))


def check_objective(plan: RunPlan, ranks: Ranks, disks: Disks | None) -> list[Finding]:
    """What the objective cannot do with this model, tokenizer and data."""
    return plan.recipe.objective.findings(plan.recipe.model, plan.data.tokenizer, plan.data)


def check_attention(plan: RunPlan, ranks: Ranks, disks: Disks | None) -> list[Finding]:
    """Whether the attention back-end can compute this model on this device."""
    if isinstance(plan.recipe.model, FamilySection):
        return []  # it was chosen among those that the family has
    backend = choose_backend(plan.execution.attention, ranks.device)
    backend.check(ranks.device, plan.recipe.model.sizes(plan.data.tokenizer.vocab_size))
    return []


def check_initial_weights(plan: RunPlan, ranks: Ranks, disks: Disks | None) -> list[Finding]:
    """Whether the weights of ``--init_from`` fit the model and the tokenizer."""
    check_start(plan.init_from, plan.recipe, plan.data.tokenizer)
    return []


def check_disk(plan: RunPlan, ranks: Ranks, disks: Disks) -> list[Finding]:
    """Whether the disk of the output folder takes its part of the checkpoints, asked by one rank for each disk."""
    if not disks.is_keeper:
        return []
    for folder in (plan.start.output, plan.start.output / "checkpoints"):
        if obstacle := obstacle_to_writing(folder):
            return [Finding(f"cannot write to {folder}: {obstacle}. Choose another --output_dir.")]
    size = checkpoint_bytes(workload_of(plan, ranks.world_size, ranks.device), len(disks.here_and_elsewhere[0]))
    return find_room(plan.start.output, size, checkpoints_at_once(plan.recipe))


def find_room(output: Path, checkpoint: int, wanted: int) -> list[Finding]:
    """Whether the disk of ``output`` has room for checkpoints: ``wanted`` at once, each of ``checkpoint`` bytes.

    Two must fit: the newest, and the one that is being written.
    """
    parent = nearest_existing_folder(output)
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


def check_memory(plan: RunPlan, ranks: Ranks, disks: Disks | None) -> list[Finding]:
    """Whether the estimate fits: states must, and with activations it should."""
    capacity = ranks.capacity

    def fits(micro_batch_size: int) -> bool:
        sizes = sizes_of(plan, ranks.device, micro_batch_size)
        memory = memory_of(workload_of(plan, ranks.world_size, ranks.device, sizes), capacity)
        return memory.total <= capacity.device

    work, engine = workload_of(plan, ranks.world_size, ranks.device), plan.engine
    memory = memory_of(work, capacity)
    findings = find_memory_faults(work, memory, capacity)
    if memory.states <= capacity.device < memory.total:
        size = engine.batch.micro_batch_size
        fitting = [smaller for smaller in range(1, size) if size % smaller == 0 and fits(smaller)]
        cures = [f"--micro_batch_size {fitting[-1]}"] if fitting else []
        if "activation_checkpointing" not in engine.engine:
            cures.append("activation checkpointing (ds_configs/activation_checkpointing.json)")
        what = f"this run takes about {show_bytes(memory.total)}, {show_bytes(memory.activations)} of it activations"
        cure = "try " + " or ".join(cures or ["more ranks at a higher ZeRO stage"])
        findings.append(Finding(f"{_describe(capacity)}, {what}: {cure}.", is_fatal=False))
    return findings


def memory_of(work: Workload, capacity: Capacity) -> MemoryEstimate:
    """The estimate, with what is offloaded counted where it will be."""
    memory = estimate(work)
    return memory.joined() if capacity.is_same else memory


def find_memory_faults(work: Workload, memory: MemoryEstimate, capacity: Capacity) -> list[Finding]:
    """What cannot fit whatever the micro-batch."""
    import psutil

    findings = []
    if memory.states > capacity.device:
        what = f"Parameters, gradients and optimizer states take about {show_bytes(memory.states)} on each rank"
        findings.append(Finding(f"{_describe(capacity)}. {what}: {_cures_for_states(work, capacity)}."))
    bucket, total = work.bytes_per_number * work.reduce_bucket_size, psutil.virtual_memory().total
    if capacity.is_same and work.zero_stage and bucket > total:  # elsewhere the whole bucket counts as gradients
        text = f"zero_optimization.reduce_bucket_size asks for {show_bytes(bucket)}, this machine has {show_bytes(total)}"
        findings.append(Finding(f"{text}: lower it."))
    if capacity.host is not None and memory.host > capacity.host:
        text = f"What is offloaded takes about {show_bytes(memory.host)} a rank, the host has {show_bytes(capacity.host)}"
        findings.append(Finding(f"{text}: use more machines, or offload less."))
    return findings


def _describe(capacity: Capacity) -> str:
    device = "This machine's memory for each rank" if capacity.is_same else "The device's memory"
    return f"{device} is {show_bytes(capacity.device)}"


def _cures_for_states(work: Workload, capacity: Capacity) -> str:
    cures = []
    if work.zero_stage < 3 and work.world_size > 1:
        cures.append(f"a ZeRO stage above {work.zero_stage}")
    if not work.optimizer_on_host and not capacity.is_same:
        cures.append("zero_optimization.offload_optimizer")
    return "try " + ", ".join([*cures, "more ranks" if work.zero_stage else "ZeRO 2 with several ranks", "a smaller model"])


CHECKS = (
    Check(check_launcher),
    Check(check_slots),
    Check(check_values, ("recipe",)),
    Check(check_model, ("recipe",)),
    Check(check_layers, ("recipe", "engine", "execution")),
    Check(check_monitors, ("engine",)),
    Check(check_profiled_step, ("recipe", "execution")),
    Check(check_objective, ("recipe", "data", "ranks")),
    Check(check_attention, ("recipe", "data", "execution", "ranks")),
    Check(check_initial_weights, ("recipe", "data", "init_from", "ranks")),
    Check(check_memory, ("engine", "data", "sizes", "ranks")),
    Check(check_profiled_step_is_ahead, ("recipe", "execution", "start", "ranks")),
    Check(check_disk, ("sizes", "start", "ranks", "disks")),
)
"""In the order of what they find; each runs once, as soon as what it needs is known."""
