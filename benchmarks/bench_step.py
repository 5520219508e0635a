"""Time training steps: python benchmarks/bench_step.py --attention sdpa eager --micro_batch_size 32 64

Every combination of what the command line lists (recipes, DeepSpeed files, back-ends, precisions, ZeRO stages, activation
checkpointing, micro-batches, sizes) is measured in a process of its own, on this machine's GPU or CPUs. The columns:

    ms          of a step as it runs in training, without waiting for the device: the median of --steps
    tokens/s    padding left out
    MFU         operations a second as a share of the device's 16-bit peak (– if that is unknown, or in fp32). Executed
                operations are counted from shapes (models/mpnet/sizes.py); what is recomputed or seen by nobody is not
    data … optimizer   ms of the parts of other steps, each followed by a synchronisation: their sum is a little more
    first s     the first step, including compilation
    peak MiB    the most since the process started: of tensors on a GPU, else of the process's resident memory
    step MiB    the most that a step takes beyond what is held between steps (weights, gradients, optimizer)
    × first     ms, and step MiB, relative to the first line

``timed_step.py`` says what a step is, and what is measured when. Batches come from a dataset as in training: random ids
(random_dataset.py), or ``--data DIR``. With --rounds the configurations take turns, and medians are reported: always use it
for comparisons on a shared machine.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import fields

from report import NO_FIGURE, add_json_argument, print_table, show, write_results
from step_configuration import (
    Configuration,
    add_configuration_arguments,
    add_data_arguments,
    configurations_of,
    opened_data,
    positive,
)
from timed_step import PARTS, MeasurementFailed, measure_elsewhere

from mpnet_ds.command_line import Parser, run
from mpnet_ds.quiet import quiet_libraries

MIB = 2**20
COLUMNS = {
    "recipe": "recipe",
    "deepspeed_config": "DeepSpeed's file",
    "layers": "layers",
    "hidden_size": "width",
    "seq_length": "tokens",
    "precision": "precision",
    "zero_stage": "ZeRO",
    "optimizer": "optimizer",
    "checkpointed_layers": "checkpointed",
    "attention": "attention",
    "attention_dropout": "its dropout",
    "compiled": "compiled",
    "micro_batch_size": "sequences",
}
"""What distinguishes configurations: field of a result → heading."""
ALWAYS = ("precision", "zero_stage", "attention", "micro_batch_size")
MEASURED = ("step_seconds", "first_step_seconds", *(f"{part}_seconds" for part in PARTS))
MEASURED += ("peak_bytes", "held_bytes", "step_bytes")


def main() -> int:
    example = "python benchmarks/bench_step.py --recipe mpnet-base --micro_batch_size 32 64 --attention sdpa eager"
    parser = Parser("Time training steps: tokens/s, MFU, memory, and where the time goes.", example)
    add_configuration_arguments(parser)
    add_data_arguments(parser)
    parser.add_argument("--steps", type=positive, default=10, metavar="N", help="steps of a median (10)")
    parser.add_argument("--rounds", type=positive, default=1, metavar="N", help="times that each is measured, in turns (1)")
    add_json_argument(parser)
    arguments = parser.parse_args()
    quiet_libraries()
    configurations = configurations_of(arguments)
    with opened_data(arguments) as data:
        rows, failures = measure_all(configurations, data, arguments.steps, arguments.rounds)
    if rows:
        print_rows(rows)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    write_results(arguments.json, rows, failed=failures)
    return 1 if failures else 0


def measure_all(configurations: list[Configuration], data: str, steps: int, rounds: int) -> tuple[list[dict], list[str]]:
    """Measure a row for each configuration; also return a line for each failure."""
    found: dict[Configuration, list[dict]] = {configuration: [] for configuration in configurations}
    failed: dict[Configuration, str] = {}
    for turn in range(rounds):
        for number, configuration in enumerate(found, 1):
            if configuration in failed:
                continue
            try:
                found[configuration].append(measure_elsewhere(configuration, data, steps))
            except MeasurementFailed as failure:
                print(failure.output, file=sys.stderr)
                failed[configuration] = f"{name_of(configuration)}: {failure}"
                continue
            progress = f"{turn * len(found) + number}/{rounds * len(found)}"
            seconds = found[configuration][-1]["step_seconds"]
            print(f"{progress} {name_of(configuration)}: {seconds * 1e3:,.1f} ms", file=sys.stderr, flush=True)
    return [derive(middle(rows)) for rows in found.values() if rows], list(failed.values())


def middle(rounds: list[dict]) -> dict:
    """Merge rows of one configuration by medians."""
    medians = {name: statistics.median(row[name] for row in rounds) for name in MEASURED if rounds[0][name] is not None}
    every = [seconds for row in rounds for seconds in row["all_step_seconds"]]
    skipped = sum(row["skipped_steps"] for row in rounds)
    return rounds[0] | medians | {"all_step_seconds": every, "skipped_steps": skipped, "rounds": len(rounds)}


def derive(row: dict) -> dict:
    """Add the rates that follow from times and sizes."""
    seconds, peak = row["step_seconds"], row["peak_flops"]
    rates = {
        "tokens_per_second": row["ranks"] * row["micro_batch_size"] * row["tokens_per_sequence"] / seconds,
        "flops_per_second": row["flops"] / seconds,  # of one rank
        "mfu": row["flops"] / seconds / peak if peak else None,
    }
    return row | rates


def name_of(configuration: Configuration) -> str:
    """Describe a configuration in a line."""
    words = []
    for field in fields(Configuration):
        value = getattr(configuration, field.name)
        if value != field.default:
            words.append(IN_WORDS.get(field.name, "{}").format(value))
    return ", ".join(words) or "as the recipe says"


IN_WORDS = {
    "attention_dropout": "dropout {} on its probabilities",
    "zero_stage": "ZeRO {}",
    "checkpointing": "checkpointing {}",
    "micro_batch_size": "{} sequences",
    "layers": "{} layers",
    "hidden_size": "width {}",
    "seq_length": "{} tokens",
    "compiled": "compiled",
    "ranks": "{} ranks",
    "threads": "{} thread(s)",
}


def print_rows(rows: list[dict]) -> None:
    """Print the table below a line of what all rows have in common."""
    varied = [name for name in COLUMNS if name in ALWAYS or len({str(row[name]) for row in rows}) > 1]
    first = rows[0]
    common = [f"{COLUMNS[name]} {first[name]}" for name in COLUMNS if name not in varied]
    print(f"{first['device']}; {', '.join(common)}; median of {first['steps']} steps, {first['rounds']} round(s)\n")
    head = [*(COLUMNS[name] for name in varied), *FIGURES]
    lines = [[*(str(row[name]) for name in varied), *(cell(row, first) for cell in FIGURES.values())] for row in rows]
    print_table(head, lines)
    if any(row["skipped_steps"] for row in rows):
        print("Some of the measured steps had non-finite gradients and were skipped: see skipped_steps.")


FIGURES: dict[str, Callable[[dict, dict], str]] = {
    "ms": lambda row, _: show(row["step_seconds"], ",.1f", 1e3),
    "× first": lambda row, first: show(row["step_seconds"] / first["step_seconds"]),
    "tokens/s": lambda row, _: show(row["tokens_per_second"], ",.0f"),
    "MFU": lambda row, _: show(row["mfu"], ".1%"),
    **{part: lambda row, _, part=part: show(row[f"{part}_seconds"], ",.1f", 1e3) for part in PARTS},
    "first s": lambda row, _: show(row["first_step_seconds"], ".1f"),
    "peak MiB": lambda row, _: show(row["peak_bytes"], ",.0f", 1 / MIB),
    "step MiB": lambda row, _: show(row["step_bytes"], ",.0f", 1 / MIB),
    "× first ": lambda row, first: show(row["step_bytes"] / first["step_bytes"]) if first["step_bytes"] else NO_FIGURE,
}
"""Heading → cell of a row, given the first row too."""


if __name__ == "__main__":
    run(main)
