"""Results of all benchmarks: a table on the terminal, and with ``--json FILE`` a file

    {"rows": [{…}, …], "environment": {"date": …, "command": …, "commit": …, "versions": {…}, "hardware": {…}}}

whose rows depend on the benchmark, in SI units: bytes, seconds, tokens per second. (The package is imported late:
bench_loader.py also runs with older versions of it.)
"""

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "deepspeed", "transformers", "numpy")
NO_FIGURE = "–"


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--json FILE``; a missing folder is reported before anything is measured."""
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the results there too")


def new_file(text: str) -> Path:
    """Parse an argument: a file that can be written."""
    path = Path(text)
    if path.is_dir() or not os.access(path.resolve().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write {text}")
    return path


def write_results(path: Path | None, rows: list[dict], **more) -> None:
    """Write the file, if one is wanted; ``more`` goes next to the rows."""
    if path is not None:
        from mpnet_ds.files import write_atomically

        write_atomically(path, json.dumps({"rows": rows} | more | {"environment": environment()}, indent=1) + "\n")


def environment() -> dict:
    """Collect date, command, commit, versions and hardware of this run."""
    from mpnet_ds.machine import available_cores

    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join(["python", *(os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:])]),
        "commit": commit(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "hardware": {
            "cpu": cpu_name(),
            "cores": available_cores(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "gpus": gpus(),
        },
    }


def commit() -> str | None:
    """Find the checkout's commit, with ``-dirty`` if files differ from it; None outside a checkout."""
    if shutil.which("git") is None:
        return None
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip() or None


def cpu_name() -> str:
    """Find the CPU's name, as the kernel gives it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def gpus() -> list[str]:
    """List name, memory and driver of each GPU, without starting anything on it; empty without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return []
    words = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return [line.strip() for line in subprocess.run(words, capture_output=True, text=True).stdout.splitlines()]


def print_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print a table, its first column aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    for line in (head, *lines):
        first, *rest = zip(line, widths, strict=True)
        print("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]).rstrip(), flush=True)


def markdown_table(head: Sequence[str], lines: Sequence[Sequence]) -> str:
    """Format a table in Markdown."""
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (head, ["---"] * len(head), *lines))


def show(value: float | None, form: str = ".2f", factor: float = 1) -> str:
    """Format ``value * factor``; a dash if unknown."""
    return NO_FIGURE if value is None else format(value * factor, form)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
