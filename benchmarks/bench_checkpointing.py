"""Measures what activation checkpointing saves and costs: python benchmarks/bench_checkpointing.py

Prints for each configuration the most memory that a training step took beyond what was there before it (weights, gradients
and optimizer states after two other steps), on a processor by the kernel's count of resident memory, on a GPU by torch's of
allocated memory; and the time of a step. Each configuration has a process of its own. The first is what the others are
compared with. Times come from turns: every round measures each configuration once; the median counts.
"""

import argparse
import ctypes
import gc
import json
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from bench_step import prepare

from mpnet_ds.command_line import Parser, run
from mpnet_ds.training import processes
from mpnet_ds.training.recipe import Recipe, load_recipe

CONFIGURATIONS = ["zero2", "activation_checkpointing_every_2nd", "activation_checkpointing"]
CONFIGURATIONS += ["activation_checkpointing_partitioned", "activation_checkpointing_cpu"]
WARMUP_STEPS = 2


def main() -> None:
    parser = Parser(
        "Measure memory and time of activation checkpointing.", "python benchmarks/bench_checkpointing.py --rows 8"
    )
    shipped = [f"ds_configs/{name}.json" for name in CONFIGURATIONS]
    parser.add_argument("--deepspeed_config", nargs="+", default=shipped, metavar="FILE")
    parser.add_argument("--recipe", default="mpnet-base", metavar="NAME|FILE")
    parser.add_argument("--width", type=int, metavar="N", help="another width than the recipe's, with heads of 64")
    parser.add_argument("--rows", type=int, default=8, metavar="N")
    parser.add_argument("--steps", type=int, default=2, metavar="N", help="timed steps of a round")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # one configuration, in this process
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(measure(arguments)))
        return
    results = {path: [] for path in arguments.deepspeed_config}
    for _ in range(arguments.rounds):
        for path in results:
            results[path].append(measure_elsewhere(arguments, path))
    print_table({path: [statistics.median(column) for column in zip(*rows, strict=True)] for path, rows in results.items()})


def measure_elsewhere(arguments, path: str) -> list[float]:
    """``measure`` of one configuration in a new process."""
    command = [sys.executable, __file__, "--alone", "--deepspeed_config", path, "--recipe", arguments.recipe]
    command += ["--rows", str(arguments.rows), "--steps", str(arguments.steps)]
    command += ["--width", str(arguments.width)] if arguments.width else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(arguments) -> list[float]:
    """Bytes before the step, bytes that it took beyond them, seconds of a step."""
    ranks = processes.start()
    recipe = resized(load_recipe(arguments.recipe), arguments.width)
    prepared = prepare(recipe, arguments.deepspeed_config[0], "auto", arguments.rows, ranks.device)
    prepared.run(WARMUP_STEPS)
    before = memory_now(ranks.device)
    seconds = prepared.run(arguments.steps) / arguments.steps
    taken = memory_peak(ranks.device) - before
    processes.stop()
    return [before, taken, seconds]


def resized(recipe: Recipe, width: int | None) -> Recipe:
    if width is None:
        return recipe
    sizes = {"hidden_size": width, "num_attention_heads": width // 64, "intermediate_size": 4 * width}
    return replace(recipe, model=replace(recipe.model, **sizes))


def memory_now(device: torch.device) -> int:
    """Bytes in use; the peak begins anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # gives back what the allocator keeps of the steps before
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def memory_peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident("VmHWM")


def _resident(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def print_table(results: dict[str, list[float]]) -> None:
    width = max(len(Path(path).stem) for path in results)
    print(f"{'configuration':{width}}  before MiB  step MiB  of first  s/step  of first")
    _, first_bytes, first_seconds = next(iter(results.values()))
    for path, (before, taken, seconds) in results.items():
        print(
            f"{Path(path).stem:{width}}  {before / 2**20:10,.0f}  {taken / 2**20:8,.0f}  {taken / first_bytes:8.2f}"
            f"  {seconds:6.2f}  {seconds / first_seconds:8.2f}"
        )


if __name__ == "__main__":
    run(main)
