"""One pre-training run, from arguments to the last checkpoint: what ``launch/pretrain.py`` calls.

With DeepSpeed's launcher, in any folder: deepspeed --module mpnet_ds.training.pretrain --deepspeed_config zero2 --data DIR

All problems of the input are found before a model is built, and reported together (see preflight/inspection.py):
recipe, DeepSpeed's JSON, data and tokenizer → the ranks connect → output folder, disk, memory → model → training.
"""

from mpnet_ds import start_up
from mpnet_ds.machine import Usage

if __name__ == "__main__":
    start_up.begin("starting: loading PyTorch and the trainer")  # before the rest is imported
    before = Usage.now()

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace

from mpnet_ds.checkpoint.store import CheckpointStore
from mpnet_ds.command_line import invocation, run
from mpnet_ds.config.arguments import build_parser
from mpnet_ds.errors import UserError
from mpnet_ds.hub.init_from import load_pretrained_weights
from mpnet_ds.lasting_output import outlive_readers
from mpnet_ds.metrics_file import FILE_NAME as METRICS
from mpnet_ds.metrics_file import read_metrics
from mpnet_ds.preflight.assumed_ranks import AssumedRanks
from mpnet_ds.preflight.checks import CHECKS, check_attention, check_objective
from mpnet_ds.preflight.inputs import assumed_ranks_of, open_data, read_inputs
from mpnet_ds.preflight.inspection import DATA, EVAL_DATA, Inspection, flatten, gather_findings, raise_if_fatal
from mpnet_ds.preflight.plan import RunPlan, sizes_of
from mpnet_ds.quiet import quiet_libraries
from mpnet_ds.ranks import process_group
from mpnet_ds.ranks.disks import Disks
from mpnet_ds.ranks.process_group import Ranks
from mpnet_ds.ranks.stop_requests import noting_signals
from mpnet_ds.ranks.threads import choose_threads
from mpnet_ds.ranks.watchdog import FOLDER as HANG
from mpnet_ds.ranks.watchdog import Watchdog
from mpnet_ds.run import demo, history
from mpnet_ds.run.report import describe_configuration, describe_needs, describe_run, describe_training
from mpnet_ds.run.resume import find_start, find_start_again
from mpnet_ds.run.run_folder import held, prepare
from mpnet_ds.run.settings import settings_of, versions
from mpnet_ds.training.schedule import learning_rate
from mpnet_ds.training.trainer import Outcome, Trainer

YEAR = 365 * 24 * 3600.0  # seconds


def pretrain(arguments: argparse.Namespace, mistakes: Sequence[str] = (), before: Usage | None = None) -> int:
    """Run to the end; return the exit code.

    Args:
        mistakes: what else was wrong with the command line.
        before: what was used of the cores before the libraries were loaded.
    """
    outlive_readers(never_fail=True)
    quiet_libraries()

    # What this rank can check alone: the command line, the recipe, DeepSpeed's JSON, the data.
    start_up.enter("reading the settings and opening the data")
    placement = process_group.place()
    inspection = Inspection(placement.rank)
    inspection.facts |= versions()
    inspection.take((arguments, mistakes))
    assumed = inspection.attempt(lambda: assumed_ranks_of(arguments))
    plan = read_inputs(arguments, assumed or placement, inspection)
    if assumed:
        return _plan_for(plan, assumed, inspection)
    if inspection.is_fatal and placement.world_size == 1:
        raise_if_fatal([inspection])

    # The ranks connect; from here on all decisions are made together.
    start_up.enter(f"connecting {placement.world_size} rank(s)")
    ranks = process_group.start(arguments.join_timeout)
    with noting_signals(ranks):
        return _start(arguments, plan, ranks, inspection, before)


def _start(arguments: argparse.Namespace, plan: RunPlan, ranks: Ranks, inspection: Inspection, before: Usage | None) -> int:
    """Prepare what needs connected ranks, then run; return the exit code."""
    try:
        threads = choose_threads(ranks, before, os.environ)
        if plan.recipe is not None:
            process_group.wait_for_each_other(2 * plan.recipe.run.hang_timeout or YEAR)
        if plan.execution is not None and plan.recipe is not None:
            plan = replace(plan, execution=inspection.attempt(lambda: plan.execution.on(ranks.device, plan.recipe.model)))
        if not arguments.data:
            gather_findings(inspection, ranks)  # nothing is built for a run that cannot start
            start_up.enter("building the demo's dataset, if there is none yet")
            plan = _with_demo_data(plan, ranks)
        ranks.say(threads)
        code = _run(arguments, plan, ranks, inspection)
    except Exception as error:
        ranks.siblings.settle()
        if isinstance(error, UserError):
            process_group.stop()  # not after a fault: the other ranks may wait in a collective, and this one would join them
        raise
    process_group.leave_together(ranks)  # rank 0 has the last word
    process_group.stop()
    return code


def _plan_for(plan: RunPlan, ranks: AssumedRanks, inspection: Inspection) -> int:
    """Say what a run takes of machines that are not there; return the exit code."""
    if plan.is_complete and not check_objective(plan, ranks, None):
        plan = replace(plan, sizes=inspection.attempt(lambda: sizes_of(plan, ranks.device)))
        inspection.run((check for check in CHECKS if check.function is not check_attention), plan, ranks)
    warnings = [f"warning: {text}" for text in raise_if_fatal([inspection])]
    start_up.end()
    plan = replace(plan, execution=plan.execution.on_assumed(ranks.device, plan.recipe.model))
    lines = [*describe_training(plan, ranks), *describe_needs(plan, ranks), ranks.describe_time(plan), *warnings]
    print("\n".join([*lines, describe_configuration(plan.engine), f"This is a plan for {ranks.name}: nothing was trained."]))
    return 0


def _with_demo_data(plan: RunPlan, ranks: Ranks) -> RunPlan:
    """Add the demo's dataset to the plan, building it first if necessary."""
    folder = ranks.on_main(demo.prepare_sample)
    inspection = Inspection(ranks.rank)
    opened = inspection.attempt(lambda: open_data([str(folder)], None, plan.recipe))
    gather_findings(inspection, ranks)
    data, eval_data = opened
    ranks.say(demo.explain(plan.recipe.name))
    return replace(plan, data=data, eval_data=eval_data)


def _run(arguments: argparse.Namespace, plan: RunPlan, ranks: Ranks, inspection: Inspection) -> int:
    """Run the checks that need all ranks, then train; return the exit code."""
    # What the run needs of the device.
    start_up.enter("checking model, memory, disk and checkpoints")
    inspection.run(CHECKS, plan, ranks)
    if plan.is_complete and not check_objective(plan, ranks, None):  # else nothing can be built
        plan = replace(plan, sizes=inspection.attempt(lambda: sizes_of(plan, ranks.device)))
        inspection.run(CHECKS, plan, ranks)
    inspection.facts |= _facts(plan)

    # Where the run begins: a new folder, or a checkpoint; all ranks decide it together.
    disks = Disks(ranks)
    if all(ranks.gather(plan.is_complete)):
        start, disks = find_start(plan, arguments, ranks, inspection)
        plan = replace(plan, start=start)
        inspection.run(CHECKS, plan, ranks, disks)

    # Problems on any rank end the run here, reported once.
    warnings = _warnings(inspection, plan, ranks)
    if arguments.dry_run:
        start_up.end()
        plan, _ = _compare(arguments, plan, ranks)
        lines = [*_describe(plan, disks), *describe_needs(plan, ranks), *warnings, describe_configuration(plan.engine)]
        end = f"All checks passed. Nothing was trained, and nothing was written to {plan.start.output}."
        ranks.say("\n".join([*lines, end]))
        return 0
    if _is_trained(plan, ranks):
        return 0

    # The output folder is locked: no other run trains in it.
    with ExitStack() as stack:
        disks.on_each(lambda: stack.enter_context(held(plan.start.output)))
        start = find_start_again(plan, arguments, disks)
        if start != plan.start:  # a run that was ending has saved meanwhile
            plan, again = replace(plan, start=start), Inspection(ranks.rank)
            again.run(CHECKS, plan, ranks, disks)
            warnings = _warnings(again, plan, ranks)
            if _is_trained(plan, ranks):
                return 0
        plan, record = _compare(arguments, plan, ranks)
        if plan.start.checkpoint is not None:  # a smaller run.keep makes room for what follows
            CheckpointStore(plan.start.output, plan.recipe.run.keep).prune(disks, plan.start.checkpoint)
        disks.on_each(lambda: prepare(plan.start, record, plan.data.tokenizer_folder))
        ranks.say("\n".join([*_describe(plan, disks), *warnings]))
        outcome = _train(plan, disks)
        _note_end(outcome, plan, disks)
    return _conclude(outcome, plan, disks)


def _warnings(inspection: Inspection, plan: RunPlan, ranks: Ranks) -> list[str]:
    """Lines with the warnings of all ranks; ``UserError`` where any of them cannot continue."""
    return [f"warning: {text}" for text in gather_findings(inspection, ranks, plan.datasets)]


def _is_trained(plan: RunPlan, ranks: Ranks) -> bool:
    """Tell whether the run starts from its last step, and say so."""
    output, step = plan.start.output, plan.start.step
    is_trained = step >= plan.recipe.optimization.max_steps
    if is_trained:
        ranks.say(
            f"{output} is already trained to step {step}. Continue with a larger --max_steps, or in a new --output_dir."
        )
    return is_trained


def _facts(plan: RunPlan) -> dict:
    """Collect what must be the same on all ranks."""
    facts = {}
    if plan.execution is not None:
        facts |= flatten("the command line", asdict(plan.execution))
    if plan.is_complete:
        facts |= {DATA: plan.data.checksum, "the tokenizer's checksum": plan.data.tokenizer.fingerprint}
        facts |= {EVAL_DATA: plan.eval_data.checksum} if plan.eval_data else {}
        facts |= flatten("recipe", plan.recipe.as_json()) | flatten("DeepSpeed's configuration", plan.engine.engine)
    return facts


def _train(plan: RunPlan, disks: Disks) -> Outcome:
    """Build the module and train it."""
    import torch

    recipe, run = plan.recipe, plan.recipe.run
    start_up.enter("building the model")
    torch.manual_seed(run.seed)
    module = recipe.objective.build(recipe.model, plan.data.tokenizer, recipe.data.seq_length, plan.execution.attention)
    if plan.init_from and plan.start.checkpoint is None:
        load_pretrained_weights(module, plan.init_from)
    with Watchdog(disks.ranks, plan.start.output / HANG, run.hang_timeout, run.lost_timeout) as watchdog:
        return Trainer(plan, module, disks, watchdog).train()


def _compare(arguments: argparse.Namespace, plan: RunPlan, ranks: Ranks) -> tuple[RunPlan, dict]:
    """The plan with what changed since the run's earlier starts, and ``run.json`` with this one; alike on all ranks."""
    start, settings = plan.start, settings_of(arguments, plan, ranks)

    def compare() -> tuple[history.Changes, dict]:
        earlier = history.earlier_starts(start)
        changes = history.changes_since(earlier, settings, start.step)
        return changes, history.continued(earlier, settings, start, changes)

    changes, record = ranks.on_main(compare)
    return replace(plan, changes=changes), record


def _describe(plan: RunPlan, disks: Disks) -> list[str]:
    """Lines at the start: what is trained and what has changed; the learning rate on both sides of a schedule's jump."""
    return [*describe_run(plan, disks), *_describe_jump(plan)]


def _describe_jump(plan: RunPlan) -> list[str]:
    """The learning rate before and after a resume with another schedule; empty if it is the same one."""
    names, step = ("learning_rate", "warmup_steps", "max_steps"), plan.start.step
    now = [getattr(plan.recipe.optimization, name) for name in names]
    changed = [plan.changes.get(f"optimization.{name}") for name in names]
    if not any(changed):
        return []
    before = [pair[0] if pair else value for pair, value in zip(changed, now, strict=True)]
    old, new = learning_rate(step, *before), learning_rate(step + 1, *now)
    return [
        f"The learning rate was {old:.3g} at step {step} and is {new:.3g} at step {step + 1}, as its schedule has changed"
    ]


def _note_end(outcome: Outcome, plan: RunPlan, disks: Disks) -> None:
    """Write into ``run.json`` where this start ended; without it the run is as good, so a failure is only said."""

    def note() -> str:
        try:
            history.end(plan.start.output, outcome.step)
            return ""
        except (OSError, UserError) as error:
            return disks.at_host(str(error))

    for failure in filter(None, disks.on_each(note)):
        disks.ranks.complain(f"where this start ended is not in run.json ({failure}).")


def _conclude(outcome: Outcome, plan: RunPlan, disks: Disks) -> int:
    """Say how the run ended; return the exit code."""
    ranks, output = disks.ranks, plan.start.output
    if outcome.failure:
        ranks.complain(f"stopped at step {outcome.step}: {outcome.failure}")
        return 1
    if not outcome.is_saved:
        ranks.complain(f"step {outcome.step} is not in a checkpoint, {outcome.lost}")
        return 1
    if outcome.request.stops:
        of = f"{outcome.step} of {plan.recipe.optimization.max_steps}"
        ranks.say(f"\nStopped by {outcome.request.cause} at step {of}; everything is saved in {output}.")
        ranks.say("The same command resumes from here.")
        return outcome.request.exit_code
    lines = read_metrics(output / METRICS) if ranks.is_main else []
    ranks.say(f"\nDone: {outcome.step} steps. Training loss {_fall(lines, 'loss')} nats")
    if any("eval_loss" in line for line in lines):
        ranks.say(f"Validation loss {_fall(lines, 'eval_loss')} nats")
    ranks.say(f"Everything is in {output}: metrics.jsonl, tensorboard/, checkpoints/")
    if not disks.is_one:
        commands = "\n  ".join(disks.gather_commands(output))
        ranks.say(f"Other hosts have their part of each checkpoint on disks of their own. To copy them here:\n  {commands}")
    ranks.say(f"To use the model: {invocation('convert_to_hf', output, 'OUT')}")
    return 0


def _fall(lines: list[dict], name: str) -> str:
    """Format the first and last value of a metric, over all sessions of a run."""
    values = [line[name] for line in lines if line.get(name) is not None and "event" not in line]
    return f"{values[0]:.4f} → {values[-1]:.4f}" if values else "unknown"


if __name__ == "__main__":
    run(lambda: pretrain(*build_parser().examine(), before))
