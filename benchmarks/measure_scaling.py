"""Measures on this machine what ``scaling.py`` computes for clusters: python benchmarks/measure_scaling.py messages times

Every part starts real runs of ``counted_pretrain.py`` (launch/pretrain.py with counters) and puts what they counted into
one JSON file, ``--results``, in place of what that part left there before:

    messages   collectives and bytes of an update, by ZeRO stage, ranks and accumulation, on models whose sizes are those of
               base, large and 1.3 B divided (see ``SHRUNK``), so that DeepSpeed's thresholds divide them alike
    real       the same for base as it is, two ranks
    files      metadata operations of a start and a save, by strace, for several numbers of ranks and shards
    times      seconds to the first update and of a save, for several numbers of ranks, medians of ``--rounds`` in turns
    mesh       gloo alone, with ranks that are threads: connections, what the store is asked, what a small all-reduce sends
    facts      the comparison of all ranks' inspections, simulated for thousands of ranks

Counts are exact and the same each time. Times are of this machine, and good for ratios only.
"""

import argparse
import json
import os
import pickle
import platform
import re
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import numpy as np

from mpnet_ds.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results" / "scaling_2-cores_2026-11-21.json"
LAUNCHER = "deepspeed"
TIMEOUT = 1200  # seconds of one run
STAGES = {0: "zero0", 1: "multi_node", 2: "zero2", 3: "zero3"}
DATA_SEGMENTS_OUT = 156
"""Offset of ``tcpi_data_segs_out`` in Linux's ``struct tcp_info``."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; ``divisor`` k: width, vocabulary and positions are the k-th part of the real ones."""

    layers: int
    width: int
    heads: int
    vocabulary: int = 30527
    positions: int = 514
    divisor: int = 1

    def divided(self, k: int) -> "Shape":
        """Matrices become k² times smaller; DeepSpeed's thresholds must follow, see ``thresholds``."""
        return Shape(self.layers, self.width // k, self.heads, self.vocabulary // k, self.positions // k + 2, k)


SHAPES = {"base": Shape(12, 768, 12), "large": Shape(24, 1024, 16), "1.3 B": Shape(24, 2048, 32)}
SHRUNK = {"base": SHAPES["base"].divided(8), "large": SHAPES["large"].divided(8), "1.3 B": SHAPES["1.3 B"].divided(16)}
MIDDLE = Shape(12, 384, 6)
"""For the time of a save: large enough that the disk matters, small enough for eight ranks on a small machine."""


def thresholds(shape: Shape, stage: int) -> dict:
    """``zero_optimization`` for a divided model, as the shipped file's values are for the real one."""
    area = shape.divisor**2
    if not stage:
        return {}
    section = {"reduce_bucket_size": (int(2e8) if stage == 1 else int(5e8)) // area}
    if stage == 3:
        section |= {
            "stage3_prefetch_bucket_size": int(5e7) // area,
            "stage3_max_live_parameters": int(1e9) // area,
            "stage3_max_reuse_distance": int(1e9) // area,
            # Between the largest vector (4 widths) and the smallest matrix, as 1e5 is for the real models.
            "stage3_param_persistence_threshold": int(1e5) if shape.divisor == 1 else 8 * shape.width,
        }
    return section


# Runs


def make_data(folder: Path, vocabulary: int, shards: int, tokens: int = 200_000) -> Path:
    """A dataset of random ids with a vocabulary of so many pieces; made once."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers

    from mpnet_ds.data.manifest import TOKENIZER, DatasetManifest, ShardRecord
    from mpnet_ds.data.token_file import TokenFileWriter, token_dtype
    from mpnet_ds.tokenizer import EOS_ID, PretrainingTokenizer

    if (folder / "dataset.json").exists():
        return folder
    folder.mkdir(parents=True)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", *(f"w{i}" for i in range(vocabulary - 6)), "<mask>"]
    backend = tokenizers.Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer = PretrainingTokenizer(backend, "random words")
    tokenizer.save(folder / TOKENIZER)
    records = []
    for number in range(shards):
        ids = np.random.default_rng(number).integers(5, vocabulary - 1, tokens // shards)
        ids[-1] = EOS_ID
        writer = TokenFileWriter(folder / f"shard-{number:05d}", token_dtype(vocabulary))
        writer.add_documents(ids, np.array([len(ids)]), np.array([1]))
        writer.close()
        records.append(ShardRecord.of(writer))
    DatasetManifest.of(tokenizer, records, sources=[], options={}).save(folder)
    return folder


@dataclass(frozen=True)
class Setup:
    """One run."""

    shape: Shape
    stage: int
    ranks: int
    accumulation: int = 1
    precision: str = "bf16"
    shards: int = 4
    updates: int = 4
    zero: tuple = ()
    """Pairs that go into ``zero_optimization``."""


def prepare(work: Path, setup: Setup, number: int = 0) -> dict:
    """A run for counted_pretrain.py: writes its recipe and DeepSpeed's file into a folder of its own."""
    shape, folder = setup.shape, work / f"run-{number}"
    data = make_data(work / f"data-{shape.vocabulary}-{setup.shards}", shape.vocabulary, setup.shards)
    model = {"num_hidden_layers": shape.layers, "hidden_size": shape.width, "num_attention_heads": shape.heads}
    model |= {"intermediate_size": 4 * shape.width, "max_position_embeddings": max(shape.positions, 34)}
    optimization = {"max_steps": setup.updates, "warmup_steps": 1, "micro_batch_size": 1, "precision": setup.precision}
    optimization["global_batch_size"] = setup.accumulation * setup.ranks
    run = {"save_interval": 10_000, "eval_interval": 10_000, "log_interval": 10_000}
    recipe = {"model": model, "data": {"seq_length": 32}, "optimization": optimization, "run": run}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps(recipe))
    config = json.loads((ROOT / "ds_configs" / f"{STAGES[setup.stage]}.json").read_text())
    if setup.stage:
        config["zero_optimization"] |= thresholds(shape, setup.stage) | dict(setup.zero)
    (folder / "deepspeed.json").write_text(json.dumps(config))
    words = ["--deepspeed_config", folder / "deepspeed.json", "--recipe", folder / "recipe.json", "--data", data]
    words += ["--output_dir", folder / "output"]
    return {"folder": str(folder), "arguments": [str(word) for word in words]}


def command(work: Path, runs: list[dict]) -> list[str]:
    (work / "runs.json").write_text(json.dumps(runs))
    return [str(ROOT / "benchmarks" / "counted_pretrain.py"), str(work / "runs.json")]


def environment() -> dict[str, str]:
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return os.environ | own | {"MEASURE_BEGIN": str(time.time())}


def launch(work: Path, setups: list[Setup]) -> list[list[dict]]:
    """Runs them under the launcher, in the same processes; what each rank counted in each run."""
    ranks = setups[0].ranks
    runs = [prepare(work, setup, number) for number, setup in enumerate(setups)]
    start = [LAUNCHER, "--num_accelerators", str(ranks), "--master_port", str(free_port()), *command(work, runs)]
    done = subprocess.run(start, env=environment(), capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        raise SystemExit(f"{ranks} ranks: exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return [[json.loads(Path(run["folder"], f"rank-{rank:05d}.json").read_text()) for rank in range(ranks)] for run in runs]


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


LOOKUPS = ("stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2", "readlink", "readlinkat")
KINDS = dict.fromkeys(LOOKUPS, "look") | {"open": "open", "openat": "open", "creat": "create"}
KINDS |= {"mkdir": "mkdir", "mkdirat": "mkdir", "rename": "rename", "renameat": "rename", "renameat2": "rename"}
KINDS |= {"unlink": "remove", "unlinkat": "remove", "rmdir": "remove", "fsync": "sync", "fdatasync": "sync"}


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


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# Parts


def measure_messages(work: Path, arguments) -> Iterator[dict]:
    """Of one settled update (the third), on each kind of run."""
    setups = [Setup(SHRUNK["base"], stage, 1) for stage in STAGES]
    setups += [Setup(SHRUNK["base"], stage, n, a) for n in (2, 4, 8) for stage in STAGES for a in (1, 4)]
    setups += [Setup(SHRUNK[name], stage, 2, a) for name in ("large", "1.3 B") for stage in STAGES for a in (1, 4)]
    setups += [Setup(SHRUNK["base"], stage, 2, 1, "fp32") for stage in STAGES]
    # Buckets of 25 million numbers, as scaling.md recommends.
    setups += [Setup(SHRUNK["base"], 1, 2, 4, zero=(("reduce_bucket_size", int(25e6) // 64),))]
    for n in sorted({setup.ranks for setup in setups}):
        yield from updates_of(work, [setup for setup in setups if setup.ranks == n])


def measure_real(work: Path, arguments) -> Iterator[dict]:
    """Base as it is, two ranks, on this machine."""
    setups = [Setup(SHAPES["base"], stage, 2, 2, updates=3) for stage in (1, 3)]
    setups += [Setup(SHAPES["base"], 1, 2, 2, updates=3, zero=(("reduce_bucket_size", int(25e6)),))]
    for n in sorted({setup.ranks for setup in setups}):
        yield from updates_of(work, [setup for setup in setups if setup.ranks == n])


def updates_of(work: Path, setups: list[Setup]) -> list[dict]:
    """What rank 0 called, and what all ranks sent, in the third update of each run; and at the start and in the save."""
    keep, found = ("start", "update 3", "save"), []
    for setup, records in zip(setups, launch(work, setups), strict=True):
        first = records[0]
        sent = {phase: [record["sent"].get(phase, {}).get("ranks", 0) for record in records] for phase in keep}
        store = {phase: [record["sent"].get(phase, {}).get("store", 0) for record in records] for phase in keep}
        print(f"{setup}: {sent['update 3']}", flush=True)
        counts = {"calls": {phase: first["calls"].get(phase, {}) for phase in keep}}
        counts["bytes"] = {phase: first["bytes"].get(phase, {}) for phase in keep}
        found.append({"setup": asdict(setup), **counts, "sent": sent, "sent_to_store": store, "groups": first["groups"]})
        found[-1]["connections"] = first["connections"]
    return found


def measure_files(work: Path, arguments) -> Iterator[dict]:
    """ZeRO 1 by ranks and by shards; ZeRO 3, whose ranks all write model states too."""
    setups = [Setup(SHRUNK["base"], 1, n) for n in (1, 2, 4, 8)]
    setups += [Setup(SHRUNK["base"], 1, 2, shards=16), Setup(SHRUNK["base"], 3, 4), Setup(SHRUNK["base"], 0, 4)]
    launch(work, setups[:1])  # Python's compiled files are there from here on
    for setup in setups:
        counts = launch_traced(work, setup)
        print(f"{setup}: {counts[0].get('save')}", flush=True)
        yield {"setup": asdict(setup), "operations": counts}


def measure_times(work: Path, arguments) -> Iterator[dict]:
    """Every round measures every number of ranks once."""
    for number in range(arguments.rounds):
        for n in (1, 2, 4, 8):
            begin = time.time()
            [records] = launch(work, [Setup(MIDDLE, 1, n, updates=2)])
            whole = time.time() - begin
            first = max(record["seconds"]["from the command to the first update"][0] for record in records)
            busy = statistics.mean(record["seconds"]["of the processor to the first update"][0] for record in records)
            sizes = [path.stat().st_size for path in (work / "run-0" / "output" / "checkpoints").glob("step-*/*.pt")]
            took = {"first update": first, "save": records[0]["seconds"]["save"][0], "whole": whole, "bytes": sum(sizes)}
            print(n, took, flush=True)
            yield {"round": number, "ranks": n, "processor": busy, **took, "load": os.getloadavg()[0]}


def measure_mesh(work: Path, arguments) -> list[dict]:
    """A gloo group of n ranks, each a thread of this process: its connections and its small all-reduce."""
    return [mesh_of(n) for n in (2, 4, 8, 16, 32, 64)]


def mesh_of(n: int, rounds: int = 50) -> dict:
    import torch
    from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

    port = free_port()
    before = open_sockets()
    stores = [TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)]
    stores += [TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False) for _ in range(n - 1)]
    asked = segments_to(port)
    groups: list = [None] * n

    def connect(rank: int) -> None:
        groups[rank] = ProcessGroupGloo(PrefixStore("mesh", stores[rank]), rank, n, timedelta(seconds=120))

    begin = time.perf_counter()
    in_threads(connect, n)
    seconds_to_connect = time.perf_counter() - begin
    counts = {"asked of the store": (segments_to(port) - asked) / n}
    sockets = open_sockets() - before

    def reduce(rank: int) -> None:
        for _ in range(rounds):
            groups[rank].allreduce([torch.zeros(6, dtype=torch.int64)]).wait()

    in_threads(reduce, n)  # the first has to find its buffers
    sent = segments_not_to(port)
    begin = time.perf_counter()
    in_threads(reduce, n)
    seconds = (time.perf_counter() - begin) / rounds
    counts["segments of a rank in an all-reduce"] = (segments_not_to(port) - sent) / rounds / n
    counts |= {"connections of all ranks": sockets, "seconds to connect": seconds_to_connect, "seconds": seconds}
    print(n, counts, flush=True)
    return {"ranks": n, **counts}


def in_threads(function, n: int) -> None:
    threads = [threading.Thread(target=function, args=[rank]) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def open_sockets() -> int:
    return len(list(_segments()))


def segments_to(port: int) -> int:
    """Sent so far by this process towards ``port``."""
    return sum(count for _, peer, count in _segments() if peer == port)


def segments_not_to(port: int) -> int:
    """Sent so far by this process on connections that have nothing to do with ``port``."""
    return sum(count for own, peer, count in _segments() if port not in (own, peer))


def _segments():
    """(own port, peer's port, segments with data that were sent) of each TCP connection of this process."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            descriptor = os.dup(int(name))
        except OSError:
            continue
        with socket.socket(fileno=descriptor) as copy:
            try:
                own, peer = copy.getsockname()[1], copy.getpeername()[1]
                info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, DATA_SEGMENTS_OUT + 4)
            except (OSError, IndexError):
                continue
            yield own, peer, struct.unpack_from("<I", info, DATA_SEGMENTS_OUT)[0]


def measure_facts(work: Path, arguments) -> list[dict]:
    """The gathering before a run: what a rank's inspection weighs, and what comparing N of them takes."""
    from mpnet_ds.training import preflight
    from mpnet_ds.training.deepspeed_config import load_deepspeed_config, resolve
    from mpnet_ds.training.pretrain import _versions
    from mpnet_ds.training.recipe import load_recipe

    path, recipe = str(ROOT / "ds_configs" / "multi_node.json"), load_recipe("mpnet-base")
    config = resolve(load_deepspeed_config(path), recipe.optimization, 8, {"fp32", "bf16", "fast-bf16"}, path)
    facts = _versions() | {"the dataset's checksum": "0" * 64, "the tokenizer's": "0" * 64}
    facts |= preflight.flatten("recipe", asdict(recipe)) | preflight.flatten("DeepSpeed's configuration", config.engine)
    size = len(pickle.dumps(preflight.Inspection(0, "node-0001", [], facts)))
    results = []
    for n in (8, 64, 512, 4096):
        inspections = [preflight.Inspection(rank, f"node-{rank // 8:04d}", [], dict(facts)) for rank in range(n)]
        travelled = [pickle.dumps(inspection) for inspection in inspections]
        begin = time.perf_counter()
        preflight.conclude([pickle.loads(text) for text in travelled])
        results.append({"ranks": n, "facts": len(facts), "bytes": size, "seconds": time.perf_counter() - begin})
        print(results[-1], flush=True)
    return results


PARTS = {
    "messages": measure_messages,
    "real": measure_real,
    "files": measure_files,
    "mesh": measure_mesh,
    "facts": measure_facts,
    "times": measure_times,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of the times (3)")
    arguments = parser.parse_args()
    for part in arguments.parts:
        found: list[dict] = []
        with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
            for one in PARTS[part](Path(folder), arguments):
                found.append(one)
                results = json.loads(arguments.results.read_text()) if arguments.results.is_file() else {}
                results[part] = {"versions": versions(), "found": found}
                write_atomically(arguments.results, json.dumps(results, indent=1) + "\n")


def versions() -> dict[str, str]:
    """Of what was measured with."""
    packages = {name: version(name) for name in ("torch", "deepspeed", "transformers", "numpy")}
    return {"python": platform.python_version(), "linux": platform.release(), "cores": str(os.cpu_count())} | packages


if __name__ == "__main__":
    main()
