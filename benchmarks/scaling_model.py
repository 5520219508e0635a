"""What a run costs on clusters that are not here: formulas only. ``scaling.py`` makes the tables of ``scaling.md`` of them.

Computed are bytes and messages of an update, its time, and what a start and a save ask of rank 0 and of the file system.

Notation: n ranks on m nodes of g, P numbers in a model, e bytes a number on the wire, A micro batches (accumulation), S
bytes that a collective is about (what each rank has afterwards, or had before a reduce-scatter). Sent by each rank, ring:

    all_reduce 2 S (n-1)/n    all_gather, reduce_scatter S (n-1)/n    broadcast S, from the root and on to the last

DeepSpeed 0.19.8, as its code does it and as counted:

    ZeRO   gradients                            parameters
    0      all_reduce e P, once an update       –
    1      all_reduce e P, once an update       all_gather e P, once an update
    2      all_reduce e P, each micro batch     all_gather e P, once an update
    3      reduce_scatter e P, each micro batch all_gather of matrices each micro batch, again in backward as far as
                                                stage3_max_reuse_distance lets go of them; of each vector (smaller than
                                                stage3_param_persistence_threshold) once an update, one by one

ZeRO 1 and 2 reduce by all_reduce although reduce_scatter is true: use_multi_rank_bucket_allreduce is true as well.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch

from mpnet_ds.config.recipe import Recipe
from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.models.mpnet.sizes import flops_per_sequence
from mpnet_ds.objectives.model_section import ModelSection
from mpnet_ds.preflight.memory_estimate import Workload, checkpoint_bytes, estimate

RANKS = (8, 64, 512, 4096)
NODE = 8
"""g: ranks of a node."""
SEQ_LENGTH = 512
AGREEMENT, SUMS = 48, 16
"""Bytes of the trainer's own two all-reduces of an update: ``Control.agree`` (gloo) and the losses."""


# Models


@dataclass(frozen=True)
class Model:
    """Sizes of an encoder; heads are 64 wide and the inner network four times as wide as the outer where not said."""

    name: str
    layers: int
    width: int
    heads: int = 0
    vocabulary: int = 30527
    positions: int = 514

    @property
    def config(self):
        """As ``transformers`` has it."""
        heads = self.heads or self.width // 64
        sizes = ModelSection(self.layers, self.width, heads, 4 * self.width, max_position_embeddings=self.positions)
        seq = Recipe("", data=replace(Recipe("").data, seq_length=min(SEQ_LENGTH, self.positions - 2)), model=sizes)
        return seq.model.config(self.vocabulary)


BASE, LARGE, BILLION = Model("base", 12, 768), Model("large", 24, 1024), Model("1.3 B", 24, 2048)
MODELS = (BASE, LARGE, BILLION)


@cache
def tensors(model: Model) -> tuple[tuple[str, int, bool], ...]:
    """Name, numbers, and whether it is a matrix, of each parameter in the module's order; tied ones once."""
    with torch.device("meta"):
        module = MPNetForPretraining(model.config, "mpnet")
    return tuple((name, parameter.numel(), parameter.ndim >= 2) for name, parameter in module.named_parameters())


def count(model: Model) -> int:
    """P."""
    return sum(size for _, size, _ in tensors(model))


# Collectives of an update


@dataclass(frozen=True)
class Collective:
    """``calls`` calls in an update, together about ``size`` bytes."""

    what: str
    kind: str
    calls: float
    size: float
    backend: str = "device"


@dataclass(frozen=True)
class Engine:
    """What of DeepSpeed's JSON decides what is sent."""

    stage: int
    accumulation: int = 1
    bytes_per_number: int = 2
    """e: ``communication_data_type`` follows bf16 and fp16; 4 in fp32."""
    reduce_bucket: int = int(5e8)
    """Numbers."""
    overlap: bool = False
    """``overlap_comm``; DeepSpeed's default is false below stage 3."""
    prefetch_bucket: int = int(5e7)
    reuse_distance: int = int(1e9)
    persistence_threshold: int = int(1e5)


def buckets(sizes: Sequence[int], bucket: int) -> int:
    """Messages in which gradients leave: a bucket goes when the next gradient would not fit; a larger one goes alone."""
    messages, filled = 0, 0
    for size in sizes:
        if filled and filled + size > bucket:
            messages, filled = messages + 1, 0
        filled += size
    return messages + bool(filled)


def padded(size: int, n: int) -> int:
    """To a multiple of n."""
    return -(-size // n) * n


def collectives(model: Model, engine: Engine, n: int) -> list[Collective]:
    """Of one update; none where a rank is alone."""
    if n == 1:
        return []
    e, a, sizes = engine.bytes_per_number, engine.accumulation, tensors(model)
    total = sum(size for _, size, _ in sizes)
    in_backward = [size for _, size, _ in reversed(sizes)]
    parts = buckets(in_backward, engine.reduce_bucket)
    found = [Collective("agreement", "all_reduce", 1, AGREEMENT, "gloo"), Collective("losses", "all_reduce", 1, SUMS)]
    if engine.stage == 0:
        norm = [Collective("norms", "all_reduce", 1, 4)] if e == 4 else []
        return [*found, *norm, Collective("gradients", "all_reduce", parts, e * total)]
    if engine.stage < 3:
        times = a if engine.stage == 2 else 1
        groups = [sum(size for _, size, is_matrix in sizes if is_matrix == kind) for kind in (True, False)]
        gathered = e * sum(padded(group, 2 * n) for group in groups)
        found += [Collective("gradients", "all_reduce", times * parts, times * e * total)]
        found += [Collective("parameters", "all_gather", len(groups), gathered)]
        found += [Collective("overflow", "all_reduce", 1, 1)] if e == 2 else []
        return [*found, Collective("norms", "all_reduce", len(groups), 4 * len(groups))]
    return found + _stage_3(sizes, engine, n, parts)


def _stage_3(sizes, engine: Engine, n: int, parts: int) -> list[Collective]:
    e, a = engine.bytes_per_number, engine.accumulation
    kept = [size for _, size, _ in sizes if size < engine.persistence_threshold]
    divided = [size for _, size, _ in sizes if size >= engine.persistence_threshold]
    again = sum(divided) * share_gathered_again(sum(divided), engine.reuse_distance)
    rounds = math.ceil(sum(divided) / engine.prefetch_bucket) + math.ceil(again / engine.prefetch_bucket)
    gathered = sum(padded(size, n) for size in divided) * (1 + again / sum(divided))
    everything = sum(padded(size, n) for size in (*kept, *divided))
    return [
        Collective("gradients", "reduce_scatter", a * parts, a * e * everything),
        Collective("matrices", "all_gather", a * rounds, a * e * gathered),
        Collective("vectors", "all_gather", len(kept), e * sum(padded(size, n) for size in kept)),
        Collective("norms", "all_reduce", 2, 16),
    ]


def share_gathered_again(numbers: int, reuse_distance: int) -> float:
    """Which part of the matrices backward has to gather a second time.

    A layer with q numbers behind it is used again after 2 q; it stays where that is less than the reuse distance. This is
    an upper bound: layers that the prefetcher has passed over stay as well (0.32 instead of 0.61 for 1.3 B, as counted).
    """
    return max(0.0, 1 - reuse_distance / (2 * numbers))


def ring_bytes(kind: str, size: float, n: int, on_gloo: bool = False) -> float:
    """Sent by each rank. gloo has no reduce_scatter of its own: torch makes an all_reduce of it."""
    twice = kind == "all_reduce" or (on_gloo and kind == "reduce_scatter")
    return size * (n - 1) / n * (2 if twice else 1)


def bytes_sent(model: Model, engine: Engine, n: int, on_gloo: bool = False) -> float:
    """By each rank in an update."""
    return sum(ring_bytes(c.kind, c.size, n, on_gloo) for c in collectives(model, engine, n))


def messages(model: Model, engine: Engine, n: int) -> float:
    """Collectives of an update."""
    return sum(c.calls for c in collectives(model, engine, n))


# Time of an update


@dataclass(frozen=True)
class Network:
    """Rates are bytes a second and direction, latencies seconds for each hop.

    Latencies of NCCL are those of its own tuning tables (src/graph/tuning.cc): ring, protocol Simple for large messages and
    LL for small ones. ``tcp`` is a hop of gloo between processors.
    """

    name: str
    in_node: float
    """Of a GPU."""
    between_nodes: float
    """Of a node."""
    efficiency: float = 0.8
    """Of these rates that a collective gets."""
    hop_in_node: float = 3.4e-6
    hop_between: float = 14e-6
    small_hop_in_node: float = 0.6e-6
    small_hop_between: float = 5e-6
    tcp: float = 30e-6


FAST = Network("8 × 400 Gb/s a node", 450e9, 8 * 50e9)
SINGLE = Network("400 Gb/s a node", 450e9, 50e9)
ETHERNET = Network("25 Gb/s a node", 450e9, 25e9 / 8, hop_between=50e-6, small_hop_between=50e-6)
NETWORKS = (FAST, SINGLE, ETHERNET)
SMALL = 1 << 16
"""Bytes of a call up to which NCCL's tree and the protocol LL are taken for granted."""


def seconds_of(collective: Collective, network: Network, n: int) -> float:
    """Of all calls of a collective, one after the other: hierarchical bandwidth, and latency by hops.

    Bandwidth: within a node each GPU sends over NVLink, then the g-th parts go between nodes over all of a node's links; the
    two are added. Latency: a ring passes each link once, for an all_reduce twice; small all_reduces go up and down a tree.
    gloo's ring passes 2 (n-1) hops whatever the size.
    """
    g, m = min(n, NODE), -(-n // NODE)
    if n == 1 or not collective.calls:
        return 0.0
    if collective.backend == "gloo":
        return collective.calls * 2 * (n - 1) * network.tcp
    twice = 2 if collective.kind == "all_reduce" else 1
    inside = twice * (g - 1) / g * collective.size / (network.in_node * network.efficiency)
    between = twice * (m - 1) / m * collective.size / (network.between_nodes * network.efficiency)
    if collective.size / collective.calls <= SMALL and twice == 2:
        hops = 2 * (math.ceil(math.log2(m)) * network.small_hop_between + (g - 1) * network.small_hop_in_node)
    elif twice == 2:
        ring = 2 * (m * (m > 1) * network.hop_between + (n - m) * network.hop_in_node)
        tree = 2 * (math.ceil(math.log2(m)) * network.hop_between + (g - 1) * network.hop_in_node)
        hops = min(ring, tree)
    else:
        hops = m * (m > 1) * network.hop_between + (n - m) * network.hop_in_node
    return inside + between + collective.calls * hops


@dataclass(frozen=True)
class Work:
    """What the GPUs compute in an update."""

    model: Model
    rows: int
    """Of a micro batch."""
    mfu: float
    peak: float = 989e12
    """H100 and H200, dense 16-bit rate."""

    @property
    def seconds(self) -> float:
        """Of a micro batch, forward and backward."""
        predicted = int(Recipe("").data.masking.num_predicted(SEQ_LENGTH))
        return self.rows * flops_per_sequence(self.model.config, SEQ_LENGTH, predicted) / (self.peak * self.mfu)


@dataclass(frozen=True)
class StepTime:
    """Seconds of an update; ``agreement`` is what nothing hides of the trainer's, over gloo."""

    computing: float
    exposed: float
    """Communication of the devices that nothing hides."""
    agreement: float

    @property
    def total(self) -> float:
        return self.computing + self.exposed + self.agreement

    @property
    def efficiency(self) -> float:
        """Share of the time in which the GPUs compute as they would alone."""
        return self.computing / self.total


def step_time(work: Work, engine: Engine, network: Network, n: int) -> StepTime:
    """Overlap: buckets before the last hide behind backward (two thirds of a micro batch) where ``overlap``; at stage 3
    the gathers of matrices but the first hide behind the micro batch. Both share the network: what hides takes no longer
    than the computing that it hides behind. All else waits its turn.
    """
    calls = {c.what: c for c in collectives(work.model, engine, n)}
    seconds = {what: seconds_of(c, network, n) for what, c in calls.items()}
    agreement = seconds.pop("agreement", 0.0)
    windows = {"gradients": 2 / 3, "matrices": 1.0} if engine.stage == 3 or (engine.overlap and engine.stage) else {}
    times = 1 if engine.stage < 2 else engine.accumulation
    hidden = 0.0
    for what, window in windows.items():
        needed, parts = seconds.get(what, 0.0) / times, calls[what].calls / times if what in calls else 1
        hidden += times * min(needed * (1 - 1 / parts), window * work.seconds)
    hidden = min(hidden, times * work.seconds)
    agreement = max(0.0, agreement - 2 / 3 * work.seconds)  # on the next update, during the last backward of this one
    return StepTime(engine.accumulation * work.seconds, sum(seconds.values()) - hidden, agreement)


def accumulation_for(work: Work, engine: Engine, network: Network, n: int, efficiency: float = 0.9) -> int | None:
    """The least accumulation (a power of 2 up to 1,024) with which the GPUs compute so much of the time."""
    for power in range(11):
        tried = replace(engine, accumulation=2**power)
        if step_time(work, tried, network, n).efficiency >= efficiency:
            return 2**power
    return None


# Memory, start and save

GIB = 2**30
READS_BACK = 2
"""Every byte of a checkpoint is written once and read once (checkpoint/shard_files.py)."""
CLIENT_RATE = 2e9
"""Bytes a second that one node gets of a shared file system."""
WATCHDOG_INTERVAL = 5.0
"""Seconds between two reports of a rank, see training/board.py."""


def _workload(model: Model, stage: int, n: int, rows: int = 1, bucket: int = int(5e8)) -> Workload:
    predicted = int(Recipe("").data.masking.num_predicted(SEQ_LENGTH))
    return Workload(model.config, "mpnet", SEQ_LENGTH, predicted, rows, "bf16", stage, n, reduce_bucket_size=bucket)


def memory(model: Model, stage: int, n: int, rows: int, bucket: int) -> tuple[float, float]:
    """GiB of a GPU: states, activations (mpnet_ds/preflight/memory_estimate.py)."""
    needed = estimate(_workload(model, stage, n, rows, bucket))
    return needed.states / GIB, needed.activations / GIB


def checkpoint_total(model: Model, stage: int, n: int, bytes_of_weight: int = 2) -> int:
    """Bytes of a checkpoint, all ranks' files together."""
    precision = "bf16" if bytes_of_weight == 2 else "fp32"
    return checkpoint_bytes(replace(_workload(model, stage, n), precision=precision))


def checkpoint_sizes(model: Model, stage: int, n: int) -> tuple[float, float, float]:
    """Bytes in 16 bit: of all, of rank 0, of any other rank."""
    total, states = checkpoint_total(model, stage, n), 12 * count(model) / n
    return total, states + (total - 12 * count(model)), states


def save_seconds(model: Model, stage: int, n: int, rate: float) -> float:
    """Until all is written and read back; ``rate``: bytes a second of the whole file system.

    Either the file system is the bound, or the node of rank 0, which writes the weights and the states of its ranks.
    """
    total, first, other = checkpoint_sizes(model, stage, n)
    of_node = first + (min(n, NODE) - 1) * other
    return READS_BACK * max(total / rate, of_node / CLIENT_RATE)


def verify_seconds(total: float) -> float:
    """Rank 0 reads every file of a checkpoint before a run goes on from it."""
    return total / CLIENT_RATE


def gloo_connections(n: int) -> int:
    """Of one rank, for each gloo group of all ranks: one to each other rank. On GPUs ``Control`` makes the only one."""
    return n - 1


def store_requests(n: int) -> int:
    """Messages to the store while a gloo group connects: each rank writes its addresses, and reads those of all others."""
    return n * (3 * n + 1)


def store_connections(n: int) -> int:
    """At rank 0: of each rank for the roll call, for torch's rendezvous and for the watchdog's board."""
    return 3 * n


def board_requests(n: int) -> float:
    """A second, at rank 0: each rank posts its report and looks for an alarm; rank 0 fetches all reports in two requests."""
    return (2 * n + 2) / WATCHDOG_INTERVAL
