"""How time and memory of a training step grow, on this machine: python benchmarks/bench_scaling.py

(``scaling.py`` instead computes what a run would cost on clusters.)

Each sweep changes one size and keeps the others: tokens of a sequence (128 … 4,096), layers, sequences of a micro-batch, or
ranks (each with the same micro-batch). The table has the time of a step relative to the first line, the same ratio of the
arithmetic, counted from shapes (models/mpnet/sizes.py; of one rank), and the quotient of the two: above 1, time grows
faster than arithmetic; below 1, slower, as it does if the smallest size is mostly overhead.

    step MiB    memory of a step beyond what is held between steps
    peak MiB    the most since the process started

The model is a small one on CPUs, and the recipe's on a GPU. Without GPUs ranks share the machine's cores: all runs of that
sweep use as many threads a rank as the largest number of ranks leaves to each.
"""

import sys
from argparse import Namespace
from dataclasses import dataclass, replace

import torch
from bench_step import MIB, measure_all
from report import add_json_argument, print_table, show, write_results
from step_configuration import Configuration, add_data_arguments, opened_data, positive

from mpnet_ds.command_line import Parser, run
from mpnet_ds.errors import UserError
from mpnet_ds.machine import available_cores
from mpnet_ds.quiet import quiet_libraries

TITLES = {"seq_length": "tokens", "layers": "layers", "micro_batch_size": "sequences", "ranks": "ranks"}
"""Field of a configuration that a sweep changes → heading."""
SMALL = {"hidden_size": 128, "layers": 2, "micro_batch_size": 2, "seq_length": 128}
"""Sizes of mpnet-base that are measured without a GPU."""
LARGE = {"hidden_size": None, "layers": 12, "micro_batch_size": 8, "seq_length": 512}


@dataclass(frozen=True)
class Sweep:
    """One size and its values."""

    field: str
    values: tuple[int, ...]
    base: Configuration

    @property
    def configurations(self) -> list[Configuration]:
        """One configuration for each value."""
        return [replace(self.base, **{self.field: value}) for value in self.values]


def main() -> int:
    has_gpu = torch.cuda.is_available()
    base = LARGE if has_gpu else SMALL
    parser = Parser("Time and memory of a step as sizes grow.", "python benchmarks/bench_scaling.py --seq_length 128 512")
    parser.add_argument("--recipe", default="mpnet-base", metavar="NAME|FILE", help="whose sizes are changed (mpnet-base)")
    parser.add_argument("--deepspeed_config", default="ds_configs/zero2.json", metavar="FILE")
    parser.add_argument("--attention", default="auto", metavar="NAME", help="back-end (auto)")
    parser.add_argument("--hidden_size", type=positive, default=base["hidden_size"], metavar="N")
    add_sweep_arguments(parser, has_gpu)
    parser.add_argument("--steps", type=positive, default=5, metavar="N", help="steps of a median (5)")
    parser.add_argument("--rounds", type=positive, default=1, metavar="N", help="times that each is measured, in turns (1)")
    add_data_arguments(parser, vocab_size=30527 if has_gpu else 4096)
    add_json_argument(parser)
    arguments = parser.parse_args()
    quiet_libraries()
    sweeps = sweeps_of(arguments, base)
    with opened_data(arguments) as data:
        rows, failures = measure_sweeps(sweeps, data, arguments)
    for sweep in sweeps:
        print_sweep(sweep.field, [row for row in rows if row["sweep"] == sweep.field])
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    write_results(arguments.json, rows, failed=failures)
    return 1 if failures else 0


def add_sweep_arguments(parser: Parser, has_gpu: bool) -> None:
    """Add the values of each sweep; an empty list skips it."""
    for field, values in {
        "seq_length": (128, 256, 512, 1024, 2048, 4096),
        "layers": (6, 12, 24) if has_gpu else (1, 2, 4, 8),
        "micro_batch_size": (8, 16, 32, 64) if has_gpu else (1, 2, 4, 8),
        "ranks": powers_of_2(torch.cuda.device_count()) if has_gpu else (1, 2),
    }.items():
        shown = " ".join(map(str, values))
        parser.add_argument(f"--{field}", type=positive, nargs="*", default=values, metavar="N", help=shown)


def powers_of_2(most: int) -> tuple[int, ...]:
    """List 1, 2, 4 … up to ``most``, which always comes last."""
    return tuple(sorted({1, most} | {2**k for k in range(most.bit_length()) if 2**k <= most}))


def sweeps_of(arguments: Namespace, base: dict) -> list[Sweep]:
    """Make the sweeps; raise ``UserError`` for an invalid one."""
    names = ("recipe", "deepspeed_config", "attention", "hidden_size")
    common = Configuration(**{name: getattr(arguments, name) for name in names})
    common = replace(common, **{name: base[name] for name in ("layers", "micro_batch_size", "seq_length")})
    gpus, threads = torch.cuda.device_count(), max(1, available_cores() // max([1, *arguments.ranks]))
    if gpus and max([1, *arguments.ranks]) > gpus:
        raise UserError(f"--ranks {max(arguments.ranks)}: this machine has {gpus} GPU(s), and each rank needs one.")
    sweeps = []
    for field in TITLES:
        own = {"micro_batch_size": 1} if field == "seq_length" and not gpus else {}
        own |= {"threads": threads} if field == "ranks" and not gpus else {}
        if values := getattr(arguments, field):
            sweeps.append(Sweep(field, tuple(values), replace(common, **own)))
    if not sweeps:
        raise UserError("no sizes to measure: give --seq_length, --layers, --micro_batch_size or --ranks values.")
    for sweep in sweeps:
        for configuration in sweep.configurations:
            configuration.check()
    return sweeps


def measure_sweeps(sweeps: list[Sweep], data: str, arguments: Namespace) -> tuple[list[dict], list[str]]:
    """Measure a row for each value of each sweep; also return a line for each failure."""
    rows, failures = [], []
    for sweep in sweeps:
        measured, failed = measure_all(sweep.configurations, data, arguments.steps, arguments.rounds)
        rows += [{"sweep": sweep.field, "value": row[sweep.field]} | row | growth(row, measured[0]) for row in measured]
        failures += failed
    return rows, failures


def growth(row: dict, first: dict) -> dict:
    """Compute ratios to the first row's figures; ``time_over_flops`` is 1 if time grows as arithmetic does."""

    def of(name: str) -> float | None:
        return row[name] / first[name] if row[name] is not None and first[name] else None

    time, flops = of("step_seconds"), of("flops")
    return {
        "time_ratio": time,
        "flops_ratio": flops,
        "time_over_flops": time / flops,
        "step_bytes_ratio": of("step_bytes"),
        "peak_bytes_ratio": of("peak_bytes"),
    }


def print_sweep(field: str, rows: list[dict]) -> None:
    """Print a table below what all its rows have in common."""
    if not rows:
        return
    first, others = rows[0], [name for name in TITLES if name != field]
    common = [f"{TITLES[name]} {first[name]}" for name in others]
    common += [f"{first['threads']} thread(s) a rank"] if first["device"] == "cpu" else []
    device = f"{first['device']}, {first['precision']}, {first['attention']}, ZeRO {first['zero_stage']}"
    print(f"\n{device}; width {first['hidden_size']}, {', '.join(common)}; median of {first['steps']} steps")
    head = [TITLES[field], "ms", "× first", "arithmetic", "time / arithmetic", "tokens/s", "step MiB", "× first", "peak MiB"]
    print_table(head, [_cells(row) for row in rows])


def _cells(row: dict) -> list[str]:
    return [
        f"{row['value']:,}",
        show(row["step_seconds"], ",.1f", 1e3),
        show(row["time_ratio"]),
        show(row["flops_ratio"]),
        show(row["time_over_flops"]),
        show(row["tokens_per_second"], ",.0f"),
        show(row["step_bytes"], ",.0f", 1 / MIB),
        show(row["step_bytes_ratio"]),
        show(row["peak_bytes"], ",.0f", 1 / MIB),
    ]


if __name__ == "__main__":
    run(main)
