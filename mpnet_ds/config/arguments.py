"""Flags of the command that trains, and the recipe with their values in it."""

import argparse
from dataclasses import replace

from mpnet_ds.config.execution import add_execution_arguments
from mpnet_ds.config.recipe import DEFAULT_RECIPE, DEMO_RECIPE, Recipe, load_recipe
from mpnet_ds.objectives import objective_of
from mpnet_ds.ranks.process_group import JOIN_TIMEOUT


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
        default=JOIN_TIMEOUT,
        metavar="SECONDS",
        help=f"wait for all ranks at the start for so long ({JOIN_TIMEOUT:g})",
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
        objective=objective_of(given["objective"], "--objective") if "objective" in given else recipe.objective,
        data=replace(recipe.data, **data),
        optimization=replace(recipe.optimization, **optimization),
        run=replace(recipe.run, **run),
    )
