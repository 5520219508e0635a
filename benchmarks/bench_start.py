"""Time a run from its command to its first step, and its parts: python benchmarks/bench_start.py --before OTHER/CHECKOUT

Each round starts mpnet-tiny once from every checkout, and once a process that only imports torch and DeepSpeed, which is
the floor; they take turns. Ratios are of medians. CPU seconds, of all processes of the command, say more than wall-clock
time on a shared machine. Under ``--launcher deepspeed`` two further processes import both libraries before the rank does.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from random_dataset import make_dataset
from report import ROOT, add_json_argument, print_table, write_results
from timed_start import PARTS

from mpnet_ds.command_line import Parser, run

FLOOR = "import torch, deepspeed"
LAUNCHERS = {"python": [sys.executable], "deepspeed": ["deepspeed", "--num_accelerators", "1"]}


def main() -> None:
    parser = Parser("Time a run until its first step.", "python benchmarks/bench_start.py --before ../old --rounds 5")
    parser.add_argument("--before", type=Path, metavar="DIR", help="another checkout, to compare with")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="python")
    add_json_argument(parser)
    arguments = parser.parse_args()
    checkouts = {"this": ROOT} | ({"before": arguments.before.resolve()} if arguments.before else {})
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as name:
        make_dataset(Path(name) / "data", 100_000, 1)
        for number in range(arguments.rounds + 1):  # the first fills Python's and the system's caches
            found = [start(which, checkout, Path(name), arguments.launcher) for which, checkout in checkouts.items()]
            found.append({"which": FLOOR, **timed([sys.executable, "-c", FLOOR], ROOT, Path(name))})
            rows += found if number else []
    summary = {which: medians([row for row in rows if row["which"] == which]) for which in (*checkouts, FLOOR)}
    print_table(["median seconds", *(f"{which}, {kind}" for which in summary for kind in ("wall", "CPU"))], table(summary))
    for other in (which for which in summary if which != "this"):
        ratios = (f"{summary['this'][kind] / summary[other][kind]:.2f} ({kind})" for kind in ("wall_seconds", "cpu_seconds"))
        print(f"this / {other}: {', '.join(ratios)}")
    write_results(arguments.json, rows, launcher=arguments.launcher)


def start(which: str, checkout: Path, folder: Path, launcher: str) -> dict:
    """Start a run in a checkout; return its seconds, and those of each part in the rank."""
    parts, output = folder / "parts.txt", tempfile.mkdtemp(dir=folder)
    command = [*LAUNCHERS[launcher], str(ROOT / "benchmarks" / "timed_start.py"), "--deepspeed_config", "zero2"]
    command += ["--recipe", "mpnet-tiny", "--data", str(folder / "data"), "--output_dir", output]
    total = timed(command, checkout, folder)
    for line in parts.read_text().splitlines():
        part, wall, cpu = line.split("\t")
        total |= {f"wall_seconds/{part}": float(wall), f"cpu_seconds/{part}": float(cpu)}
    return {"which": which, **total}


def timed(command: list[str], checkout: Path, folder: Path) -> dict[str, float]:
    """Run a command on the package of a checkout; return the seconds that it and its children took."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "START_PARTS": str(folder / "parts.txt")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # users compile the package once, not at every start
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_seconds": time.perf_counter() - begin, "cpu_seconds": cpu}


def medians(rows: list[dict]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0] if key != "which"}


def table(summary: dict[str, dict[str, float]]) -> list[list[str]]:
    names = {"all": "", **{part: f"/{part}" for part in PARTS}}
    kinds = [(of, kind) for of in summary.values() for kind in ("wall_seconds", "cpu_seconds")]
    cells = {name: [of.get(kind + suffix) for of, kind in kinds] for name, suffix in names.items()}
    return [[name, *("" if value is None else f"{value:.2f}" for value in row)] for name, row in cells.items()]


if __name__ == "__main__":
    run(main)
