"""One pre-training run, from arguments to the last checkpoint: what ``launch/pretrain.py`` calls.

Everything that can be wrong with the input is found before a model is built, and said at once (see inspection.py):
recipe, DeepSpeed's JSON, data and tokenizer → the ranks connect → output folder, disk, memory → model → training.
"""

import argparse
import platform
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import mpnet_ds
from mpnet_ds.config.deepspeed_config import (
    EngineConfig,
    check_accepted,
    examine,
    name_deprecated,
    read_deepspeed_config,
    resolve,
)
from mpnet_ds.config.execution import Execution, add_execution_arguments, execution_of
from mpnet_ds.config.recipe import DEFAULT_RECIPE, DEMO_RECIPE, Recipe, load_recipe
from mpnet_ds.data.samples.dataset import PretrainingDataset
from mpnet_ds.data.samples.mixture import MixtureDataset, open_datasets, parse_weighted
from mpnet_ds.errors import UserError
from mpnet_ds.hub.read_folder import check_start, load_pretrained_weights
from mpnet_ds.lasting_output import outlive_readers
from mpnet_ds.machine import capacity_of
from mpnet_ds.metrics_file import FILE_NAME as METRICS
from mpnet_ds.metrics_file import read_metrics
from mpnet_ds.models.attention.backend import choose_backend
from mpnet_ds.models.mpnet.model import check_config
from mpnet_ds.models.mpnet.sizes import parameter_count
from mpnet_ds.objectives import get_objective
from mpnet_ds.preflight.checks import (
    check_build_locks,
    check_disk,
    check_hostfile,
    check_memory,
    check_slots,
    check_values,
    checkpoints_at_once,
    compiled_ops,
    memory_of,
    workload_of,
)
from mpnet_ds.preflight.inspection import DATA, EVAL_DATA, Finding, Inspection, agree, conclude, flatten
from mpnet_ds.preflight.memory_estimate import Workload, checkpoint_bytes
from mpnet_ds.quiet import quiet_libraries
from mpnet_ds.ranks import process_group
from mpnet_ds.ranks.disks import Disks
from mpnet_ds.ranks.watchdog import FOLDER as HANG
from mpnet_ds.ranks.watchdog import Watchdog
from mpnet_ds.run import demo
from mpnet_ds.run.report import describe_configuration, describe_disk, describe_memory, describe_run
from mpnet_ds.run.resume import decide_again, find_destination
from mpnet_ds.run.run_folder import (
    Start,
    held,
    prepare,
)
from mpnet_ds.training.trainer import Outcome, Trainer

YEAR = 365 * 24 * 3600.0  # seconds
PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``launch/pretrain.py``."""
    parser.add_argument("--deepspeed_config", required=True, metavar="FILE", help="DeepSpeed's JSON: ZeRO, precision, …")
    parser.add_argument(
        "--recipe", metavar="NAME|FILE", help="model, objective, data, optimisation (mpnet-base with --data)"
    )
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="DIR[:WEIGHT]",
        help="dataset to train on, or several to be mixed, by weight (a:0.7 b:0.3) or else by size; without it, a demo",
    )
    parser.add_argument(
        "--eval_data",
        nargs="+",
        metavar="DIR[:WEIGHT]",
        help="dataset to evaluate on (default: what --holdout split off the data)",
    )
    parser.add_argument("--seq_length", type=int, metavar="N", help="tokens in a row")
    parser.add_argument("--sample_mode", metavar="stream|document|line", help="what a row holds")
    parser.add_argument(
        "--isolate_documents", action="store_true", default=None, help="documents of a row do not see each other"
    )
    parser.add_argument("--output_dir", metavar="DIR", help="where the run goes (default: a new folder in runs/)")
    parser.add_argument("--max_steps", type=int, metavar="N", help="updates")
    parser.add_argument("--objective", metavar="mpnet|mlm|plm", help="what is predicted from what")
    parser.add_argument("--micro_batch_size", type=int, metavar="N", help="rows at once on each rank")
    parser.add_argument("--global_batch_size", type=int, metavar="N", help="rows of one update")
    parser.add_argument("--learning_rate", type=float, metavar="X", help="the highest")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--save_interval", type=int, metavar="N", help="updates between checkpoints")
    parser.add_argument("--eval_interval", type=int, metavar="N", help="updates between evaluations")
    parser.add_argument("--log_interval", type=int, metavar="N", help="updates between lines of metrics.jsonl")
    parser.add_argument("--keep", type=int, metavar="N", help="newest checkpoints to keep, besides the best (2)")
    parser.add_argument(
        "--hang_timeout", type=float, metavar="SECONDS", help="end a run without progress for so long (1800; 0: never)"
    )
    parser.add_argument(
        "--lost_timeout",
        type=float,
        metavar="SECONDS",
        help="end a run that hears nothing of a rank for so long (120; 0: never)",
    )
    parser.add_argument(
        "--join_timeout",
        type=float,
        default=process_group.JOIN_TIMEOUT,
        metavar="SECONDS",
        help=f"wait for all ranks at the start for so long ({process_group.JOIN_TIMEOUT:g})",
    )
    parser.add_argument("--resume", default="auto", metavar="auto|never|DIR", help="continue the run in --output_dir (auto)")
    parser.add_argument(
        "--init_from",
        metavar="DIR",
        help="start from these weights: a folder that tools/convert_from_hf.py made of any MPNet",
    )
    add_execution_arguments(parser)
    parser.add_argument("--dry_run", action="store_true", help="check everything, print the resolved settings and stop")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher adds it


def pretrain(arguments: argparse.Namespace) -> int:
    """Runs to the end; returns the exit code."""
    outlive_readers()
    quiet_libraries()
    placement = process_group.place()
    inspection = Inspection(placement.rank)
    inspection.facts |= _versions()
    inspection.add(check_hostfile())
    inspection.add(check_slots(placement))
    recipe = inspection.attempt(lambda: recipe_of(arguments))
    execution = inspection.attempt(lambda: execution_of(arguments))
    if execution is not None and recipe is not None:
        inspection.add(execution.check_steps(recipe.optimization.max_steps))
    config = _resolve_config(arguments, recipe, placement.world_size, inspection)
    data, eval_data = _open_given_data(arguments, recipe, inspection)
    if inspection.is_fatal and placement.world_size == 1:
        conclude([inspection])
    ranks = process_group.start(arguments.join_timeout)
    execution = execution and inspection.attempt(lambda: execution.on(ranks.device))
    try:
        if recipe is not None:
            process_group.wait_for_each_other(2 * recipe.run.hang_timeout or YEAR)
        if not arguments.data:
            agree(inspection, ranks)  # nothing is built for a run that cannot start
            folder = ranks.on_main(demo.prepare_sample)
            data, eval_data = open_data([str(folder)], None, recipe)
            ranks.say(demo.DEMO_TEXT.format(recipe=recipe.name))
        code = _run(arguments, recipe, config, execution, data, eval_data, ranks, inspection)
    except UserError:
        process_group.stop()  # not after a fault: the other ranks may wait in a collective, and this one would join them
        raise
    process_group.leave_together(ranks)  # rank 0 has the last word
    process_group.stop()
    return code


def _resolve_config(arguments, recipe: Recipe | None, world_size: int, inspection: Inspection) -> EngineConfig | None:
    """DeepSpeed's JSON with nothing left to fill in, as far as it and the recipe are sound."""
    path = arguments.deepspeed_config
    content = inspection.attempt(lambda: read_deepspeed_config(path))
    if content is None:
        return None
    sound, findings = examine(content, path)
    inspection.add(map(Finding, findings))
    inspection.add(Finding(text, is_fatal=False) for text in name_deprecated(sound, path))
    if recipe is None:
        return None
    supported, exact = process_group.supported_precisions(), arguments.micro_batch_size is not None
    config = inspection.attempt(lambda: resolve(sound, recipe.optimization, world_size, supported, path, exact))
    if config is not None:
        inspection.attempt(lambda: check_accepted(config, path))
    return config


def _open_given_data(arguments, recipe: Recipe | None, inspection: Inspection) -> tuple:
    """The data that the command line names, as far as it can be opened."""
    if arguments.eval_data and not arguments.data:
        text = "--eval_data without --data: the demo has evaluation data of its own. Add --data DIR."
        inspection.add([Finding(text)])
    if recipe is None:
        return None, None
    values = check_values(recipe)
    inspection.add(values)
    if not arguments.data or any(finding.is_fatal for finding in values):
        return None, None
    opened = inspection.attempt(lambda: open_data(arguments.data, arguments.eval_data, recipe))
    return opened or (None, None)


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe with the command line's values in it."""
    recipe = load_recipe(arguments.recipe or (DEFAULT_RECIPE if arguments.data else DEMO_RECIPE))
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    optimization = {name: given[name] for name in
                    ("max_steps", "micro_batch_size", "global_batch_size", "learning_rate") if name in given}  # fmt: skip
    run_names = ("seed", "save_interval", "eval_interval", "log_interval", "keep", "hang_timeout", "lost_timeout")
    run = {name: given[name] for name in run_names if name in given}
    data = {name: given[name] for name in ("seq_length", "sample_mode", "isolate_documents") if name in given}
    return replace(
        recipe,
        objective=given.get("objective", recipe.objective),
        data=replace(recipe.data, **data),
        optimization=replace(recipe.optimization, **optimization),
        run=replace(recipe.run, **run),
    )


def open_data(
    data: list[str], eval_data: list[str] | None, recipe: Recipe
) -> tuple[PretrainingDataset | MixtureDataset, PretrainingDataset | MixtureDataset | None]:
    """Training and evaluation data, each one dataset or several (``DIR`` or ``DIR:WEIGHT``); all must share a tokenizer."""
    options = {
        "seed": recipe.run.seed,
        "seq_length": recipe.data.seq_length,
        "masking": get_objective(recipe.objective).masking(recipe.data.masking),
        "sample_mode": recipe.data.sample_mode,
        "packing": recipe.data.packing,
        "isolate_documents": recipe.data.isolate_documents,
    }
    training = open_datasets([parse_weighted(text) for text in data], **options)
    eval_parts = [parse_weighted(text) for text in eval_data] if eval_data else training.holdouts
    if not eval_parts:
        return training, None
    try:
        evaluation = open_datasets(eval_parts, **options)
    except UserError as error:
        cure = "" if eval_data else " Or name other data to evaluate on with --eval_data."
        raise UserError(f"evaluation data: {error}{cure}") from error
    if evaluation.tokenizer.fingerprint != training.tokenizer.fingerprint:
        names = (
            f"{evaluation.tokenizer_folder.parent} was built with another tokenizer than {training.tokenizer_folder.parent}"
        )
        raise UserError(f"{names}: build both with the same --tokenizer.")
    return training, evaluation


def _run(
    arguments, recipe: Recipe, config: EngineConfig, execution: Execution, data, eval_data, ranks, inspection: Inspection
) -> int:
    start, disks = None, Disks(ranks)
    is_ready = recipe is not None and config is not None and data is not None
    if execution is not None:
        inspection.facts |= flatten("the command line", asdict(execution))
    if is_ready:
        _inspect_run(arguments, recipe, config, execution, data, eval_data, ranks, inspection)
    if all(ranks.gather(is_ready)):
        start, disks = find_destination(arguments, recipe, config, data, ranks, inspection)
        if start is not None and execution is not None:
            inspection.add(execution.check_steps(recipe.optimization.max_steps, start.step))
        if start is not None and disks.is_keeper:
            _inspect_disk(recipe, config, data, start, disks, inspection)
    warnings = agree(inspection, ranks, [*_datasets(data), *_datasets(eval_data)])
    model_config = recipe.model_config(data.tokenizer.vocab_size)
    warnings = [f"warning: {text}" for text in warnings]
    if arguments.dry_run:
        lines = describe_run(recipe, config, execution, data, eval_data, model_config, start, disks)
        lines += [*_describe_needs(recipe, config, model_config, start, ranks), *warnings, describe_configuration(config)]
        ranks.say("\n".join([*lines, f"All checks passed. Nothing was trained, and nothing written to {start.output}."]))
        return 0
    if start.step >= recipe.optimization.max_steps:
        ranks.say(
            f"{start.output} is trained to update {start.step} already. "
            "Train on with --max_steps, or take a new --output_dir.",
        )
        return 0
    record = _record(arguments, recipe, config, execution, start.identity, model_config, ranks)
    record["data"] = _record_of_data(data)
    with ExitStack() as stack:
        disks.on_each(lambda: stack.enter_context(held(start.output)))
        start = decide_again(arguments, config, start, disks)
        disks.on_each(lambda: prepare(start, record, data.tokenizer_folder))
        ranks.say(
            "\n".join([*describe_run(recipe, config, execution, data, eval_data, model_config, start, disks), *warnings])
        )
        outcome = _train(arguments, recipe, config, execution, model_config, data, eval_data, start, disks)
    return _conclude(outcome, recipe, start.output, disks)


def _inspect_run(
    arguments, recipe: Recipe, config: EngineConfig, execution: Execution | None, data, eval_data, ranks, inspection
) -> None:
    """Everything that can be checked once the settings are known, the ranks connected and the data opened."""
    model_config = recipe.model_config(data.tokenizer.vocab_size)
    inspection.attempt(lambda: check_config(model_config))
    if execution is not None:
        inspection.attempt(lambda: choose_backend(execution.attention, ranks.device).check(ranks.device, model_config))
    if arguments.init_from:
        inspection.attempt(lambda: check_start(arguments.init_from, model_config, data.tokenizer))
    inspection.facts |= {DATA: data.checksum, "the tokenizer's checksum": data.tokenizer.fingerprint}
    if eval_data:
        inspection.facts[EVAL_DATA] = eval_data.checksum
    inspection.facts |= flatten("recipe", asdict(recipe)) | flatten("DeepSpeed's configuration", config.engine)
    inspection.add(check_build_locks(compiled_ops(config)))
    work = _workload(recipe, config, model_config, ranks)
    inspection.add(check_memory(work, capacity_of(ranks.device)))


def _inspect_disk(recipe: Recipe, config: EngineConfig, data, start: Start, disks: Disks, inspection: Inspection) -> None:
    """Whether this disk has room for its part of the checkpoints."""
    work = _workload(recipe, config, recipe.model_config(data.tokenizer.vocab_size), disks.ranks)
    size = checkpoint_bytes(work, len(disks.here_and_elsewhere[0]))
    inspection.add(check_disk(start.output, size, checkpoints_at_once(recipe)))


def _describe_needs(recipe: Recipe, config: EngineConfig, model_config, start: Start, ranks) -> list[str]:
    work = _workload(recipe, config, model_config, ranks)
    capacity = capacity_of(ranks.device)
    disk = describe_disk(start.output, checkpoint_bytes(work), checkpoints_at_once(recipe))
    return [*describe_memory(memory_of(work, capacity), capacity), disk]


def _workload(recipe: Recipe, config: EngineConfig, model_config, ranks) -> Workload:
    return workload_of(recipe, config, model_config, ranks.world_size, ranks.device.type != "cpu")


def _train(arguments, recipe, config, execution: Execution, model_config, data, eval_data, start: Start, disks: Disks):
    import torch

    from mpnet_ds.models import MPNetForPretraining

    torch.manual_seed(recipe.run.seed)
    model = MPNetForPretraining(model_config, recipe.objective, execution.attention)
    if arguments.init_from and start.checkpoint is None:
        load_pretrained_weights(model, arguments.init_from)
    run = recipe.run
    with Watchdog(disks.ranks, start.output / HANG, run.hang_timeout, run.lost_timeout) as watchdog:
        return Trainer(recipe, config, execution, model, data, eval_data, start, disks, watchdog).train()


def _record(arguments, recipe, config: EngineConfig, execution: Execution, run_identity, model_config, ranks) -> dict:
    """Everything that is needed to repeat the run."""
    return {
        "command": " ".join(sys.argv),
        "arguments": {name: value for name, value in vars(arguments).items() if name != "local_rank"},
        "recipe": asdict(recipe),
        "deepspeed_config": config.engine,
        "monitors": config.monitors,
        "batch": asdict(config.batch),
        "precision": config.precision,
        "execution": asdict(execution),
        "model_config": model_config.to_diff_dict(),
        "parameters": parameter_count(model_config),
        "world_size": ranks.world_size,
        "hosts": Counter(ranks.hosts),
        "device": str(ranks.device),
        "identity": run_identity,
        "versions": _versions(),
    }


def _record_of_data(data: PretrainingDataset | MixtureDataset) -> dict:
    """What model cards tell of the data; the datasets themselves may be gone by then."""
    datasets = zip(_datasets(data), getattr(data, "shares", [1]), strict=True)
    training = [{"folder": str(one.folder), "share": float(share)} | one.manifest.summary() for one, share in datasets]
    return {"training": training, "tokens_per_row": data.tokens_per_row}


def _datasets(data: PretrainingDataset | MixtureDataset | None) -> list[PretrainingDataset]:
    return getattr(data, "datasets", [data] if data else [])


def _versions() -> dict[str, str]:
    own = {"mpnet_ds": mpnet_ds.__version__, "python": platform.python_version()}
    return own | {package: version(package) for package in PACKAGES}


def _conclude(outcome: Outcome, recipe: Recipe, output: Path, disks: Disks) -> int:
    """Says how it ended; returns the exit code."""
    ranks = disks.ranks
    if outcome.failure:
        ranks.complain(f"stopped at update {outcome.step}: {outcome.failure}")
        return 1
    if not outcome.is_saved:
        ranks.complain(
            f"update {outcome.step} is not in a checkpoint; the same command goes on from the newest one there is."
        )
        return 1
    if outcome.request.stops:
        of = f"{outcome.step} of {recipe.optimization.max_steps}"
        ranks.say(f"\nStopped by {outcome.request.cause} at update {of}; everything is saved in {output}.")
        ranks.say("The same command goes on from here.")
        return outcome.request.exit_code
    lines = read_metrics(output / METRICS) if ranks.is_main else []
    ranks.say(f"\nDone: {outcome.step} updates. Training loss {_fall(lines, 'loss')} nats")
    if any("eval_loss" in line for line in lines):
        ranks.say(f"Held-out loss {_fall(lines, 'eval_loss')} nats")
    ranks.say(f"Everything lies in {output}: metrics.jsonl, tensorboard/, checkpoints/")
    if not disks.is_one:
        commands = "\n  ".join(disks.gather_commands(output))
        ranks.say(f"Other hosts have their part of each checkpoint on disks of their own. To bring them here:\n  {commands}")
    ranks.say(f"To use the model: python tools/convert_to_hf.py {output} OUT")
    return 0


def _fall(lines: list[dict], name: str) -> str:
    """First and last value of a metric, over all sessions of a run."""
    values = [line[name] for line in lines if line.get(name) is not None and "event" not in line]
    return f"{values[0]:.4f} → {values[-1]:.4f}" if values else "unknown"
