"""Time the verification of a dataset of random ids: python benchmarks/bench_verify.py --shards 4 --gigabytes 1.5

Writes the dataset to a temporary folder, verifies it several times from the page cache, and prints GB/s next to those of
sha256 alone on one core over the same bytes: the bound of a single shard, and about half that of many on two cores.
"""

import hashlib
import os
import tempfile
import time
from pathlib import Path

from random_dataset import make_dataset
from report import add_json_argument, write_results

from mpnet_ds.command_line import Parser, run
from mpnet_ds.data.storage.manifest import MIB
from mpnet_ds.data.storage.verify import verify


def main() -> None:
    parser = Parser("Time the verification of random shards.", "python benchmarks/bench_verify.py --shards 4")
    parser.add_argument("--shards", type=int, default=4, metavar="N")
    parser.add_argument("--gigabytes", type=float, default=1.5, metavar="X", help="of all shards together")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    add_json_argument(parser)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "dataset"
        make_dataset(folder, int(arguments.gigabytes * 1e9 / 2.2), arguments.shards)  # 2 bytes a token, and the index
        print(f"{arguments.shards} shard(s), {len(os.sched_getaffinity(0))} cores")
        for _ in range(arguments.repeats):
            rows.append({"bytes_per_second": verify_speed(folder), "sha256_bytes_per_second": sha256_speed(folder)})
            verify_rate, sha256_rate = (rate / 1e9 for rate in rows[-1].values())
            print(f"verify {verify_rate:.2f} GB/s, sha256 alone {sha256_rate:.2f} GB/s", flush=True)
    write_results(arguments.json, rows, shards=arguments.shards, gigabytes=arguments.gigabytes)


def verify_speed(folder: Path) -> float:
    start = time.perf_counter()
    found = verify(folder, show_progress=False)
    assert not found.problems, found.problems
    return found.num_bytes / (time.perf_counter() - start)


def sha256_speed(folder: Path) -> float:
    digest, size, start = hashlib.sha256(), 0, time.perf_counter()
    with open(folder / "shard-00000.bin", "rb", buffering=0) as file:
        while block := file.read(MIB):
            digest.update(block)
            size += len(block)
    return size / (time.perf_counter() - start)


if __name__ == "__main__":
    run(main)
