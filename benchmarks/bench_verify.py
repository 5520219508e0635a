"""Times the verification of a dataset of random ids: python benchmarks/bench_verify.py --shards 4 --gigabytes 1.5

Writes the dataset into a temporary folder, verifies it several times from the page cache, and prints GB/s beside those
of sha256 alone on one core over the same bytes: the bound of a single shard, and about half that of many on two cores.
"""

import hashlib
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from mpnet_ds.command_line import Parser, run
from mpnet_ds.data.learn_tokenizer import train_tokenizer_on
from mpnet_ds.data.manifest import MIB, DatasetManifest, FileRecord, ShardRecord
from mpnet_ds.data.token_file import HEADER, MAGIC, VERSION
from mpnet_ds.data.verify import verify
from mpnet_ds.tokenizer import EOS_ID, PretrainingTokenizer

SEQUENCE, DOCUMENT = 32, 15  # tokens in a sequence, sequences in a document
FIRST_ORDINARY_ID = 5
UINT16 = 8


def main() -> None:
    parser = Parser("Time the verification of random shards.", "python benchmarks/bench_verify.py --shards 4")
    parser.add_argument("--shards", type=int, default=4, metavar="N")
    parser.add_argument("--gigabytes", type=float, default=1.5, metavar="X", help="of all shards together")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = train_tokenizer_on(["builtin-sample"], 2000, folder / TOKENIZER)
        index_share = 1 + 12 / (2 * SEQUENCE)
        documents = int(arguments.gigabytes * 1e9 / index_share / arguments.shards / (2 * SEQUENCE * DOCUMENT))
        shards = [write_shard(folder, number, documents, tokenizer) for number in range(arguments.shards)]
        write_manifest(folder, shards, tokenizer)
        print(f"{arguments.shards} shard(s), {len(os.sched_getaffinity(0))} cores")
        for _ in range(arguments.repeats):
            print(f"verify {verify_speed(folder):.2f} GB/s, sha256 alone {sha256_speed(folder):.2f} GB/s", flush=True)


def write_shard(folder: Path, number: int, num_documents: int, tokenizer: PretrainingTokenizer) -> ShardRecord:
    sequences = num_documents * DOCUMENT
    rng = np.random.default_rng(number)
    ids = rng.integers(FIRST_ORDINARY_ID, tokenizer.vocab_size - 1, sequences * SEQUENCE, dtype=np.uint16)
    ids[DOCUMENT * SEQUENCE - 1 :: DOCUMENT * SEQUENCE] = EOS_ID
    name = f"shard-{number:05d}"
    ids.tofile(folder / f"{name}.bin")
    with open(folder / f"{name}.idx", "wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, UINT16, sequences, num_documents + 1))
        file.write(np.full(sequences, SEQUENCE, dtype="<i4").tobytes())
        file.write((np.arange(sequences, dtype="<i8") * 2 * SEQUENCE).tobytes())
        file.write((np.arange(num_documents + 1, dtype="<i8") * DOCUMENT).tobytes())
    files = {suffix: FileRecord.of(folder / f"{name}.{suffix}") for suffix in ("bin", "idx")}
    return ShardRecord(name, sequences, num_documents, len(ids), files)


def write_manifest(folder: Path, shards: list[ShardRecord], tokenizer: PretrainingTokenizer) -> None:
    totals = {name: sum(getattr(shard, name) for shard in shards) for name in ("documents", "sequences", "tokens")}
    DatasetManifest(
        dtype="uint16",
        vocab_size=tokenizer.vocab_size,
        special_ids={"eos": EOS_ID},
        tokenizer_fingerprint=tokenizer.fingerprint,
        shards=shards,
        sources=[],
        command="random ids",
        tool_version="",
        **totals,
    ).save(folder)


def verify_speed(folder: Path) -> float:
    start = time.perf_counter()
    found = verify(folder, show_progress=False)
    assert not found.problems, found.problems
    return found.num_bytes / 1e9 / (time.perf_counter() - start)


def sha256_speed(folder: Path) -> float:
    digest, size, start = hashlib.sha256(), 0, time.perf_counter()
    with open(folder / "shard-00000.bin", "rb", buffering=0) as file:
        while block := file.read(MIB):
            digest.update(block)
            size += len(block)
    return size / 1e9 / (time.perf_counter() - start)


if __name__ == "__main__":
    run(main)
