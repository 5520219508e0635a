"""Computes the tables of scaling.md: python benchmarks/scaling.py [--write benchmarks/scaling.md]

Prints them, or puts each into the file between its two marks. The formulas stand in ``scaling_model.py``; the tables
*measured* hold them against what ``measure_scaling.py`` counted on one machine. (``bench_scaling.py`` is another thing: it
times how a step grows on the machine that it runs on.)
"""

import argparse
import json
import re
import statistics
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import scaling_model as model
from scaling_model import BASE, MODELS, NETWORKS, NODE, RANKS, Engine, Model, Work

RESULTS = Path(__file__).parent / "results" / "scaling_2-cores_2026-11-21.json"
ROWS = {"base": 64, "large": 32, "1.3 B": 16}
"""Rows of a micro batch; 20 to 27 GiB of activations each by mpnet_ds/preflight/memory_estimate.py."""
MEASURED_MFU, TARGET_MFU = 0.115, 0.39
SHIPPED_BUCKET = int(25e6)
"""reduce_bucket_size of ds_configs/multi_node.json."""
LARGE_BUCKET = int(2e8)
"""As many configurations have it."""
GIGA = 1e9


def table(head: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Markdown; floats are rounded to three digits by ``short``."""
    lines = [list(head), ["---"] * len(head), *[[short(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def short(value) -> str:
    """Three digits and more where the number is large: ``0.438``, ``12.3``, ``4,096``."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–" if value is None else str(value)
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if abs(value) < 10 else 1}f}" if abs(value) >= 0.1 else f"{value:.2g}"


@cache
def results() -> dict:
    """What was measured: part → {"versions", "found"}."""
    return json.loads(RESULTS.read_text())


def found(part: str) -> list[dict]:
    return results()[part]["found"]


# Computed


def recommendations() -> str:
    """The least accumulation with which the GPUs compute nine tenths of the time, at ZeRO 0 and 1, by network and model."""
    rows = []
    for network in NETWORKS:
        for one in MODELS:
            for n in RANKS[1:]:
                engines = [Engine(0), Engine(1, reduce_bucket=SHIPPED_BUCKET, overlap=True)]
                cells = [network.name, one.name, n]
                for mfu in (MEASURED_MFU, TARGET_MFU):
                    work = Work(one, ROWS[one.name], mfu)
                    least = [model.accumulation_for(work, engine, network, n) for engine in engines]
                    cells += [*least, least[1] * work.rows * n if least[1] else None]
                rows.append(cells)
    head = ["network", "model", "ranks"]
    for mfu in (MEASURED_MFU, TARGET_MFU):
        head += [f"A at {mfu:.1%} MFU, ZeRO 0", "ZeRO 1", "rows an update, ZeRO 1"]
    return table(head, rows)


def sent() -> str:
    """GB sent by each rank in an update, A = 1 and A = 4."""
    rows = []
    for one in MODELS:
        for stage in range(4):
            cells = [f"{one.name}, {model.count(one) / 1e6:,.1f} M", stage]
            for a in (1, 4):
                cells += [model.bytes_sent(one, Engine(stage, a), n) / GIGA for n in RANKS]
            rows.append(cells)
    return table(["model", "ZeRO", *(f"{n:,} ranks, A={a}" for a in (1, 4) for n in RANKS)], rows)


def message_counts() -> str:
    """Collectives of an update, by what they carry."""
    rows = []
    for one in MODELS:
        for stage in range(4):
            engine = Engine(stage, 4)
            parts = {c.what: c.calls for c in model.collectives(one, engine, 64)}
            text = ", ".join(f"{what} {calls:g}" for what, calls in parts.items())
            rows.append([one.name, stage, model.messages(one, Engine(stage, 1), 64), sum(parts.values()), text])
    return table(["model", "ZeRO", "A=1", "A=4", "of these, A=4"], rows)


def step_times(mfu: float, stages: Sequence[int]) -> str:
    """Milliseconds: computing + communication and agreement that nothing hides; A = 4."""
    rows = []
    for network in NETWORKS:
        for one in MODELS:
            for stage in stages:
                engine = Engine(stage, 4, reduce_bucket=SHIPPED_BUCKET if stage else int(5e8), overlap=True)
                times = [model.step_time(Work(one, ROWS[one.name], mfu), engine, network, n) for n in RANKS]
                cells = [
                    f"{t.computing * 1e3:,.0f} + {t.exposed * 1e3:,.0f} + {t.agreement * 1e3:,.0f} ({t.efficiency:.0%})"
                    for t in times
                ]
                rows.append([network.name, one.name, stage, *cells])
    return table(["network", "model", "ZeRO", *(f"{n:,} ranks" for n in RANKS)], rows)


def fixed_batch(rows_of_update: int = 4096) -> str:
    """The same update on more and more GPUs."""
    rows = []
    for n in RANKS:
        of_rank = rows_of_update // n
        micro = min(of_rank, ROWS["base"])
        engine = Engine(1, of_rank // micro, reduce_bucket=SHIPPED_BUCKET, overlap=True)
        cells = [n, micro, engine.accumulation]
        for network in NETWORKS:
            time = model.step_time(Work(BASE, micro, TARGET_MFU), engine, network, n)
            cells.append(f"{time.total * 1e3:,.0f} ms ({time.efficiency:.0%})")
        rows.append(cells)
    return table(["ranks", "micro batch", "accumulation", *(network.name for network in NETWORKS)], rows)


def bucket_sizes() -> str:
    """multi_node.json as shipped, and with larger buckets: 64 ranks, A = 1, target MFU."""
    rows = []
    for one in MODELS:
        for bucket in (LARGE_BUCKET, SHIPPED_BUCKET):
            engine = Engine(1, reduce_bucket=bucket, overlap=True)
            calls = next(c.calls for c in model.collectives(one, engine, 64) if c.what == "gradients")
            cells = [one.name, bucket, calls]
            for network in NETWORKS:
                time = model.step_time(Work(one, ROWS[one.name], TARGET_MFU), engine, network, 64)
                cells.append(time.exposed * 1e3)
            rows.append(cells)
    return table(["model", "reduce_bucket_size", "messages", *(f"ms exposed, {n.name}" for n in NETWORKS)], rows)


def memory() -> str:
    """GiB of a GPU, states + activations."""
    rows = []
    for one in MODELS:
        for stage in range(4):
            cells = [one.name, ROWS[one.name], stage]
            for n in RANKS:
                states, activations = model.memory(one, stage, n, ROWS[one.name], SHIPPED_BUCKET)
                cells.append(f"{states:.1f} + {activations:.1f}")
            rows.append(cells)
    return table(["model", "rows", "ZeRO", *(f"{n:,} ranks" for n in RANKS)], rows)


def starting() -> str:
    """What a start asks for."""
    size = found("facts")[0]["bytes"]
    compare = {f["ranks"]: f["seconds"] for f in found("facts")}
    programs, dataset = _start_operations()
    rows = []
    for n in RANKS:
        rows.append(
            [
                n,
                model.gloo_connections(n),
                model.gloo_connections(n) * min(n, NODE),
                model.store_requests(n),
                model.store_connections(n),
                model.board_requests(n),
                n * size / 1e6,
                compare[n],
                n * programs / 1e6,
                n * dataset(64) / 1e6,
            ]
        )
    head = ["ranks", "gloo connections of a rank", "of a node", "messages to the store for them", "connections of the store"]
    head += ["watchdog's requests/s at rank 0", "MB of inspections for each rank", "s to compare them (measured)"]
    head += ["million look-ups of program files", "million look-ups of 64 shards"]
    return table(head, rows)


def saving() -> str:
    """Size and seconds of a save, metadata operations."""
    rows = []
    first, other = _save_operations()
    for one in MODELS:
        for stage in (1, 3):
            for n in RANKS:
                total, of_first, of_rank = model.checkpoint_sizes(one, stage, n)
                cells = [one.name, stage, n, total / GIGA, of_first / 1e6, of_rank / 1e6]
                cells += [model.save_seconds(one, stage, n, rate * GIGA) for rate in (1, 10, 100)]
                cells += [model.verify_seconds(total), first(n) + (n - 1) * other if stage == 1 else None]
                rows.append(cells)
    head = ["model", "ZeRO", "ranks", "GB", "MB of rank 0", "MB of another rank", "s at 1 GB/s", "s at 10", "s at 100"]
    return table([*head, "s to verify at a resume", "metadata operations"], rows)


# Measured


def engine_of(setup: dict) -> tuple[Model, Engine]:
    """The model and the engine of a run of measure_scaling.py."""
    from scaled_runs import Shape, thresholds

    shape = Shape(**setup["shape"])
    zero = thresholds(shape, setup["stage"]) | dict(setup["zero"])
    names = {
        "reduce_bucket_size": "reduce_bucket",
        "stage3_prefetch_bucket_size": "prefetch_bucket",
        "stage3_max_reuse_distance": "reuse_distance",
        "stage3_param_persistence_threshold": "persistence_threshold",
    }
    sizes = {names[key]: value for key, value in zero.items() if key in names}
    e = 4 if setup["precision"] == "fp32" else 2
    positions = max(shape.positions, 34)
    one = Model("measured", shape.layers, shape.width, shape.heads, shape.vocabulary, positions)
    return one, Engine(setup["stage"], setup["accumulation"], e, overlap=setup["stage"] == 1, **sizes)


def compare_update(run: dict) -> dict:
    """Calls and bytes of one update: counted, computed; ``error``: of the bytes."""
    setup, update = run["setup"], "update 3"
    one, engine = engine_of(setup)
    n = setup["ranks"]
    counted = run["calls"][update]
    on_wire = statistics.mean(run["sent"][update])
    computed = model.bytes_sent(one, engine, n, on_gloo=True)
    return {
        "numbers": model.count(one),
        "calls": sum(counted.values()),
        "computed calls": model.messages(one, engine, n),
        "bytes on the wire": on_wire,
        "computed bytes": computed,
        "error": (computed / on_wire - 1) if on_wire else 0.0,
    }


def measured_updates(part: str) -> str:
    """Counted and computed, each run."""
    rows = []
    for run in found(part):
        setup, c = run["setup"], compare_update(run)
        shape = setup["shape"]
        name = f"{shape['layers']} × {shape['width']}"
        rows.append(
            [
                name,
                f"{c['numbers'] / 1e6:.2f}",
                setup["precision"],
                setup["stage"],
                setup["ranks"],
                setup["accumulation"],
                c["calls"] if setup["ranks"] > 1 else 0,
                c["computed calls"],
                f"{c['bytes on the wire'] / 1e6:,.3f}",
                f"{c['computed bytes'] / 1e6:,.3f}",
                f"{c['error']:+.2%}" if setup["ranks"] > 1 else "–",
            ]
        )
    head = ["model", "million numbers", "precision", "ZeRO", "ranks", "A", "collectives counted", "computed"]
    return table([*head, "MB sent by a rank, counted on its sockets", "computed", "error"], rows)


def measured_mesh() -> str:
    """gloo's mesh and small all-reduce."""
    rows = []
    for f in found("mesh"):
        n = f["ranks"]
        # Both ends of each connection are in this one process; the store's two ends come on top.
        between = (f["connections of all ranks"] - 2 * n) / n
        rows.append(
            [
                n,
                f"{between:.0f}",
                model.gloo_connections(n),
                f"{f['asked of the store']:.1f}",
                model.store_requests(n) / n,
                f["segments of a rank in an all-reduce"],
                2 * (n - 1),
                f["seconds"] * 1e3,
                f["seconds"] * 1e6 / (2 * (n - 1)),
            ]
        )
    head = ["ranks", "connections of a rank, counted", "computed", "messages of a rank to the store, counted", "computed"]
    head += ["TCP segments of a rank for 48 bytes", "hops, 2 (n-1)", "ms an all-reduce", "µs a hop"]
    return table(head, rows)


def _start_operations() -> tuple[float, Callable[[int], float]]:
    """Of one rank: look-ups and opens of program files; those of a dataset, by its shards (a line through two points)."""
    runs = {(f["setup"]["stage"], f["setup"]["ranks"], f["setup"]["shards"]): f["operations"] for f in found("files")}
    programs = statistics.mean(_operations(rank, "programs") for rank in runs[1, 8, 4])
    few = statistics.mean(_operations(rank, "dataset") for rank in runs[1, 2, 4])
    many = statistics.mean(_operations(rank, "dataset") for rank in runs[1, 2, 16])
    slope = (many - few) / 12
    return programs, lambda shards: few + (shards - 4) * slope


def _operations(rank: dict, place: str, phases: Sequence[str] = ("imports", "start", "update")) -> int:
    """Metadata operations of a rank in a place: the phases whose names begin so."""
    fitting = (places.get(place, {}) for phase, places in rank.items() if phase.startswith(tuple(phases)))
    return sum(sum(kinds.values()) for kinds in fitting)


def _save_operations() -> tuple[Callable[[int], float], float]:
    """ZeRO 1: of rank 0 by the number of ranks (a line through 2 and 8), and of any other rank."""
    runs = {f["setup"]["ranks"]: f["operations"] for f in found("files") if _is_plain(f["setup"])}
    first = {n: _save_of(runs[n][0]) for n in runs}
    slope = (first[8] - first[2]) / 6
    return (lambda n: first[2] + (n - 2) * slope), statistics.mean(_save_of(rank) for rank in runs[8][1:])


def _is_plain(setup: dict) -> bool:
    return setup["stage"] == 1 and setup["shards"] == 4


def _save_of(rank: dict) -> int:
    return sum(_operations(rank, place, ["save"]) for place in ("checkpoints", "output"))


def measured_files() -> str:
    """Metadata operations that were traced."""
    rows = []
    first, other = _save_operations()
    for f in found("files"):
        setup, ranks = f["setup"], f["operations"]
        n = setup["ranks"]
        others = [_save_of(rank) for rank in ranks[1:]]
        rows.append(
            [
                setup["stage"],
                n,
                setup["shards"],
                statistics.mean(_operations(rank, "programs") for rank in ranks),
                statistics.mean(_operations(rank, "dataset") for rank in ranks),
                sum(_operations(rank, place) for rank in ranks[:1] for place in ("output", "checkpoints")),
                _save_of(ranks[0]),
                first(n) if _is_plain(setup) else None,
                statistics.mean(others) if others else None,
                other if _is_plain(setup) else None,
                ", ".join(f"{kind} {count}" for kind, count in sorted(_kinds_of_save(ranks[0]).items())),
            ]
        )
    head = ["ZeRO", "ranks", "shards", "start: program files, a rank", "start: dataset, a rank", "start: output, rank 0"]
    head += ["save: rank 0", "line", "save: another rank", "mean of 8 ranks", "save of rank 0 by kind"]
    return table(head, rows)


def _kinds_of_save(rank: dict) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for place in ("checkpoints", "output"):
        for kind, count in rank.get("save", {}).get(place, {}).items():
            kinds[kind] = kinds.get(kind, 0) + count
    return kinds


def measured_times() -> str:
    """Start-up and save of real runs, medians of the rounds, as ratios to one rank."""
    by: dict[int, list[dict]] = {}
    for f in found("times"):
        by.setdefault(f["ranks"], []).append(f)
    keys = ("first update", "processor", "save", "load")
    first, busy, save, load = ({n: statistics.median(f[key] for f in by[n]) for n in by} for key in keys)
    cores, most = int(results()["times"]["versions"]["cores"]), max(by)
    slope = (first[most] - first[cores]) / (most - cores)
    rows = []
    for n in by:
        line = first[cores] + max(0, n - cores) * slope
        size = by[n][0]["bytes"] / 1e6
        computed = model.checkpoint_total(*_middle(), n) / 1e6
        start = [f"{load[n]:.0f}", first[n], first[n] / first[1], line, busy[n], busy[n] / busy[1]]
        rows.append([n, len(by[n]), *start, size, computed, save[n], save[n] / save[1]])
    head = ["ranks", "rounds", "load of the machine", "s to the first update", "of one rank's"]
    head += [f"line through {cores} and {most}", "s of the processor of a rank", "of one rank's", "MB saved", "computed"]
    return table([*head, "s of the save", "of one rank's"], rows)


def _middle() -> tuple[Model, int]:
    from scaled_runs import MIDDLE

    return Model("middle", MIDDLE.layers, MIDDLE.width, MIDDLE.heads, MIDDLE.vocabulary, MIDDLE.positions), 1


TABLES: dict[str, Callable[[], str]] = {
    "recommendations": recommendations,
    "bytes": sent,
    "messages": message_counts,
    "times at the target": lambda: step_times(TARGET_MFU, (0, 1, 2, 3)),
    "times as measured": lambda: step_times(MEASURED_MFU, (1,)),
    "fixed batch": fixed_batch,
    "buckets": bucket_sizes,
    "memory": memory,
    "starting": starting,
    "saving": saving,
    "measured updates": lambda: measured_updates("messages"),
    "measured base": lambda: measured_updates("real"),
    "measured mesh": measured_mesh,
    "measured files": measured_files,
    "measured times": measured_times,
}


def put_in(text: str, tables: dict[str, str]) -> str:
    """``text`` with each table between ``<!-- NAME -->`` and ``<!-- end -->``; KeyError for a mark without a table."""
    mark = re.compile(r"<!-- (?!end)(.+?) -->\n(.*?)<!-- end -->", re.DOTALL)
    return mark.sub(lambda found: f"<!-- {found[1]} -->\n{tables[found[1]]}\n<!-- end -->", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into this file instead of printing them")
    arguments = parser.parse_args()
    tables = {name: make() for name, make in TABLES.items()}
    if arguments.write:
        arguments.write.write_text(put_in(arguments.write.read_text(), tables))
        return
    for name, text in tables.items():
        print(f"{name}\n\n{text}\n")


if __name__ == "__main__":
    main()
