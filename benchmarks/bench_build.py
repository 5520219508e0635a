"""Time the dataset builder: python benchmarks/bench_build.py --input corpus/ --tokenizer my-tokenizer

Three measurements, each in one process on one core, in turns, so that load on the machine affects all alike:

* encoding alone: ``TextEncoder`` cold (an empty memo), ``TextEncoder`` warm (the same text again), and the library's
  ``encode_batch_fast`` and ``encode_batch`` on the same lines; MB/s and the ratio to the library;
* the whole build, from the file to the manifest, with one worker; MB/s of text;
* memory: peak resident memory of builds of the text once and of --times copies, with --workers processes.

Without --input the text is --megabytes of the installed Python packages' sources; without --tokenizer one of 30,527 pieces
is trained on it first.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the library on one core, as the encoder

import numpy as np
import pyarrow as pa
from report import add_json_argument, write_results

from mpnet_ds.command_line import Parser, run
from mpnet_ds.data import BuildOptions, build_dataset
from mpnet_ds.data.builder.learn_tokenizer import train_tokenizer_on
from mpnet_ds.data.builder.wordpiece_memo import TextEncoder
from mpnet_ds.data.text.corpus import Corpus
from mpnet_ds.tokenizer import PretrainingTokenizer

VOCAB_SIZE = 30527
LINES_AT_ONCE = 20_000


def main() -> None:
    example = "python benchmarks/bench_build.py --input corpus/ --tokenizer my-tokenizer --workers 2 --times 20"
    parser = Parser("Time the dataset builder, and the library's tokenizer on the same text.", example)
    parser.add_argument("--input", nargs="+", metavar="PATH", help="text (default: installed Python sources)")
    parser.add_argument("--tokenizer", metavar="DIR", help="a tokenizer's folder (default: one is trained)")
    parser.add_argument("--megabytes", type=int, default=50, metavar="N", help="text of the installed sources")
    parser.add_argument(
        "--share_of_lines", type=float, default=0.2, metavar="F", help="share of the lines that the library gets"
    )
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes of the builds measured for memory")
    parser.add_argument("--times", type=int, default=20, metavar="N", help="size of the larger text, in copies")
    add_json_argument(parser)
    parser.add_argument("--build", nargs=4, help="(used by the program itself)")
    arguments = parser.parse_args()
    if arguments.build:
        build_and_report(*arguments.build)
        return
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        inputs = arguments.input or [str(write_sources(Path(folder) / "sources.txt", arguments.megabytes))]
        tokenizer = arguments.tokenizer
        if tokenizer is None:
            tokenizer = str(Path(folder) / "tokenizer")
            train_tokenizer_on(inputs, VOCAB_SIZE, tokenizer)
        rows = encoding(inputs, tokenizer, arguments) + building(inputs, tokenizer, Path(folder), arguments)
    write_results(arguments.json, rows)


def write_sources(path: Path, megabytes: int) -> Path:
    size = 0
    with open(path, "w", encoding="utf-8") as file:
        for source in sorted(Path(np.__file__).parents[1].rglob("*.py")):
            text = source.read_text(encoding="utf-8", errors="ignore").strip() + "\n\n"
            size += len(text.encode())
            file.write(text)
            if size > megabytes * 10**6:
                return path
    return path


def encoding(inputs: list[str], tokenizer: str, arguments) -> list[dict]:
    """Measure a row for each way to encode."""
    loaded = PretrainingTokenizer.load(tokenizer)
    lines = [line for block in Corpus(inputs).blocks() for document in block.documents for line in document]
    blocks = [lines[i : i + LINES_AT_ONCE] for i in range(0, len(lines), LINES_AT_ONCE)]
    some = blocks[:: max(1, round(1 / arguments.share_of_lines))]
    rates: dict[str, list[float]] = {}
    for _ in range(arguments.repeats):
        encoder = TextEncoder(loaded)
        ways = {
            "TextEncoder, cold": (encoder.encode, blocks),
            "TextEncoder, warm": (encoder.encode, blocks),
            "encode_batch_fast": (loaded.backend.encode_batch_fast, some),
            "encode_batch": (loaded.backend.encode_batch, some),
        }
        for name, (encode, what) in ways.items():
            size = sum(len(line.encode()) for block in what for line in block)
            begin = time.perf_counter()
            for block in what:
                encode(block)
            rates.setdefault(name, []).append(size / 1e6 / (time.perf_counter() - begin))
    print(f"{sum(len(line.encode()) for line in lines) / 1e6:.1f} MB in {len(lines):,} lines\n")
    print(f"{'encoding, one core':24} {'MB/s':>8} {'ratio':>8}")
    found = {name: median(values) for name, values in rates.items()}
    library = found["encode_batch_fast"]
    for name, rate in found.items():
        print(f"{name:24} {rate:8.1f} {rate / library:8.1f}")
    return [
        {"measurement": "encoding", "way": name, "bytes_per_second": rate * 1e6, "times_library": rate / library}
        for name, rate in found.items()
    ]


def building(inputs: list[str], tokenizer: str, folder: Path, arguments) -> list[dict]:
    """Measure a row for each build."""
    text = Path(inputs[0])
    if len(inputs) > 1 or text.suffix != ".txt":
        text = folder / "all.txt"
        with open(text, "w", encoding="utf-8") as file:
            for block in Corpus(inputs).blocks():
                file.writelines("\n".join(document) + "\n\n" for document in block.documents)
    large = folder / "large.txt"
    with open(large, "wb") as file:
        for _ in range(arguments.times):
            file.write(text.read_bytes())
    print(f"\n{'whole build':24} {'workers':>8} {'MB':>8} {'seconds':>8} {'MB/s':>8} {'peak MiB':>9}")
    rows = []
    for name, workers in ((text, 1), (text, arguments.workers), (large, arguments.workers)):
        command = [sys.executable, __file__, "--build", name, tokenizer, folder / f"built-{len(rows)}", workers]
        done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append({"measurement": "build", "text": name.name} | row)
        figures = row["bytes"] / 1e6, row["seconds"], row["bytes_per_second"] / 1e6
        shown = " ".join(f"{figure:8.1f}" for figure in figures)
        print(f"{name.name:24} {row['workers']:8} {shown} {row['peak_bytes'] / 2**20:9.0f}")
    return rows


def build_and_report(text: str, tokenizer: str, output: str, workers: str) -> None:
    begin = time.perf_counter()
    build_dataset([text], tokenizer, output, BuildOptions(workers=int(workers)), show_progress=False)
    seconds = time.perf_counter() - begin
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    size = os.path.getsize(text)
    found = {"workers": int(workers), "bytes": size, "seconds": seconds, "bytes_per_second": size / seconds}
    print(json.dumps(found | {"peak_bytes": peak * 1024}))


if __name__ == "__main__":
    run(main)
