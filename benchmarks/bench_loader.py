"""Time the loader on random ids: python benchmarks/bench_loader.py --folder /tmp/bench-loader --tokens 1000000000

Makes a dataset of that many ids in --folder (once: a second run reuses it; see random_dataset.py). Prints the seconds from
opening to the first batch, and tokens/s of ``PretrainingDataset.batch``, for each way to make samples: reading, permutation,
whole-word masking and corruption together, in one thread. Rates are per second of CPU time (on an idle machine the same as
wall time), medians over --repeats rounds in which the ways take turns.

--compare DIR also times the mpnet_ds of another checkout, in a process of its own in each round.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from report import add_json_argument, print_table, show, write_results

from mpnet_ds.command_line import Parser, run
from mpnet_ds.data import MaskingConfig, PretrainingDataset

NUM_SHARDS = 4

PLAIN = "stream"
WAYS = {
    PLAIN: {},
    "stream, tokens one by one": {"masking": {"whole_word": False}},
    "stream, max_ngram 3": {"masking": {"max_ngram": 3}},
    "stream, isolated": {"isolate_documents": True},
    "document": {"sample_mode": "document"},
    "document, not packed": {"sample_mode": "document", "packing": False},
    "line": {"sample_mode": "line"},
    "line, isolated, max_ngram 3": {"sample_mode": "line", "isolate_documents": True, "masking": {"max_ngram": 3}},
}
"""Arguments of ``PretrainingDataset``."""


def main() -> None:
    parser = Parser("Time the loader on random ids.", "python benchmarks/bench_loader.py --folder /tmp/bench-loader")
    parser.add_argument(
        "--folder", required=True, metavar="DIR", help="where the dataset is made, or was made by an earlier run"
    )
    parser.add_argument("--tokens", type=int, default=1_000_000_000, metavar="N", help="2 bytes of disk each, plus a tenth")
    parser.add_argument("--seq_length", type=int, default=512, metavar="N")
    parser.add_argument("--batch_size", type=int, default=32, metavar="N", help="sequences of a batch (32)")
    parser.add_argument("--batches", type=int, default=100, metavar="N", help="batches of one measurement")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--compare", metavar="DIR", help="another checkout to compare with (stream only)")
    parser.add_argument("--stream_only", action="store_true", help="print the rate of the plain way alone and stop")
    add_json_argument(parser)
    arguments = parser.parse_args()
    folder = Path(arguments.folder) / f"tokens-{arguments.tokens}"
    if arguments.stream_only:
        data = PretrainingDataset(folder, arguments.seq_length)
        data.batch(np.arange(arguments.batch_size))
        print(rate_of(data, arguments))
        return
    if not folder.is_dir():
        from random_dataset import make_dataset  # not by the older checkout that --compare runs

        make_dataset(folder, arguments.tokens, NUM_SHARDS)
    table = measure(folder, arguments)
    head = ("way", "s to the first batch", "tokens/s", "× plain", "padding")
    print_table(head, [cells(row) for row in table])
    write_results(arguments.json, table)


def measure(folder: Path, arguments) -> list[dict]:
    """Measure a row for each way: seconds to the first batch, tokens/s, and the rate as a multiple of the plain way's."""
    opened, rates, seconds = {}, {name: [] for name in WAYS}, {}
    for name, settings in WAYS.items():
        begin = time.perf_counter()
        masking = MaskingConfig(**settings.get("masking", {}))
        opened[name] = PretrainingDataset(folder, arguments.seq_length, **settings | {"masking": masking})
        opened[name].batch(np.arange(arguments.batch_size))
        seconds[name] = time.perf_counter() - begin
    others = {"compared": []} if arguments.compare else {}
    for _ in range(arguments.repeats):
        for name, data in opened.items():
            rates[name].append(rate_of(data, arguments))
        for found in others.values():
            found.append(rate_of_checkout(arguments))
    rates, seconds = rates | others, seconds | dict.fromkeys(others)
    plain = np.median(rates[PLAIN])
    return [
        {
            "way": name,
            "seconds_to_first_batch": seconds[name],
            "tokens_per_second": float(np.median(found)),
            "times_plain": float(np.median(found) / plain),
            "share_of_padding": float(1 - opened[name].tokens_per_sequence / arguments.seq_length)
            if name in opened
            else None,
        }
        for name, found in rates.items()
    ]


def rate_of(data: PretrainingDataset, arguments) -> float:
    """Measure tokens, padding included, per second of this thread's CPU time."""
    begin = time.thread_time()
    for number in range(arguments.batches):
        data.consecutive(number * arguments.batch_size, arguments.batch_size)
    return arguments.batches * arguments.batch_size * arguments.seq_length / (time.thread_time() - begin)


def rate_of_checkout(arguments) -> float:
    """Measure the plain way's rate with the package of another checkout."""
    command = [sys.executable, __file__, "--stream_only"]
    for name in ("folder", "tokens", "seq_length", "batch_size", "batches"):
        command += [f"--{name}", str(getattr(arguments, name))]
    environment = os.environ | {"PYTHONPATH": arguments.compare}
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def cells(row: dict) -> list[str]:
    """Format a line of the table."""
    rate = show(row["tokens_per_second"], ",.0f"), show(row["times_plain"])
    return [row["way"], show(row["seconds_to_first_batch"], ".3f"), *rate, show(row["share_of_padding"], ".1%")]


if __name__ == "__main__":
    run(main)
