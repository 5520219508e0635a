"""Run all benchmarks at small sizes, some minutes on two cores: make bench, or python benchmarks/bench_all.py

Each is a program of its own, run with ``--json FILE``; the figures of all are collected in one table:

    benchmark   figure   unit   compared with   ratio   seconds

The ratio is the figure divided by what it is compared with, from the same run. A failed benchmark is reported with its
error; the others continue, and the exit code is 1. ``--output FILE`` keeps all rows of all benchmarks, with versions,
hardware, commit and date. Files go to a temporary folder that is removed at the end.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from report import NO_FIGURE, ROOT, new_file, print_table, show, write_results

from mpnet_ds.command_line import Parser, run
from mpnet_ds.errors import UserError, did_you_mean

TIMEOUT = 600.0
"""Time limit of one benchmark, in seconds."""
GRACE = 20.0
HEAD = ("benchmark", "figure", "unit", "compared with", "ratio", "seconds")


@dataclass(frozen=True)
class Line:
    """A figure of a benchmark."""

    what: str
    figure: float
    unit: str
    compared_with: str = ""
    ratio: float | None = None


@dataclass(frozen=True)
class Benchmark:
    """A program of this folder."""

    name: str
    arguments: str
    """``{work}`` is replaced by a folder that it may fill."""
    summarise: Callable[[list[dict]], list[Line]]
    """Turns the rows of its JSON file into lines."""
    program: str = ""
    """File name, if it is not ``name``."""


def compare(rows: list[dict], figure: str, unit: str, what: str, against: str, factor: float = 1) -> list[Line]:
    """Compare the last row's figure with the first row's."""
    first, last = rows[0][figure], rows[-1][figure]
    return [Line(what, last * factor, unit, against, last / first)]


def of_step(rows: list[dict]) -> list[Line]:
    first, last = rows[0]["attention"], rows[-1]["attention"]
    return compare(rows, "tokens_per_second", "tokens/s", f"attention {last}", first)


def of_checkpointing(rows: list[dict]) -> list[Line]:
    against = "keeping activations"
    memory = compare(rows, "step_bytes", "MiB", "all layers: memory of a step", against, 2**-20)
    return memory + compare(rows, "step_seconds", "ms", "all layers: time of a step", against, 1e3)


def of_scaling(rows: list[dict]) -> list[Line]:
    lines = []
    for field, name in (
        ("seq_length", "tokens"),
        ("layers", "layers"),
        ("micro_batch_size", "sequences"),
        ("ranks", "ranks"),
    ):
        if sweep := [row for row in rows if row["sweep"] == field]:
            arithmetic = f"{sweep[0]['value']} (arithmetic × {sweep[-1]['flops_ratio']:.2f})"
            lines += compare(sweep, "step_seconds", "ms", f"{sweep[-1]['value']} {name}", arithmetic, 1e3)
    return lines


def of_loader(rows: list[dict]) -> list[Line]:
    rates = {row["way"]: row["tokens_per_second"] for row in rows}
    documents = Line("document", rates["document"], "tokens/s", "stream", rates["document"] / rates["stream"])
    return [Line("stream", rates["stream"], "tokens/s"), documents]


def of_build(rows: list[dict]) -> list[Line]:
    cold = next(row for row in rows if row.get("way") == "TextEncoder, cold")
    lines = [Line("encoding", cold["bytes_per_second"] / 1e6, "MB/s", "tokenizers library", cold["times_library"])]
    builds = [row for row in rows if row["measurement"] == "build"]
    return lines + compare(builds[-2:], "peak_bytes", "MiB", "memory of a build", "half the text", 2**-20)


def of_consolidation(rows: list[dict]) -> list[Line]:
    theirs, ours = sorted(rows, key=lambda row: row["tool"])
    seconds = Line("joining shards", ours["seconds"], "s", "DeepSpeed's tool", ours["seconds"] / theirs["seconds"])
    ratio = ours["above"] / theirs["above"] if theirs["above"] else None
    return [seconds, Line("its memory", ours["above"] / 2**20, "MiB", "DeepSpeed's tool", ratio)]


def of_verification(rows: list[dict]) -> list[Line]:
    best = max(rows, key=lambda row: row["bytes_per_second"])
    rate, bound = best["bytes_per_second"], best["sha256_bytes_per_second"]
    return [Line("verify", rate / 1e9, "GB/s", "sha256 alone, one core", rate / bound)]


def of_straightforward(rows: list[dict]) -> list[Line]:
    return [
        Line(f"a step in {row['precision']}", row["seconds"] * 1e3, "ms", "straightforward model", row["ratio"])
        for row in rows
    ]


def of_families(rows: list[dict]) -> list[Line]:
    return [
        Line(f"{row['recipe']} in {row['precision']}", row["seconds"] * 1e3, "ms", "plain loop", row["ratio"])
        for row in rows
    ]


SMALL_MODEL = "--recipe mpnet-base --layers 4 --hidden_size 256 --micro_batch_size 2 --vocab_size 8192 --steps 3"
BENCHMARKS = (
    Benchmark("bench_step", f"{SMALL_MODEL} --attention eager auto", of_step),
    Benchmark("checkpointing", f"{SMALL_MODEL} --checkpointing none all", of_checkpointing, program="bench_step"),
    Benchmark(
        "bench_scaling",
        "--seq_length 128 512 --layers 2 4 --micro_batch_size 2 4 --ranks 1 2 --hidden_size 128 --vocab_size 4096 --steps 5",
        of_scaling,
    ),
    Benchmark("bench_straightforward", "--micro_batch_size 1 --pairs 3", of_straightforward),
    Benchmark("bench_families", "--recipes bert-base gpt2 --seq_length 128 --micro_batch_size 1 --pairs 3", of_families),
    Benchmark("bench_loader", "--folder {work} --tokens 20000000 --batches 20 --repeats 3", of_loader),
    Benchmark("bench_build", "--megabytes 8 --times 2 --repeats 1", of_build),
    Benchmark("bench_consolidate", "--parameters 60M --shards 2 --stages 2 --rounds 1", of_consolidation),
    Benchmark("bench_verify", "--shards 2 --gigabytes 0.4 --repeats 3", of_verification),
)


@dataclass
class Outcome:
    """Result of one benchmark."""

    benchmark: Benchmark
    seconds: float
    rows: list[dict]
    lines: list[Line]
    error: str = ""


def main() -> int:
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser = Parser("Run all benchmarks at small sizes.", "python benchmarks/bench_all.py --output results.json")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=names, help=" ".join(names))
    parser.add_argument("--output", type=new_file, metavar="FILE", help="write all results there, as JSON")
    arguments = parser.parse_args()
    for name in arguments.only:
        if name not in names:
            raise UserError(f"unknown benchmark '{name}'. {did_you_mean(name, names)}")
    return run_all([benchmark for benchmark in BENCHMARKS if benchmark.name in arguments.only], arguments.output)


def run_all(benchmarks: list[Benchmark], output: Path | None) -> int:
    """Run them one after another, print the table, and return the exit code."""
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="mpnet-bench-") as work:
        for number, benchmark in enumerate(benchmarks, 1):
            print(f"{number}/{len(benchmarks)} {benchmark.name} …", file=sys.stderr, flush=True)
            outcomes.append(run_one(benchmark, Path(work)))
            how = "FAILED after" if outcomes[-1].error else "done in"
            print(f"    {how} {outcomes[-1].seconds:.0f} s", file=sys.stderr, flush=True)
    print_table(HEAD, [line for outcome in outcomes for line in table_lines(outcome)])
    results = [
        {"benchmark": o.benchmark.name, "arguments": o.benchmark.arguments, "seconds": o.seconds, "error": o.error}
        | {"figures": [vars(line) for line in o.lines], "rows": o.rows}
        for o in outcomes
    ]
    write_results(output, results)
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed:
        print(f"\n{outcome.benchmark.name} failed:\n{outcome.error}", file=sys.stderr)
    return 1 if failed else 0


def run_one(benchmark: Benchmark, work: Path) -> Outcome:
    """Run a program in processes of its own, all of which have ended when this returns."""
    result, temporary = work / f"{benchmark.name}.json", work / f"{benchmark.name}-files"
    temporary.mkdir()
    program = ROOT / "benchmarks" / f"{benchmark.program or benchmark.name}.py"
    words = [sys.executable, str(program), *benchmark.arguments.format(work=temporary).split(), "--json", str(result)]
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(paths)}
    begin = time.perf_counter()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    child = subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True, **pipes)
    try:
        printed = child.communicate(timeout=TIMEOUT)[0]
        error = "" if child.returncode == 0 else f"{printed[-3000:].rstrip()}\nexit code {child.returncode}"
    except subprocess.TimeoutExpired:
        error = f"not done after {TIMEOUT:.0f} s"
    finally:
        end(child)
    seconds = time.perf_counter() - begin
    if error:
        return Outcome(benchmark, seconds, [], [], error)
    try:
        rows = json.loads(result.read_text())["rows"]
        return Outcome(benchmark, seconds, rows, benchmark.summarise(rows))
    except (OSError, ValueError, LookupError, TypeError, StopIteration) as fault:
        return Outcome(benchmark, seconds, [], [], f"its results are not as expected: {type(fault).__name__}: {fault}")


def end(child: subprocess.Popen) -> None:
    """End the program and all that it started: SIGTERM first, so that launchers can end their ranks, then SIGKILL."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        if child.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(child.pid, how)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)


def table_lines(outcome: Outcome) -> list[list[str]]:
    """Make a benchmark's rows of the table; the first has the time."""
    name, seconds = outcome.benchmark.name, f"{outcome.seconds:.0f}"
    if outcome.error:
        return [[name, "FAILED", *[NO_FIGURE] * 3, seconds]]
    found = []
    for number, line in enumerate(outcome.lines):
        figure = show(line.figure, ",.4g" if line.figure < 1000 else ",.0f")
        against = line.compared_with or NO_FIGURE
        found.append([f"{name}: {line.what}", figure, line.unit, against, show(line.ratio), "" if number else seconds])
    return found


if __name__ == "__main__":
    run(main)
