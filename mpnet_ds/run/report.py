"""What a run prints before it trains: the lines at its start, and the longer report of ``--dry_run``."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mpnet_ds.command_line import invocation
from mpnet_ds.config.deepspeed_config import EngineConfig
from mpnet_ds.machine import Capacity, nearest_existing_folder, show_bytes
from mpnet_ds.objectives.base import Vocabulary
from mpnet_ds.preflight.checks import checkpoints_at_once, memory_of
from mpnet_ds.preflight.memory_estimate import MemoryEstimate, checkpoint_bytes
from mpnet_ds.preflight.plan import RunPlan, datasets_of, workload_of
from mpnet_ds.ranks.disks import Disks
from mpnet_ds.ranks.process_group import Ranks
from mpnet_ds.run.history import describe_changes

NO_EVALUATION = "No evaluation: not all of the data has a holdout. Name one with --eval_data, or build with --holdout."


def describe_training(plan: RunPlan, ranks: Ranks) -> list[str]:
    """Lines for a person: what is trained, on what, in which batches."""
    recipe, engine = plan.recipe, plan.engine
    batch, max_steps, pieces = engine.batch, recipe.optimization.max_steps, plan.data.tokenizer.vocab_size
    sizes = f"{batch.micro_batch_size} × {batch.accumulation_steps} accumulated × {ranks.world_size} rank(s)"
    epochs = max_steps * batch.global_batch_size / len(plan.data)
    return [
        f"Recipe {recipe.name}, objective {recipe.objective.name}: {plan.sizes.parameters:,} parameters, {pieces:,} pieces",
        f"Data {plan.data.describe()}",
        f"Evaluation on {plan.eval_data.describe()}" if plan.eval_data is not None else NO_EVALUATION,
        *describe_level(plan),
        f"ZeRO {engine.zero_stage} in {engine.precision} on {ranks.device.type}, optimizer "
        f"{engine.engine['optimizer']['type']}, attention by {plan.execution.attention}",
        f"{batch.global_batch_size} sequences a step = {sizes}",
        f"{max_steps:,} steps = {_show_count(epochs)} epochs of the data",
    ]


def describe_level(plan: RunPlan) -> list[str]:
    """The loss of word frequencies alone, or the datasets that lack what it is computed from."""
    if plan.unigram is not None:
        return [f"Word frequencies alone give a loss of {plan.unigram.expected:.3f} nats"]
    if plan.recipe.objective.may_be_target(Vocabulary.of(plan.data.tokenizer)) is None:
        return []
    return [
        f"The loss of word frequencies alone is unknown: {data.folder} has no counts. "
        f"To add them: {invocation('inspect_dataset', data.folder, '--count')}"
        for data in datasets_of(plan.data)
        if data.piece_shares() is None
    ][:1]


def describe_run(plan: RunPlan, disks: Disks) -> list[str]:
    """The same, and where it begins and goes."""
    start, ranks = plan.start, disks.ranks
    lines = describe_training(plan, ranks)
    lines += plan.execution.describe(start.step)
    if len(set(ranks.hosts)) > 1:
        lines.append(describe_hosts(ranks.hosts))
    lines += [f"warning: {path.name} is damaged and set aside: {reason}" for path, reason in start.damaged]
    if start.checkpoint is not None:
        lines.append(f"Resuming from {start.checkpoint} at step {start.step}")
        lines += describe_changes(plan.changes, start.step)
    elif plan.init_from:
        lines.append(f"Weights of {plan.init_from}")
    if start.conversion:
        lines.append(f"The checkpoint is converted: {start.conversion}")
    return [*lines, f"Output {start.output}", *disks.describe()]


def describe_needs(plan: RunPlan, ranks: Ranks) -> list[str]:
    """What the run takes of memory and disk, as estimated, against what there is."""
    work = workload_of(plan, ranks.world_size, ranks.device)
    disk = describe_disk(plan.start and plan.start.output, checkpoint_bytes(work), checkpoints_at_once(plan.recipe))
    rule = ["Activations by a rule of thumb: this model cannot be counted"] if plan.sizes.is_estimate else []
    return [*describe_memory(memory_of(work, ranks.capacity), ranks.capacity), *rule, disk]


def describe_hosts(hosts: Sequence[str]) -> str:
    """How many ranks each host has, and through which network interface this one talks to the others."""
    counts = Counter(hosts)
    named = ", ".join(f"{host} ({count})" for host, count in list(counts.items())[:16])
    more = f", … {len(counts)} in all" if len(counts) > 16 else ""
    return f"Hosts (ranks): {named}{more}, through {os.environ.get('GLOO_SOCKET_IFNAME', 'an interface that gloo chooses')}"


def describe_memory(memory: MemoryEstimate, capacity: Capacity) -> list[str]:
    """A table of the estimate, one line a kind, against what there is."""
    rows = [
        ("parameters", memory.parameters),
        ("gradients", memory.gradients),
        ("optimizer states", memory.optimizer_states),
        ("activations", memory.activations),
    ]
    where = "of this machine's memory" if capacity.is_same else "on the device"
    lines = [f"  {name:18}{show_bytes(size):>12}" for name, size in rows]
    lines.append(f"  {'sum':18}{show_bytes(memory.total):>12}, {show_bytes(capacity.device)} {where}")
    if memory.host:
        there = "" if capacity.host is None else f", {show_bytes(capacity.host)} of the host's memory"
        lines.append(f"  {'offloaded':18}{show_bytes(memory.host):>12}{there}")
    return ["Memory of each rank, as estimated:", *lines]


def describe_disk(output: Path | None, checkpoint: int, at_once: int) -> str:
    """Space for checkpoints, needed and, if it is known where they go, free."""
    needed = f"Checkpoints of about {show_bytes(checkpoint)}, {at_once} at once = {show_bytes(at_once * checkpoint)}"
    if output is None:
        return needed
    parent = nearest_existing_folder(output)
    return f"{needed}; {show_bytes(shutil.disk_usage(parent).free)} are free in {parent}"


def describe_configuration(config: EngineConfig) -> str:
    """DeepSpeed's configuration with nothing left to fill in, as JSON."""
    return "DeepSpeed's configuration, resolved:\n" + json.dumps(config.engine | config.monitors, indent=2)


def _show_count(number: float) -> str:
    """``0.03``, ``1.5``, ``12``: two digits, or all before the point."""
    return f"{number:.2g}" if number < 10 else f"{number:,.0f}"
