"""Where a run goes, on which disks, and where it goes on from: decided by all ranks together, before a model is built."""

from argparse import Namespace
from pathlib import Path

from mpnet_ds.checkpoint.store import check_at_hand
from mpnet_ds.config.deepspeed_config import EngineConfig, layout
from mpnet_ds.config.recipe import Recipe
from mpnet_ds.preflight.inspection import Finding, Inspection, agree
from mpnet_ds.ranks.disks import Disks, find_disks
from mpnet_ds.run.run_folder import Setting, Start, decide_start, free_output, identity, list_checkpoints


def find_destination(
    arguments: Namespace, recipe: Recipe, config: EngineConfig, data, ranks, inspection: Inspection
) -> tuple[Start | None, Disks]:
    """Where the run goes and goes on from, and who shares that disk; every rank must call it.

    What is wrong goes into ``inspection``; then there may be no start.
    """
    run_identity = identity(recipe, data.tokenizer.fingerprint, data.checksum)
    output = inspection.attempt(lambda: ranks.on_main(lambda: _choose_output(arguments, recipe, run_identity)))
    disks = output and inspection.attempt(lambda: find_disks(output, ranks))
    if not disks:
        return None, Disks(ranks)
    start = _decide_start(arguments, config, output, run_identity, disks, inspection)
    if start is not None and arguments.init_from and start.checkpoint is not None:
        text = "--init_from is not used: the run goes on from its checkpoint."
        inspection.add([Finding(text, is_fatal=False)])
    return start, disks


def decide_again(arguments: Namespace, config: EngineConfig, start: Start, disks: Disks) -> Start:
    """``start``, unless a run that was ending has saved in its folder before this one had it for itself."""
    if list_checkpoints(start.output, disks) == start.found:
        return start
    inspection = Inspection(disks.ranks.rank)
    start = _decide_start(arguments, config, start.output, start.identity, disks, inspection)
    agree(inspection, disks.ranks)
    return start


def _choose_output(arguments: Namespace, recipe: Recipe, run_identity: dict) -> Path:
    may_continue, last = arguments.resume != "never", recipe.optimization.max_steps
    return Path(arguments.output_dir or free_output(recipe.name, run_identity, last, may_continue))


def _decide_start(
    arguments: Namespace, config: EngineConfig, output: Path, run_identity: dict, disks: Disks, inspection: Inspection
) -> Start | None:
    """Where the run begins, the same on all ranks; each rank's finding if its part of the checkpoint is not on its host."""
    setting = Setting(disks.ranks.world_size, config.zero_stage, config.precision, layout(config.engine))
    start = inspection.attempt(lambda: decide_start(output, arguments.resume, run_identity, setting, disks))
    if start is not None and start.checkpoint is not None:
        inspection.attempt(lambda: check_at_hand(start.checkpoint, disks.ranks.rank, start.conversion))
    return start
