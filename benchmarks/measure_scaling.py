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
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from gloo_mesh import mesh_of
from scaled_runs import MIDDLE, ROOT, SHAPES, SHRUNK, STAGES, Setup, launch
from traced_runs import launch_traced

from mpnet_ds.files import write_atomically

RESULTS = Path(__file__).parent / "results" / "scaling_2-cores_2026-11-21.json"


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


def measure_facts(work: Path, arguments) -> list[dict]:
    """The gathering before a run: what a rank's inspection weighs, and what comparing N of them takes."""
    from mpnet_ds.config.deepspeed_config import load_deepspeed_config, resolve
    from mpnet_ds.config.recipe import load_recipe
    from mpnet_ds.preflight import inspection
    from mpnet_ds.training.pretrain import _versions

    path, recipe = str(ROOT / "ds_configs" / "multi_node.json"), load_recipe("mpnet-base")
    config = resolve(load_deepspeed_config(path), recipe.optimization, 8, {"fp32", "bf16", "fast-bf16"}, path)
    facts = _versions() | {"the dataset's checksum": "0" * 64, "the tokenizer's": "0" * 64}
    facts |= inspection.flatten("recipe", asdict(recipe)) | inspection.flatten("DeepSpeed's configuration", config.engine)
    size = len(pickle.dumps(inspection.Inspection(0, "node-0001", [], facts)))
    results = []
    for n in (8, 64, 512, 4096):
        inspections = [inspection.Inspection(rank, f"node-{rank // 8:04d}", [], dict(facts)) for rank in range(n)]
        travelled = [pickle.dumps(inspection) for inspection in inspections]
        begin = time.perf_counter()
        inspection.conclude([pickle.loads(text) for text in travelled])
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
