"""What a run is given, read by each rank alone: command line, recipe, DeepSpeed's JSON, data. All mistakes are collected."""

import argparse
from dataclasses import replace
from pathlib import Path

from mpnet_ds.config.arguments import examine_recipe_of, overrides_of
from mpnet_ds.config.deepspeed_config import EngineConfig, check_accepted, examine_file, name_deprecated, resolve
from mpnet_ds.config.execution import execution_of
from mpnet_ds.config.recipe import Recipe
from mpnet_ds.data.samples.mixture import examine_folders, open_datasets, parse_weighted
from mpnet_ds.errors import UserError
from mpnet_ds.files import obstacle_to_writing
from mpnet_ds.findings import Finding
from mpnet_ds.hub.locate import is_hub_name, locate_model
from mpnet_ds.preflight.assumed_ranks import AssumedRanks, assumed_ranks
from mpnet_ds.preflight.checks import CHECKS
from mpnet_ds.preflight.inspection import Inspection
from mpnet_ds.preflight.plan import Data, RunPlan
from mpnet_ds.ranks import process_group
from mpnet_ds.ranks.launchers import Placement


def assumed_ranks_of(arguments: argparse.Namespace) -> AssumedRanks | None:
    """The ranks that ``--assume`` names, if it is given."""
    if arguments.assume is None:
        return None
    if not arguments.dry_run:
        raise UserError("--assume is for planning: add --dry_run.")
    return assumed_ranks(arguments.assume)


def read_inputs(arguments: argparse.Namespace, ranks: Placement | AssumedRanks, inspection: Inspection) -> RunPlan:
    """Make the plan as far as the command line and files can be read; problems go into ``inspection``.

    What is valid of a recipe with mistakes is checked as well, and left out of the plan then.
    """
    recipe = inspection.take(examine_recipe_of(arguments, is_complete=not inspection.is_fatal))
    is_sound = not inspection.is_fatal
    _check_folders(arguments, inspection)
    execution = inspection.attempt(lambda: execution_of(arguments))
    engine = _engine_config(arguments, recipe, is_sound, ranks, inspection)
    plan = RunPlan(recipe, engine, execution, init_from=arguments.init_from)
    if arguments.eval_data and not arguments.data:
        text = "--eval_data without --data: the demo has evaluation data of its own. Add --data DIR."
        inspection.add([Finding(text)])
    if arguments.assume and not arguments.data:
        inspection.add([Finding("--assume without --data: a plan is for a dataset. Add --data DIR.")])
    if arguments.data:
        opened = inspection.attempt(lambda: open_data(arguments.data, arguments.eval_data, recipe))
        data, eval_data = opened or (None, None)
        plan = replace(plan, data=data, eval_data=eval_data)
        if data is None and arguments.init_from and inspection.rank == 0:  # else it is compared with the data
            inspection.attempt(lambda: is_hub_name(arguments.init_from) and locate_model(arguments.init_from))
    inspection.run(CHECKS, plan)
    return plan if is_sound else replace(plan, recipe=None, data=None, eval_data=None)


def _check_folders(arguments: argparse.Namespace, inspection: Inspection) -> None:
    """Look at folders of the command line that are opened only when all else is well."""
    for flag, named in (("--init_from", arguments.init_from), ("--resume", arguments.resume)):
        is_path = named is not None and named not in ("auto", "never") and (flag == "--resume" or not is_hub_name(named))
        if is_path and not Path(named).exists():
            inspection.add([Finding(f"{flag} {named}: there is no such folder.")])
    output = arguments.output_dir
    if output and inspection.rank == 0 and (obstacle := obstacle_to_writing(Path(output))):
        inspection.add([Finding(f"cannot write to {output}: {obstacle}. Choose another --output_dir.")])


def _engine_config(
    arguments, recipe: Recipe, is_sound: bool, ranks: Placement | AssumedRanks, inspection: Inspection
) -> EngineConfig | None:
    """Resolve DeepSpeed's JSON, as far as it and the recipe are valid; None unless they are (``is_sound``: the recipe)."""
    path = arguments.deepspeed_config
    if path is None:  # it is missing, which was said
        return None
    sound, findings = examine_file(path)
    inspection.add(map(Finding, findings))
    if sound is None:
        return None
    inspection.attempt(lambda: inspection.add(Finding(text, is_fatal=False) for text in name_deprecated(sound, path)))
    supported = ranks.precisions if isinstance(ranks, AssumedRanks) else process_group.supported_precisions()
    exact = "optimization.micro_batch_size" in overrides_of(arguments)[0]
    hidden_size, is_sound = inspection.attempt(lambda: recipe.model.hidden_size), is_sound and not findings
    options = (supported, path, exact, hidden_size, is_sound)
    config = inspection.attempt(lambda: resolve(sound, recipe.optimization, ranks.world_size, *options))
    if config is not None:
        inspection.attempt(lambda: check_accepted(config, path))
    return config


def open_data(data: list[str], eval_data: list[str] | None, recipe: Recipe) -> tuple[Data, Data | None]:
    """Open training and evaluation data, each one or several ``DIR`` or ``DIR:WEIGHT``; all must share a tokenizer.

    Raises ``UserError`` with everything that is wrong with any of the folders.
    """
    try:
        return _open_data(data, eval_data, recipe)
    except UserError as error:
        findings = examine_folders(data) + [f"evaluation data: {text}" for text in examine_folders(eval_data or [])]
        raise UserError(*dict.fromkeys([*findings, *error.findings])) from error


def _open_data(data: list[str], eval_data: list[str] | None, recipe: Recipe) -> tuple[Data, Data | None]:
    options = {
        "seed": recipe.run.seed,
        "seq_length": recipe.data.seq_length,
        "objective": recipe.objective,
        "sample_mode": recipe.data.sample_mode,
        "packing": recipe.data.packing,
        "isolate_documents": recipe.data.isolate_documents,
    }
    training = open_datasets([parse_weighted(text) for text in data], **options)
    eval_parts = [parse_weighted(text) for text in eval_data] if eval_data else training.holdouts
    if not eval_parts:
        return training, None
    options["objective"] = recipe.objective.at(recipe.optimization.max_steps)
    try:
        evaluation = open_datasets(eval_parts, **options)
    except UserError as error:
        cure = "" if eval_data else " Or give other evaluation data with --eval_data."
        raise UserError(*(f"evaluation data: {text}{cure}" for text in error.findings)) from error
    if evaluation.tokenizer.fingerprint != training.tokenizer.fingerprint:
        found, expected = evaluation.tokenizer_folder.parent, training.tokenizer_folder.parent
        raise UserError(f"{found} was built with a different tokenizer than {expected}: build both with one --tokenizer.")
    return training, evaluation
