"""One pre-training run, from arguments to the last checkpoint: what ``launch/pretrain.py`` calls.

Everything that can be wrong with the input is found before a model is built:
recipe → DeepSpeed's JSON → data and tokenizer → output folder → model → training.
"""

import argparse
import json
import platform
import sys
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import mpnet_ds
from mpnet_ds.checkpoint.huggingface import weights_file
from mpnet_ds.data.dataset import PretrainingDataset
from mpnet_ds.data.mixture import MixtureDataset, open_datasets, parse_weighted
from mpnet_ds.errors import UserError
from mpnet_ds.model.sizes import parameter_count
from mpnet_ds.model.two_stream import check_config
from mpnet_ds.objectives import get_objective
from mpnet_ds.training import processes, sample
from mpnet_ds.training.control import EXIT_INTERRUPTED, EXIT_REQUEUE, Request
from mpnet_ds.training.deepspeed_config import EngineConfig, check_accepted, load_deepspeed_config, resolve
from mpnet_ds.training.metrics import FILE_NAME as METRICS
from mpnet_ds.training.metrics import read_metrics
from mpnet_ds.training.recipe import DEFAULT_RECIPE, DEMO_RECIPE, Recipe, load_recipe
from mpnet_ds.training.run_folder import Start, decide_start, free_output, held, identity, prepare
from mpnet_ds.training.trainer import Outcome, Trainer

EXIT_CODES = {Request.STOP: 0, Request.INTERRUPT: EXIT_INTERRUPTED, Request.REQUEUE: EXIT_REQUEUE}
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
    parser.add_argument("--resume", default="auto", metavar="auto|never|DIR", help="continue the run in --output_dir (auto)")
    parser.add_argument("--init_from", metavar="HF_DIR", help="start from the weights of a Hugging Face MPNet folder")
    parser.add_argument("--dry_run", action="store_true", help="check everything, print the resolved settings and stop")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher adds it


def pretrain(arguments: argparse.Namespace) -> int:
    """Runs to the end; returns the exit code."""
    recipe = recipe_of(arguments)
    raw = load_deepspeed_config(arguments.deepspeed_config)
    config = resolve(
        raw,
        recipe.optimization,
        processes.world_size(),
        processes.supported_precisions(),
        arguments.deepspeed_config,
        exact_micro_batch=arguments.micro_batch_size is not None,
    )
    data = eval_data = None
    if arguments.data:
        data, eval_data = open_data(arguments.data, arguments.eval_data, recipe)
    elif arguments.eval_data:
        raise UserError("--eval_data without --data: the demo has evaluation data of its own. Add --data DIR.")
    ranks = processes.start()
    try:
        if data is None:
            folder = ranks.on_main(sample.prepare_sample)
            data, eval_data = open_data([str(folder)], None, recipe)
            ranks.say(sample.DEMO_TEXT.format(recipe=recipe.name))
        code = _run(arguments, recipe, config, data, eval_data, ranks)
    except UserError:
        processes.stop()  # not after a fault: the other ranks may wait in a collective, and this one would join them
        raise
    processes.stop()
    return code


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe with the command line's values in it."""
    recipe = load_recipe(arguments.recipe or (DEFAULT_RECIPE if arguments.data else DEMO_RECIPE))
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    optimization = {name: given[name] for name in
                    ("max_steps", "micro_batch_size", "global_batch_size", "learning_rate") if name in given}  # fmt: skip
    run_names = ("seed", "save_interval", "eval_interval", "log_interval", "keep", "hang_timeout")
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
    evaluation = open_datasets(eval_parts, **options)
    if evaluation.tokenizer.fingerprint != training.tokenizer.fingerprint:
        names = (
            f"{evaluation.tokenizer_folder.parent} was built with another tokenizer than {training.tokenizer_folder.parent}"
        )
        raise UserError(f"{names}: build both with the same --tokenizer.")
    return training, evaluation


def _run(arguments, recipe: Recipe, config: EngineConfig, data, eval_data, ranks) -> int:
    run_identity = identity(recipe, data.tokenizer.fingerprint, data.checksum)
    model_config = recipe.model_config(data.tokenizer.vocab_size)
    check_config(model_config)
    check_accepted(config.engine, arguments.deepspeed_config)
    if arguments.init_from:
        weights_file(arguments.init_from)
    start = ranks.on_main(lambda: _find_start(arguments, recipe, config, run_identity, ranks.world_size))
    output = start.output
    record = _record(arguments, recipe, config, run_identity, model_config, ranks)
    if arguments.dry_run:
        ranks.say(json.dumps(record, indent=2))
        return 0
    if start.step >= recipe.optimization.max_steps:
        ranks.say(
            f"{output} is trained to update {start.step} already. Train on with --max_steps, or take a new --output_dir.",
        )
        return 0
    with ExitStack() as stack:
        ranks.on_main(lambda: stack.enter_context(held(output)))
        ranks.on_main(lambda: prepare(start, record, data.tokenizer_folder))
        _announce(recipe, config, data, eval_data, model_config, start, ranks)
        outcome = _train(arguments, recipe, config, model_config, data, eval_data, start, ranks)
    return _conclude(outcome, recipe, output, ranks)


def _find_start(arguments, recipe: Recipe, config: EngineConfig, run_identity, world_size: int) -> Start:
    output = Path(arguments.output_dir) if arguments.output_dir else None
    may_continue = arguments.resume != "never"
    output = output or free_output(recipe.name, run_identity, recipe.optimization.max_steps, may_continue)
    return decide_start(output, arguments.resume, run_identity, world_size, config.zero_stage, config.precision)


def _train(arguments, recipe, config, model_config, data, eval_data, start: Start, ranks):
    import torch

    from mpnet_ds.checkpoint.huggingface import load_pretrained_weights
    from mpnet_ds.model import MPNetForPretraining

    torch.manual_seed(recipe.run.seed)
    model = MPNetForPretraining(model_config, recipe.objective)
    if arguments.init_from and start.checkpoint is None:
        load_pretrained_weights(model, arguments.init_from)
    return Trainer(recipe, config, model, data, eval_data, start, ranks).train()


def _record(arguments, recipe, config: EngineConfig, run_identity, model_config, ranks) -> dict:
    """Everything that is needed to repeat the run."""
    return {
        "command": " ".join(sys.argv),
        "arguments": {name: value for name, value in vars(arguments).items() if name != "local_rank"},
        "recipe": asdict(recipe),
        "deepspeed_config": config.engine,
        "monitors": config.monitors,
        "batch": asdict(config.batch),
        "precision": config.precision,
        "model_config": model_config.to_diff_dict(),
        "parameters": parameter_count(model_config),
        "world_size": ranks.world_size,
        "device": str(ranks.device),
        "identity": run_identity,
        "versions": {"mpnet_ds": mpnet_ds.__version__, "python": platform.python_version()}
        | {package: version(package) for package in PACKAGES},
    }


def _announce(recipe, config: EngineConfig, data, eval_data, model_config, start: Start, ranks) -> None:
    batch = config.batch
    parameters, pieces = parameter_count(model_config), data.tokenizer.vocab_size
    sizes = f"{batch.micro_batch_size} × {batch.accumulation_steps} accumulated × {ranks.world_size} rank(s)"
    ranks.say(f"Recipe {recipe.name}, objective {recipe.objective}: {parameters:,} parameters, {pieces:,} pieces")
    ranks.say(f"Data {data.describe()}")
    if eval_data is None:
        ranks.say("No evaluation: not all of the data has a holdout. Name one with --eval_data, or build with --holdout.")
    ranks.say(f"ZeRO {config.zero_stage} in {config.precision} on {ranks.device.type}")
    ranks.say(f"{batch.global_batch_size} rows an update = {sizes}")
    for checkpoint, reason in start.damaged:
        ranks.say(f"warning: {checkpoint.name} is damaged and set aside: {reason}")
    if start.checkpoint is not None:
        ranks.say(f"Continuing from {start.checkpoint} at update {start.step}")
    if start.conversion:
        ranks.say(f"The checkpoint is converted: {start.conversion}")
    ranks.say(f"Output {start.output}")


def _conclude(outcome: Outcome, recipe: Recipe, output: Path, ranks) -> int:
    """Says how it ended; returns the exit code."""
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
        return EXIT_CODES[outcome.request]
    lines = read_metrics(output / METRICS) if ranks.is_main else []
    ranks.say(f"\nDone: {outcome.step} updates. Training loss {_fall(lines, 'loss')} nats")
    if any("eval_loss" in line for line in lines):
        ranks.say(f"Held-out loss {_fall(lines, 'eval_loss')} nats")
    ranks.say(f"Everything lies in {output}: metrics.jsonl, tensorboard/, checkpoints/")
    ranks.say(f"To use the model: python tools/convert_to_hf.py {output} OUT")
    return 0


def _fall(lines: list[dict], name: str) -> str:
    """First and last value of a metric, over all sessions of a run."""
    values = [line[name] for line in lines if line.get(name) is not None and "event" not in line]
    return f"{values[0]:.4f} → {values[-1]:.4f}" if values else "unknown"
