"""Compute what a run costs on a cluster: python benchmarks/scaling.py

Prints the tables of docs/scaling.md, which also explains the formulas. (bench_scaling.py instead times how a
step grows on this machine.)

Notation: n ranks on m hosts of g GPUs, P numbers in a model, e bytes per number sent, A micro-batches a step.
"""

import math
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import NamedTuple

import torch
from report import markdown_table
from transformers import MPNetConfig

from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.models.module import ComputeSetting
from mpnet_ds.models.mpnet.sizes import flops_per_sequence, parameter_count, plan_of
from mpnet_ds.preflight.memory_estimate import Workload, checkpoint_bytes, estimate

RANKS, GPUS = (8, 64, 512, 4096), 8  # n, g
SEQ_LENGTH, PREDICTED = 512, 77
MEASURED_MFU, TARGET_MFU, PEAK = 0.115, 0.39, 989e12  # peak of H100 and H200: dense 16-bit operations a second
SHIPPED_BUCKET, DEFAULT_BUCKET = int(25e6), int(5e8)  # numbers: reduce_bucket_size of multi_node.json, and DeepSpeed's own
EFFICIENCY = 0.8  # share of the nominal bandwidth that a collective gets: an assumption
NVLINK, NVLINK_HOP = 450e9, 3.4e-6  # bytes/s of a GPU and direction; seconds (NCCL's src/graph/tuning.cc)
GLOO_HOP = 30e-6  # seconds: an assumption


@dataclass(frozen=True)
class Model:
    """Sizes of an encoder; heads of 64 unless given."""

    name: str
    layers: int
    width: int
    sequences: int = 1
    """Micro-batch of a rank."""
    heads: int = 0
    vocabulary: int = 30527
    positions: int = 514

    @property
    def config(self) -> MPNetConfig:
        sizes = {"num_attention_heads": self.heads or self.width // 64, "intermediate_size": 4 * self.width}
        sizes |= {"vocab_size": self.vocabulary, "max_position_embeddings": self.positions}
        return MPNetConfig(num_hidden_layers=self.layers, hidden_size=self.width, **sizes)


MODELS = BASE, LARGE, BILLION = Model("base", 12, 768, 64), Model("large", 24, 1024, 32), Model("1.3 B", 24, 2048, 16)


@cache
def parameter_sizes(model: Model) -> list[int]:
    """Numbers of each parameter, in the module's order; tied parameters once."""
    with torch.device("meta"):
        module = MPNetForPretraining(model.config, "mpnet")
    return [parameter.numel() for parameter in module.parameters()]


@dataclass(frozen=True)
class Engine:
    """DeepSpeed's settings that decide what is sent; sizes in numbers."""

    stage: int
    accumulation: int = 1
    bytes_per_number: int = 2
    reduce_bucket: int = DEFAULT_BUCKET
    overlap: bool = False
    prefetch_bucket: int = int(5e7)
    reuse_distance: int = int(1e9)
    persistence_threshold: int = int(1e5)


def shipped(stage: int, accumulation: int = 1) -> Engine:
    """Make the settings of multi_node.json, at any stage; ZeRO 0 ignores its buckets and overlap."""
    return Engine(stage, accumulation, reduce_bucket=SHIPPED_BUCKET if stage else DEFAULT_BUCKET, overlap=stage > 0)


class Collective(NamedTuple):
    """``calls`` calls per step, with ``size`` bytes in total."""

    what: str
    kind: str
    calls: int
    size: float


def buckets(sizes: list[int], bucket: int) -> int:
    """Count the gradients' messages: a bucket is sent when the next gradient would not fit; a larger one goes alone."""
    messages, filled = 0, 0
    for size in sizes:
        if filled and filled + size > bucket:
            messages, filled = messages + 1, 0
        filled += size
    return messages + bool(filled)


def padded(sizes: list[int], n: int) -> int:
    """Sum the sizes, each rounded up to a multiple of n."""
    return sum(-(-size // n) * n for size in sizes)


def collectives(model: Model, engine: Engine, n: int) -> list[Collective]:
    """List the collectives of one step; none for a single rank."""
    if n == 1:
        return []
    e, sizes = engine.bytes_per_number, parameter_sizes(model)
    times = engine.accumulation if engine.stage >= 2 else 1
    messages = times * buckets(sizes[::-1], engine.reduce_bucket)
    found = [Collective("agreement", "all_reduce", 1, 48), Collective("losses", "all_reduce", 1, 16)]
    if engine.stage == 3:
        return found + _stage_3(sizes, engine, n, messages)
    found.append(Collective("gradients", "all_reduce", messages, times * e * sum(sizes)))
    if engine.stage == 0:
        return [*found, Collective("norms", "all_reduce", 1, 4)] if e == 4 else found
    found += [Collective("parameters", "all_gather", 2, e * sum(sizes)), Collective("norms", "all_reduce", 2, 8)]
    return [*found, Collective("overflow", "all_reduce", 1, 1)] if e == 2 else found


def _stage_3(sizes: list[int], engine: Engine, n: int, messages: int) -> list[Collective]:
    e, a, threshold = engine.bytes_per_number, engine.accumulation, engine.persistence_threshold
    kept, divided = [size for size in sizes if size < threshold], [size for size in sizes if size >= threshold]
    again = share_gathered_again(sum(divided), engine.reuse_distance)
    rounds = sum(math.ceil(share * sum(divided) / engine.prefetch_bucket) for share in (1, again))
    return [
        Collective("gradients", "reduce_scatter", messages, a * e * padded(sizes, n)),
        Collective("matrices", "all_gather", a * rounds, a * e * padded(divided, n) * (1 + again)),
        Collective("vectors", "all_gather", len(kept), e * padded(kept, n)),
        Collective("norms", "all_reduce", 2, 16),
    ]


def share_gathered_again(numbers: int, reuse_distance: int) -> float:
    """Bound the share of the matrices that backward gathers a second time.

    A layer with q numbers after it is used again after 2 q, and stays gathered if that is less than the reuse distance.
    """
    return max(0.0, 1 - reuse_distance / (2 * numbers))


def ring_bytes(kind: str, size: float, n: int) -> float:
    """Compute the bytes that each rank sends in a ring; ``size``: what it has afterwards, or before a reduce-scatter."""
    return size * (n - 1) / n * (2 if kind == "all_reduce" else 1)


class Network(NamedTuple):
    """Network between hosts: bytes/s per host and direction, and seconds per hop."""

    name: str
    rate: float
    hop: float


FAST, ETHERNET = Network("8 × 400 Gb/s", 8 * 50e9, 14e-6), Network("25 Gb/s", 25e9 / 8, 50e-6)
NETWORKS = (FAST, Network("400 Gb/s", 50e9, 14e-6), ETHERNET)
CLUSTERS = list(product(NETWORKS, RANKS[1:]))


def seconds_of(c: Collective, network: Network, n: int) -> float:
    """Compute the time of all calls, one after another: bandwidth within hosts, plus between them, plus latency of hops."""
    g, m, twice = min(n, GPUS), -(-n // GPUS), 2 if c.kind == "all_reduce" else 1
    if c.what == "agreement":  # over gloo, which takes a ring at any size
        return c.calls * 2 * (n - 1) * GLOO_HOP
    rates = ((g, NVLINK), (m, network.rate))
    moving = sum(twice * (k - 1) / k * c.size / (rate * EFFICIENCY) for k, rate in rates)
    ring = twice * (m * (m > 1) * network.hop + (n - m) * NVLINK_HOP)
    tree = 2 * (math.ceil(math.log2(m)) * network.hop + (g - 1) * NVLINK_HOP)
    return moving + c.calls * (min(ring, tree) if twice == 2 else ring)


def step_time(model: Model, engine: Engine, network: Network, n: int, mfu: float = TARGET_MFU) -> tuple[float, float]:
    """Compute seconds of a step: computation, and communication that is not hidden.

    With ``overlap`` all buckets except the last hide behind backward, two thirds of a micro-batch; at stage 3 all gathers of
    matrices except the first hide behind the micro-batch. The agreement on a step hides behind the backward pass before it.
    """
    micro = model.sequences * flops_per_sequence(model.config, SEQ_LENGTH, PREDICTED) / (PEAK * mfu)
    calls = {c.what: c for c in collectives(model, engine, n)}
    seconds = {what: seconds_of(c, network, n) for what, c in calls.items()}
    agreement = max(0.0, seconds.pop("agreement", 0.0) - 2 / 3 * micro)
    times, hidden = engine.accumulation if engine.stage >= 2 else 1, 0.0
    windows = {"gradients": 2 / 3, "matrices": 1} if engine.stage == 3 or (engine.overlap and engine.stage) else {}
    for what in windows.keys() & calls.keys():
        hidden += min(seconds[what] * (1 - times / calls[what].calls), times * windows[what] * micro)
    return engine.accumulation * micro, sum(seconds.values()) - min(hidden, times * micro) + agreement


def efficiency(*setting) -> float:
    """Compute the share of a step in which the GPUs compute; arguments as in ``step_time``."""
    computing, exposed = step_time(*setting)
    return computing / (computing + exposed)


def least_accumulation(model: Model, network: Network, n: int, mfu: float, stage: int = 1) -> int:
    """Find the least power of 2 at which the GPUs compute nine tenths of the time."""
    return next(a for a in (2**power for power in range(31)) if efficiency(model, shipped(stage, a), network, n, mfu) >= 0.9)


def models() -> list[list]:
    """Tabulate size, memory per GPU and checkpoint of each model."""
    rows = [["model", "layers × width", "parameters", "micro-batch", "GiB, ZeRO 0", "GiB, ZeRO 1", "GB of a checkpoint"]]
    for model in MODELS:
        setting = ComputeSetting(bytes_per_number=2)
        sizes = plan_of(model.config, "mpnet", SEQ_LENGTH, PREDICTED, model.sequences, setting)
        work = Workload(sizes, "bf16", 0, 64)
        ours = replace(work, zero_stage=1, reduce_bucket_size=SHIPPED_BUCKET)
        figures = [estimate(work).total / 2**30, estimate(ours).total / 2**30, checkpoint_bytes(ours) / 1e9]
        named = f"{model.layers} × {model.width:,}", f"{parameter_count(model.config) / 1e6:,.1f} M", model.sequences
        rows.append([model.name, *named, *(f"{figure:.1f}" for figure in figures)])
    return rows


def accumulation() -> list[list]:
    """Tabulate the least accumulation at ZeRO 1, at both MFU."""
    rows = [["model", *(f"{network.name}, {n:,}" for network, n in CLUSTERS)]]
    for model in MODELS:
        least = [[least_accumulation(model, *cluster, mfu) for mfu in (MEASURED_MFU, TARGET_MFU)] for cluster in CLUSTERS]
        rows.append([model.name, *(f"{one} / {other}" for one, other in least)])
    return rows


def stages(accumulation: int = 4) -> list[list]:
    """Tabulate the share of a step in which the GPUs compute, by ZeRO stage."""
    rows = [["model", "ZeRO", *(f"{network.name}, {n:,}" for network, n in CLUSTERS)]]
    for model, stage in product((BASE, BILLION), range(4)):
        shares = [efficiency(model, shipped(stage, accumulation), *cluster) for cluster in CLUSTERS]
        rows.append([model.name, stage, *(f"{share:.0%}" for share in shares)])
    return rows


def fixed_batch(batch: int = 4096) -> list[list]:
    """Tabulate the same global batch on ever more GPUs, base at ZeRO 1."""
    rows = [["ranks", "micro-batch", "A", *(network.name for network in NETWORKS)]]
    for n in RANKS:
        model = replace(BASE, sequences=min(BASE.sequences, batch // n))
        a = batch // n // model.sequences
        times = [step_time(model, shipped(1, a), network, n) for network in NETWORKS]
        rows.append([f"{n:,}", model.sequences, a, *(f"{sum(t) * 1e3:,.0f} ms ({t[0] / sum(t):.0%})" for t in times)])
    return rows


TABLES = (models, accumulation, stages, fixed_batch)

if __name__ == "__main__":
    for make in TABLES:
        head, *rows = make()
        print(markdown_table(head, rows), end="\n\n")
