"""Where a run goes, on which disks, and from where it resumes: decided by all ranks together, before a model is built."""

from argparse import Namespace
from pathlib import Path

from mpnet_ds.checkpoint.store import check_at_hand
from mpnet_ds.config.deepspeed_config import EngineConfig, layout
from mpnet_ds.config.recipe import Recipe
from mpnet_ds.findings import Finding
from mpnet_ds.preflight.inspection import Inspection, gather_findings
from mpnet_ds.preflight.plan import RunPlan, StartingPoint
from mpnet_ds.ranks.disks import Disks, find_disks
from mpnet_ds.ranks.process_group import Ranks
from mpnet_ds.run.run_folder import Setting, decide_start, free_output, identity, list_checkpoints


def find_start(
    plan: RunPlan, arguments: Namespace, ranks: Ranks, inspection: Inspection
) -> tuple[StartingPoint | None, Disks]:
    """Where the run goes and where it resumes, and who shares that disk; every rank must call it.

    What is wrong goes into ``inspection``; then there may be no starting point.
    """
    run_identity = identity(plan.recipe, plan.data.tokenizer.fingerprint, plan.data.checksum)
    output = inspection.attempt(lambda: ranks.on_main(lambda: _choose_output(arguments, plan.recipe, run_identity)))
    disks = output and inspection.attempt(lambda: find_disks(output, ranks))
    if not disks:
        return None, Disks(ranks)
    start = _decide_start(arguments, plan.engine, output, run_identity, disks, inspection)
    if start is not None and plan.init_from and start.checkpoint is not None:
        text = "--init_from is not used: the run resumes from its checkpoint."
        inspection.add([Finding(text, is_fatal=False)])
    return start, disks


def find_start_again(plan: RunPlan, arguments: Namespace, disks: Disks) -> StartingPoint:
    """The plan's start, unless a run that was ending has saved in its folder before this one had it for itself."""
    start = plan.start
    if list_checkpoints(start.output, disks) == start.found:
        return start
    inspection = Inspection(disks.ranks.rank)
    start = _decide_start(arguments, plan.engine, start.output, start.identity, disks, inspection)
    gather_findings(inspection, disks.ranks)
    return start


def _choose_output(arguments: Namespace, recipe: Recipe, run_identity: dict) -> Path:
    may_continue, last = arguments.resume != "never", recipe.optimization.max_steps
    return Path(arguments.output_dir or free_output(recipe.name, run_identity, last, may_continue))


def _decide_start(
    arguments: Namespace, config: EngineConfig, output: Path, run_identity: dict, disks: Disks, inspection: Inspection
) -> StartingPoint | None:
    """Where the run begins, the same on all ranks; each rank's finding if its part of the checkpoint is not on its host."""
    setting = Setting(disks.ranks.world_size, config.zero_stage, config.precision, layout(config.engine))
    start = inspection.attempt(lambda: decide_start(output, arguments.resume, run_identity, setting, disks))
    if start is not None and start.checkpoint is not None:
        inspection.attempt(lambda: check_at_hand(start.checkpoint, disks.ranks.rank, start.conversion))
    return start
