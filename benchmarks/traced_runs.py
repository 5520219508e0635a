"""Metadata operations of a run: each rank by itself under ``strace``."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from scaled_runs import ROOT, TIMEOUT, Setup, command, environment, free_port, prepare

LOOKUPS = ("stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2", "readlink", "readlinkat")
KINDS = dict.fromkeys(LOOKUPS, "look") | {"open": "open", "openat": "open", "creat": "create"}
KINDS |= {"mkdir": "mkdir", "mkdirat": "mkdir", "rename": "rename", "renameat": "rename", "renameat2": "rename"}
KINDS |= {"unlink": "remove", "unlinkat": "remove", "rmdir": "remove", "fsync": "sync", "fdatasync": "sync"}


def launch_traced(work: Path, setup: Setup) -> list[dict]:
    """Starts each rank by itself under strace; metadata operations of each rank, by phase, place and kind."""
    run = prepare(work, setup)
    words, port, processes = command(work, [run]), str(free_port()), []
    trace = ["strace", "-f", "-y", "-qq", "-e", "signal=none", "-e", "trace=%file,fsync,fdatasync"]
    for rank in range(setup.ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": setup.ranks, "LOCAL_WORLD_SIZE": setup.ranks}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_SIZE": setup.ranks}
        own = environment() | {name: str(value) for name, value in place.items()}
        start = [*trace, "-o", str(work / f"trace-{rank}"), sys.executable, "-u", *words]
        processes.append(subprocess.Popen(start, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    for process in processes:
        said, _ = process.communicate(timeout=TIMEOUT)
        if process.returncode:
            raise SystemExit(f"{setup}: exit code {process.returncode}\n{said[-4000:]}")
    output = f"{run['folder']}/output"
    data = run["arguments"][run["arguments"].index("--data") + 1]
    places = {"dataset": data, "output": output, "checkpoints": f"{output}/checkpoints"}
    for number, prefix in enumerate(dict.fromkeys((sys.prefix, sys.base_prefix, str(ROOT)))):
        places[f"programs {number}"] = prefix
    return [count_operations((work / f"trace-{rank}").read_text(errors="replace"), places) for rank in range(setup.ranks)]


def count_operations(trace: str, places: dict[str, str]) -> dict[str, dict[str, dict[str, int]]]:
    """Phase → place → kind → how often, of one rank's ``strace -f -y``.

    A call counts for the longest of ``places`` (name → folder) that its path lies in. ``fstat`` of an open file does not
    count: its answer came with the open. Where strace cut a call in two, the first half has the path.
    """
    counts: dict[str, dict[str, Counter]] = {}
    phase = "imports"
    for line in trace.splitlines():
        found = re.match(r"(?:\d+ +)?(\w+)\((.*)", line)
        if not found or found[1] not in KINDS or "AT_EMPTY_PATH" in found[2]:
            continue
        kind, path = KINDS[found[1]], path_of(found[2])
        if path is None:
            continue
        if path.startswith("/phase/"):
            phase = path.split("/")[2]
            continue
        if kind == "open" and "O_CREAT" in found[2]:
            kind = "create"
        fitting = [name for name, folder in places.items() if path == folder or path.startswith(folder + "/")]
        if fitting:
            place = max(fitting, key=lambda name: len(places[name])).split(" ")[0]
            counts.setdefault(phase, {}).setdefault(place, Counter())[kind] += 1
    return counts


def path_of(arguments: str) -> str | None:
    """The path that a traced call is about: its first string, below the folder before it, or that of its descriptor."""
    folder = re.match(r"(?:AT_FDCWD|\d+)<([^>]*)>", arguments)
    quoted = re.search(r'"((?:[^"\\]|\\.)*)"', arguments)
    if quoted is None:
        return folder[1] if folder else None
    return os.path.normpath(os.path.join(folder[1], quoted[1])) if folder else os.path.normpath(quoted[1])
