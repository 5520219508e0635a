"""Compare DeepSpeed's zero_to_fp32 with tools/consolidate.py: python benchmarks/bench_consolidate.py --parameters 330M

Both join the same shards (random_shards.py) into fp32 safetensors, each in a new process, in alternating order. All files
are read once before, so that both find them in the page cache. The median of the rounds is reported.

* **seconds**: the call alone, without imports; **on disk**: until everything is flushed; **process**: from start to end.
* **peak**: the most resident memory of the process, as the kernel counts it (``VmHWM``), pages of mapped files included.
  **above**: the excess over what the same program needs for a model of 2 million parameters, which removes Python and its
  libraries. **anonymous**: the most without pages of files, sampled every 5 ms.

The program also compares the two results tensor by tensor; exit code 1 if they differ.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import add_json_argument, markdown_table, write_results

from mpnet_ds.command_line import Parser, run

TOOLS = ("deepspeed", "mpnet_ds")
TINY = 2_000_000
MIB = 2**20
HEAD = ("model", "ZeRO", "shards", "tool", "seconds", "on disk", "process", "peak MiB", "above", "anonymous", "bit-equal")


def main() -> int:
    parser = Parser(
        "Compare memory and time of joining ZeRO shards.", "python benchmarks/bench_consolidate.py --shards 2 8 --rounds 3"
    )
    parser.add_argument("--parameters", nargs="+", type=count, default=["330M"], metavar="N", help="such as 110M or 1B")
    parser.add_argument("--shards", nargs="+", type=int, default=[2, 4, 8], metavar="N")
    parser.add_argument("--stages", nargs="+", type=int, choices=(2, 3), default=[2, 3])
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--folder", type=Path, help="where the files go, 22 bytes for each parameter (a temporary folder)")
    add_json_argument(parser)
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)  # one run, in this process
    arguments = parser.parse_args()
    if arguments.alone:
        join(*arguments.alone)
        return 0
    cases = [(n, stage, shards) for n in arguments.parameters for stage in arguments.stages for shards in arguments.shards]
    rows = []
    for case in cases:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as work:
            rows += compare(Path(work), *case, arguments.rounds)
    print(f"\n{markdown_table(HEAD, [cells(row) for row in rows])}")
    write_results(arguments.json, rows)
    return 0 if all(row["bit_equal"] for row in rows) else 1


def count(text: str) -> int:
    """Parse an argument such as ``330M``."""
    found = re.fullmatch(r"([0-9.]+)([KMB]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number such as 330M or 1B")
    return int(float(found[1]) * {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}[found[2]])


def compare(work: Path, parameters: int, stage: int, shards: int, rounds: int) -> list[dict]:
    """Measure a row of the table for each tool."""
    made = make_elsewhere(work / "model", parameters, stage, shards)
    make_elsewhere(work / "tiny", TINY, stage, shards)
    print(f"{made:,} parameters, ZeRO {stage}, {shards} shards", flush=True)
    own = {tool: measure(tool, work / "tiny", work / tool)["peak"] for tool in TOOLS}
    warm(work / "model")
    found = {tool: [] for tool in TOOLS}
    for number in range(rounds):
        for tool in TOOLS[:: 1 if number % 2 == 0 else -1]:
            shutil.rmtree(work / tool, ignore_errors=True)
            found[tool].append(measure(tool, work / "model", work / tool))
            print(f"  {tool}: {found[tool][-1]}", flush=True)
    equal = is_same(*(work / tool for tool in TOOLS))
    rows = []
    for tool in TOOLS:
        median = {key: statistics.median(run[key] for run in found[tool]) for key in found[tool][0]}
        case = {"parameters": made, "zero_stage": stage, "shards": shards, "tool": tool}
        rows.append(case | median | {"above": max(0, median["peak"] - own[tool]), "bit_equal": equal})
    return rows


def make_elsewhere(folder: Path, parameters: int, stage: int, shards: int) -> int:
    """Make the shards in ``folder/last`` in a process of its own; return the number of parameters."""
    program = "import sys; from pathlib import Path; from random_shards import make_shards; from mpnet_ds.quiet import *\n"
    program += "print(make_shards(Path(sys.argv[1]), *map(int, sys.argv[2:])))"
    words = [sys.executable, "-c", program, folder / "last", parameters, stage, shards]
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return int(done.stdout.split()[-1])


def warm(folder: Path) -> None:
    """Read every file once."""
    for path in folder.rglob("*.pt"):
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def measure(tool: str, checkpoint: Path, output: Path) -> dict[str, float]:
    """Measure seconds and bytes of one run in a new process."""
    os.sync()  # what the previous run wrote
    begin = time.perf_counter()
    words = [sys.executable, __file__, "--alone", tool, checkpoint, output]
    child = subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    anonymous = 0
    while child.poll() is None:
        anonymous = max(anonymous, memory(child.pid, "RssAnon"))
        time.sleep(0.005)
    seconds = time.perf_counter() - begin
    if child.returncode:
        raise RuntimeError(f"{tool} failed")
    return json.loads(child.stdout.read().splitlines()[-1]) | {"process": round(seconds, 2), "anonymous": anonymous}


def memory(process: int | str, name: str) -> int:
    """Read one of the kernel's counts, in bytes; 0 for a process that has ended."""
    try:
        found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def join(tool: str, checkpoint: str, output: str) -> None:
    """Join the shards, and print how long it took as JSON."""
    from mpnet_ds.quiet import quiet_libraries

    quiet_libraries()
    if tool == "deepspeed":
        from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict as convert

        work = lambda: convert(checkpoint, output, safe_serialization=True)  # noqa: E731
    else:
        from mpnet_ds.checkpoint.consolidate import consolidate

        work = lambda: consolidate(Path(checkpoint) / "last", output)  # noqa: E731
    begin = time.perf_counter()
    work()
    seconds = time.perf_counter() - begin
    for path in Path(output).iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    found = {"seconds": round(seconds, 2), "on_disk": round(time.perf_counter() - begin, 2)}
    print(json.dumps(found | {"peak": memory("self", "VmHWM")}))  # ru_maxrss would start at the parent's


def is_same(*folders: Path) -> bool:
    """Tell whether the results hold the same bits under the same names."""
    import torch
    from safetensors import safe_open

    results = []
    for folder in folders:
        files = [safe_open(path, "pt") for path in folder.glob("*.safetensors")]
        results.append({name: file for file in files for name in file.keys()})  # noqa: SIM118 (it is not a dict)
    if results[0].keys() != results[1].keys():
        return False
    return all(torch.equal(*(one[name].get_tensor(name).view(torch.int32) for one in results)) for name in results[0])


def cells(row: dict) -> list[str]:
    """Format a line of the table."""
    times = [f"{row[key]:.2f}" for key in ("seconds", "on_disk", "process")]
    sizes = [f"{row[key] / MIB:,.0f}" for key in ("peak", "above", "anonymous")]
    case = f"{row['parameters'] / 1e6:.0f} M", row["zero_stage"], row["shards"], row["tool"]
    return [*case, *times, *sizes, "yes" if row["bit_equal"] else "NO"]


if __name__ == "__main__":
    run(main)
