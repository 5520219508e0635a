"""The whole way from text to a model, with the commands that one would use for text of one's own.

Finished steps are kept: started again after an interruption, it continues.
"""

import os
import shlex
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mpnet_ds.command_line import Parser, words_of
from mpnet_ds.ranks.launchers import PORT


class Step(NamedTuple):
    """One command of the demo."""

    title: str
    result: Path | None
    """Is there once the command need not run again."""
    program: str
    arguments: list


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(
        "Go the whole way from text to a model on a built-in sample, in about three minutes on two CPU cores.",
        "mpnet-ds demo",
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs/demo"), metavar="DIR", help="where all goes (runs/demo)"
    )
    parser.add_argument("--max_steps", type=int, metavar="N", help="steps of the training (the recipe's 1500)")
    return parser


def main() -> int:
    """Run the steps that are still to do; returns the exit code of the first that fails, or 0."""
    arguments = build_parser().parse_args()
    import torch

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed's launcher need not warn of it
    steps = steps_of(arguments.output_dir, arguments.max_steps)
    for number, step in enumerate(steps, 1):
        print(f"\n== {number} of {len(steps)}  {step.title}", flush=True)
        shown, started = commands_of(step)
        print("$", shlex.join(shown), flush=True)
        if step.result is not None and step.result.exists():
            print(f"  {step.result} is there already")
        elif code := subprocess.run(started, check=False).returncode:
            return code if code > 0 else 128 - code
    print(_conclusion(arguments.output_dir))
    return 0


def steps_of(out: Path, max_steps: int | None) -> list[Step]:
    """The steps, with their results in ``out``."""
    tokenizer, data, training, weights, model = (out / name for name in ("tokenizer", "data", "run", "weights", "model"))
    fewer = [] if max_steps is None else ["--max_steps", max_steps]
    return [
        Step(
            "A tokenizer, from the documentation strings of Python's standard library",
            tokenizer,
            "train_tokenizer",
            ["--input", "builtin-sample", "--vocab_size", 4096, "--output", tokenizer],
        ),
        Step(
            "A dataset, one document in twenty held out for evaluation",
            data,
            "build_dataset",
            ["--input", "builtin-sample", "--tokenizer", tokenizer, "--output", data, "--holdout", 0.05],
        ),
        Step(
            "Pre-training, about two minutes on two CPU cores",
            model,
            "pretrain",
            ["--deepspeed_config", "zero2", "--recipe", "mpnet-tiny", "--data", data, "--output_dir", training, *fewer],
        ),
        Step("The shards of the checkpoint joined into one file", weights, "consolidate", [training, weights]),
        Step("Export to Hugging Face, checked against the training model", model, "convert_to_hf", [training, model]),
        Step("The export in plain transformers: the five likeliest words for each mask", None, "fill_mask", [model]),
    ]


def commands_of(step: Step) -> tuple[list[str], list[str]]:
    """A step as a user would type it, and with this Python, wherever it is installed."""
    arguments = list(map(str, step.arguments))
    if step.program != "pretrain":
        return (
            [*words_of(step.program), *arguments],
            [sys.executable, "-m", "mpnet_ds.programs.cli", step.program.replace("_", "-"), *arguments],
        )
    port = [] if _is_free(PORT) else ["--master_port", str(_free_port())]
    launcher, *script = words_of(step.program)
    module = ["--module", "mpnet_ds.training.pretrain"]
    return (
        [launcher, *port, *script, *arguments],
        [sys.executable, "-m", "deepspeed.launcher.runner", *port, *module, *arguments],
    )


def _is_free(port: int) -> bool:
    """Whether no other run listens there."""
    with socket.socket() as listener, suppress(OSError):
        listener.bind(("", port))
        return True
    return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def _conclusion(out: Path) -> str:
    return f"""
== Done. What is where
  {out}/tokenizer        the tokenizer                  {out}/data       the dataset
  {out}/run              metrics.jsonl, TensorBoard events (tensorboard --logdir {out}/run), checkpoints
  {out}/weights          model.safetensors              {out}/model      from_pretrained("{out}/model")
To start over: rm -r {out}. For your own text, see the README."""
