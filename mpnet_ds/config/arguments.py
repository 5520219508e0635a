"""Flags of the command that trains, and the recipe with their values in it. Imports no torch: ``--help`` is quick."""

import argparse

from mpnet_ds.attention_backends import AUTO, BACKENDS
from mpnet_ds.command_line import Parser, invocation
from mpnet_ds.config.foreign_names import OF_LAUNCHERS, our_name
from mpnet_ds.config.overrides import FLAGS, Override, read_overrides
from mpnet_ds.config.recipe import DEFAULT_RECIPE, DEMO_RECIPE, Recipe, examine_recipe
from mpnet_ds.errors import UserError
from mpnet_ds.objectives import OBJECTIVES
from mpnet_ds.objectives.model_section import MPNetSection
from mpnet_ds.ranks.launchers import JOIN_TIMEOUT
from mpnet_ds.validation import keys_of


def build_parser() -> Parser:
    """The parser of the command that trains."""
    what = "Pre-train a text encoder with DeepSpeed. Without --data it trains a demo on a built-in sample."
    example = f"{invocation('pretrain')} --deepspeed_config zero2 --data my-data --output_dir runs/first"
    parser = Parser(what, example, explain_flag)
    add_arguments(parser)
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command that trains."""
    add = parser.add_argument
    add("--deepspeed_config", required=True, metavar="NAME|FILE", help="DeepSpeed's JSON: zero2, zero3, … or a file")
    add("--recipe", metavar="NAME|FILE", help="model, objective, data, optimisation (mpnet-base with --data)")
    add(
        "--data",
        nargs="+",
        metavar="DIR[:WEIGHT]",
        help="dataset to train on, or several to be mixed, by weight (a:0.7 b:0.3) or else by size; without it, a demo",
    )
    add(
        "--eval_data",
        nargs="+",
        metavar="DIR[:WEIGHT]",
        help="dataset to evaluate on (default: what --holdout split off the data)",
    )
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="any value of the recipe: optimization.weight_decay=0.1 model.hidden_size=512 (docs/configuration.md)",
    )
    add("--seq_length", type=int, metavar="N", help="tokens in a sequence")
    add("--sample_mode", metavar="stream|document|line", help="what a sequence holds")
    add("--isolate_documents", action="store_true", default=None, help="documents of a sequence do not see each other")
    add("--output_dir", metavar="DIR", help="where the run goes (default: a new folder in runs/)")
    add("--max_steps", type=int, metavar="N", help="steps")
    add("--objective", metavar="mpnet|mlm|plm", help="what is predicted from what")
    add("--micro_batch_size", type=int, metavar="N", help="sequences at once on each rank")
    add("--global_batch_size", type=int, metavar="N", help="sequences of one step")
    add("--learning_rate", type=float, metavar="X", help="the highest")
    add("--seed", type=int, metavar="N")
    add("--save_interval", type=int, metavar="N", help="steps between checkpoints")
    add("--eval_interval", type=int, metavar="N", help="steps between evaluations")
    add("--log_interval", type=int, metavar="N", help="steps between lines of metrics.jsonl")
    add("--keep", type=int, metavar="N", help="newest checkpoints to keep, besides the best (2)")
    add("--hang_timeout", type=float, metavar="SECONDS", help="end a run without progress for so long (1800; 0: never)")
    add(
        "--lost_timeout",
        type=float,
        metavar="SECONDS",
        help="end a run that hears nothing of a rank for so long (120; 0: never)",
    )
    add(
        "--join_timeout",
        type=float,
        default=JOIN_TIMEOUT,
        metavar="SECONDS",
        help=f"wait for all ranks at the start for so long ({JOIN_TIMEOUT:g})",
    )
    add("--resume", default="auto", metavar="auto|never|DIR", help="continue the run in --output_dir (auto)")
    add(
        "--init_from",
        metavar="DIR|NAME",
        help="start from these weights: a folder that convert_from_hf made of any MPNet, or a name of the hub",
    )
    add("--attention", default=AUTO, metavar="|".join(BACKENDS), help="what computes attention (auto)")
    add("--compile", action="store_true", help="compile the layers at the start (torch.compile)")
    add("--profile", type=int, metavar="STEP", help="trace this step into OUT/profile")
    add("--dry_run", action="store_true", help="check everything, print the resolved settings and stop")
    add("--assume", metavar="HOSTSxGPUSxKIND", help="with --dry_run: plan for GPUs that are not here, such as 2x8xH100")
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # launchers add it, in either spelling


def overrides_of(arguments: argparse.Namespace) -> tuple[dict[str, Override], list[str]]:
    """The recipe's values that the command line gives, by key, and what is wrong with others."""
    given = {key: getattr(arguments, flag.removeprefix("--")) for key, flag in FLAGS.items()}
    flags = {key: Override(value, FLAGS[key]) for key, value in given.items() if value is not None}
    return read_overrides(arguments.set, flags)


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe with the command line's values in it; ``UserError`` with everything that is wrong."""
    recipe, findings = examine_recipe_of(arguments)
    if findings:
        raise UserError(*findings)
    return recipe


def examine_recipe_of(arguments: argparse.Namespace, is_complete: bool = True) -> tuple[Recipe, list[str]]:
    """The valid part of the recipe with the command line's values in it, and what is wrong with the rest.

    ``is_complete``: false where other words of the command line are wrong, which may have been meant for any value.
    """
    overrides, findings = overrides_of(arguments)
    name = arguments.recipe or (DEFAULT_RECIPE if arguments.data else DEMO_RECIPE)
    recipe, more = examine_recipe(name, overrides, is_complete and not findings)
    return recipe, findings + more


def explain_flag(flag: str, *words: str) -> str | None:
    """What to write instead of a flag that does not exist, with the words after it, where that is known."""
    name = flag.removeprefix("--").replace("-", "_")
    if name == "deepspeed":  # of programs that call deepspeed.add_config_arguments, and of transformers' Trainer
        return f"Write --deepspeed_config {words[0]}." if words else "Leave it out: DeepSpeed always trains."
    if name in OF_LAUNCHERS:
        return "It is for the launcher: write it before the script."
    of_objectives = (key for objective in OBJECTIVES.values() for key in keys_of(objective, "objective"))
    keys = [
        key for key in (*keys_of(Recipe), *keys_of(MPNetSection, "model"), *of_objectives) if key.rpartition(".")[2] == name
    ]
    return f"Write --set {keys[0]}=VALUE." if keys else our_name(name)
