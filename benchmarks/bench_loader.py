"""Times the loader on random ids: python benchmarks/bench_loader.py --folder /tmp/bench-loader --tokens 1000000000

Makes a dataset of that many ids in --folder (once: a second run finds it), with documents of 500 tokens on average, lines of
25, and words of which one in five has a second piece. Prints for each way to make samples the seconds from opening to the
first batch, and tokens/s of ``PretrainingDataset.batch``: reading, permutation, whole-word masking and corruption together,
in one thread. Rates are per second of processor time (on an idle machine that is the clock's), medians over --repeats rounds
in which the ways take turns. The last line is the table as JSON.

--compare DIR times the mpnet_ds of another checkout too, in a process of its own in each round.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from mpnet_ds.command_line import Parser, run
from mpnet_ds.data import MaskingConfig, PretrainingDataset, build_dataset
from mpnet_ds.data.token_file import HEADER, MAGIC, VERSION
from mpnet_ds.tokenizer import EOS_ID, PretrainingTokenizer

VOCAB_SIZE, CONTINUATIONS = 30527, 5828  # of bert-base-uncased, whose layout MPNet's vocabulary has
FIRST_PIECE, FIRST_CONTINUATION = 5, VOCAB_SIZE - 1 - CONTINUATIONS
TOKENS_OF_A_DOCUMENT, TOKENS_OF_A_LINE, SHARE_OF_CONTINUATIONS = 500, 25, 1 / 6
TOKENS_PER_SHARD = 1 << 28
DOCUMENTS_AT_ONCE = 2_000

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
    parser.add_argument("--folder", required=True, metavar="DIR", help="where the dataset is made, or was by a run before")
    parser.add_argument(
        "--tokens", type=int, default=1_000_000_000, metavar="N", help="2 bytes of disk each, and a tenth more"
    )
    parser.add_argument("--seq_length", type=int, default=512, metavar="N")
    parser.add_argument("--rows", type=int, default=32, metavar="N", help="rows of a batch")
    parser.add_argument("--batches", type=int, default=100, metavar="N", help="batches of one measurement")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--compare", metavar="DIR", help="another checkout, to be timed beside this one (stream only)")
    parser.add_argument("--stream_only", action="store_true", help="print the rate of the plain way alone and stop")
    arguments = parser.parse_args()
    folder = Path(arguments.folder) / f"tokens-{arguments.tokens}"
    if arguments.stream_only:
        data = PretrainingDataset(folder, arguments.seq_length)
        data.batch(np.arange(arguments.rows))
        print(rate_of(data, arguments))
        return
    if not folder.is_dir():
        make_dataset(folder, arguments.tokens)
    table = measure(folder, arguments)
    show(table)
    print(json.dumps(table))


def measure(folder: Path, arguments) -> list[dict]:
    """One row for each way: seconds to the first batch, tokens/s, and the rate as a multiple of the plain way's."""
    opened, rates, seconds = {}, {name: [] for name in WAYS}, {}
    for name, settings in WAYS.items():
        begin = time.perf_counter()
        masking = MaskingConfig(**settings.get("masking", {}))
        opened[name] = PretrainingDataset(folder, arguments.seq_length, **settings | {"masking": masking})
        opened[name].batch(np.arange(arguments.rows))
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
            "share_of_padding": float(1 - opened[name].tokens_per_row / arguments.seq_length) if name in opened else None,
        }
        for name, found in rates.items()
    ]


def rate_of(data: PretrainingDataset, arguments) -> float:
    """Slots for tokens (padding counts) per second of this thread's processor time."""
    begin = time.thread_time()
    for number in range(arguments.batches):
        data.consecutive(number * arguments.rows, arguments.rows)
    return arguments.batches * arguments.rows * arguments.seq_length / (time.thread_time() - begin)


def rate_of_checkout(arguments) -> float:
    """The plain way's rate with the package of another checkout."""
    command = [sys.executable, __file__, "--stream_only"]
    for name in ("folder", "tokens", "seq_length", "rows", "batches"):
        command += [f"--{name}", str(getattr(arguments, name))]
    environment = os.environ | {"PYTHONPATH": arguments.compare}
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def show(table: list[dict]) -> None:
    print(f"{'way':28} {'first batch':>12} {'tokens/s':>12} {'× plain':>8} {'padding':>8}")
    for row in table:
        first = f"{row['seconds_to_first_batch']:10.3f} s" if row["seconds_to_first_batch"] is not None else "–"
        padding = f"{row['share_of_padding']:8.1%}" if row["share_of_padding"] is not None else "–"
        print(f"{row['way']:28} {first:>12} {row['tokens_per_second']:12,.0f} {row['times_plain']:8.2f} {padding:>8}")


def make_dataset(folder: Path, num_tokens: int) -> None:
    """A dataset folder built from a small text, whose shards are then replaced by random ids.

    The same documents are written again and again: the loader's speed does not depend on what the ids are.
    """
    work = folder.with_name(folder.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    save_tokenizer(work / "tokenizer")
    (work / "text.txt").write_text(" ".join(["w5"] * 100))
    build_dataset([str(work / "text.txt")], work / "tokenizer", work / "dataset", show_progress=False)
    built = work / "dataset"
    for file in built.glob("shard-*"):
        file.unlink()
    block, shards, written = random_documents(), [], 0
    while written < num_tokens:
        shards.append(write_shard(built / f"shard-{len(shards):05d}", *block, min(TOKENS_PER_SHARD, num_tokens - written)))
        written += shards[-1]["tokens"]
    manifest = json.loads((built / "dataset.json").read_text())
    # Checksums of random ids are of no use to anybody: those of the small text stay.
    pattern = manifest["shards"][0]
    for shard in shards:
        for suffix, record in pattern["files"].items():
            shard["files"][suffix] = record | shard["files"][suffix]
    manifest["shards"] = [pattern | shard for shard in shards]
    for name in ("documents", "sequences", "tokens"):
        manifest[name] = sum(shard[name] for shard in shards)
    (built / "dataset.json").write_text(json.dumps(manifest))
    built.rename(folder)
    shutil.rmtree(work)


def random_documents() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some documents end to end: ids uint16, tokens in each line int32, lines in each document int64.

    A document's last line ends in ``</s>``; no line begins within a word.
    """
    generator = np.random.default_rng(0)
    lines = generator.geometric(TOKENS_OF_A_LINE / TOKENS_OF_A_DOCUMENT, DOCUMENTS_AT_ONCE)
    sizes = 1 + generator.geometric(1 / (TOKENS_OF_A_LINE - 1), lines.sum())
    ids = generator.integers(FIRST_PIECE, FIRST_CONTINUATION, sizes.sum())
    continues = generator.random(ids.size) < SHARE_OF_CONTINUATIONS
    continues[np.cumsum(sizes) - sizes] = False
    ids[continues] = generator.integers(FIRST_CONTINUATION, VOCAB_SIZE - 1, continues.sum())
    ids[np.cumsum(sizes)[np.cumsum(lines) - 1] - 1] = EOS_ID
    return ids.astype("<u2"), sizes.astype("<i4"), lines


def write_shard(prefix: Path, ids: np.ndarray, sizes: np.ndarray, lines: np.ndarray, num_tokens: int) -> dict:
    """The documents again and again until there are ``num_tokens``; returns the shard's entry of the manifest."""
    repeats = -(-num_tokens // ids.size)
    sizes, lines = np.tile(sizes, repeats), np.tile(lines, repeats)
    with open(prefix.with_suffix(".bin"), "wb") as file:
        for _ in range(repeats):
            file.write(ids.data)
    with open(prefix.with_suffix(".idx"), "wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, 8, len(sizes), len(lines) + 1))
        file.write(sizes.data)
        file.write(((np.cumsum(sizes, dtype="<i8") - sizes) * ids.itemsize).data)
        file.write(np.append(0, np.cumsum(lines, dtype="<i8")).data)
    counts = {"sequences": len(sizes), "documents": len(lines), "tokens": repeats * ids.size}
    sizes = {suffix: {"bytes": prefix.with_suffix(f".{suffix}").stat().st_size} for suffix in ("bin", "idx")}
    return {"name": prefix.name, **counts, "files": sizes}


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of 30,527 made-up pieces with the ids of the constants above."""
    starts = [f"w{i}" for i in range(FIRST_PIECE, FIRST_CONTINUATION)]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", *starts, *(f"##x{i}" for i in range(CONTINUATIONS)), "<mask>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    PretrainingTokenizer(backend, "random words").save(folder)


if __name__ == "__main__":
    run(main)
