"""benchmarks/scaling*.py: the formulas against rings that are played through, a real run, and what was counted."""

import math
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from mpnet_ds.models.mpnet.sizes import parameter_count

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import measure_scaling  # noqa: E402
import scaled_runs  # noqa: E402
import scaling  # noqa: E402
import scaling_model  # noqa: E402
import traced_runs  # noqa: E402
from scaling_model import BASE, BILLION, ETHERNET, FAST, LARGE, Collective, Engine, Model, Work  # noqa: E402

SMALL = Model("small", 2, 96, 4, 999, 66)


def play_ring(n: int, chunk: int, laps: int) -> int:
    """Bytes that one rank sends when n chunks go round, each to all but its own last place, ``laps`` times."""
    sent = [0] * n
    for _ in range(laps):
        for step in range(n - 1):
            for rank in range(n):
                assert 0 <= (rank - step) % n < n  # the chunk that this rank passes on
                sent[rank] += chunk
    assert len(set(sent)) == 1
    return sent[0]


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize(("kind", "laps"), [("all_reduce", 2), ("all_gather", 1), ("reduce_scatter", 1)])
def test_ring_bytes_are_those_of_a_ring(kind, laps, n):
    assert scaling_model.ring_bytes(kind, 100 * n, n) == pytest.approx(play_ring(n, 100, laps))


def test_parameters_are_those_of_the_model():
    for model in (SMALL, BASE, LARGE, BILLION):
        assert scaling_model.count(model) == parameter_count(model.config)
    assert scaling_model.count(BASE) == 109_518_527


@pytest.mark.parametrize(
    ("sizes", "bucket", "messages"),
    [([5, 5, 5], 100, 1), ([5, 5, 5], 10, 2), ([5, 50, 5], 10, 3), ([10, 10], 10, 2), ([], 10, 0)],
)
def test_a_bucket_goes_when_the_next_gradient_does_not_fit(sizes, bucket, messages):
    assert scaling_model.buckets(sizes, bucket) == messages


def test_accumulation_multiplies_what_stages_2_and_3_send_and_not_stages_0_and_1():
    def gradients(stage, accumulation):
        found = scaling_model.collectives(BASE, Engine(stage, accumulation), 8)
        return next(c.size for c in found if c.what == "gradients")

    assert [gradients(stage, 4) / gradients(stage, 1) for stage in range(4)] == [1, 1, 4, 4]


def test_one_rank_sends_nothing():
    assert [scaling_model.collectives(BASE, Engine(stage), 1) for stage in range(4)] == [[], [], [], []]


def test_smaller_buckets_hide_behind_backward_and_only_with_overlap():
    work = Work(BASE, 64, 0.39)
    whole = scaling_model.step_time(work, Engine(1, reduce_bucket=int(2e8), overlap=True), ETHERNET, 64)
    parts = scaling_model.step_time(work, Engine(1, reduce_bucket=int(25e6), overlap=True), ETHERNET, 64)
    none = scaling_model.step_time(work, Engine(1, reduce_bucket=int(25e6), overlap=False), ETHERNET, 64)
    assert parts.exposed < whole.exposed
    assert none.exposed >= whole.exposed


def test_hidden_communication_is_never_more_than_there_is_to_hide_behind():
    """The GPUs' own work and the exposed rest are at least what the network needs."""
    work = Work(BILLION, 16, 0.39)
    for stage in range(1, 4):
        engine = Engine(stage, 4, reduce_bucket=int(25e6), overlap=True)
        needed = sum(
            scaling_model.seconds_of(c, ETHERNET, 512)
            for c in scaling_model.collectives(BILLION, engine, 512)
            if c.what != "agreement"
        )
        time = scaling_model.step_time(work, engine, ETHERNET, 512)
        assert time.exposed <= needed
        assert time.exposed + time.computing >= needed - 1e-9


def test_small_messages_on_the_device_climb_a_tree_and_gloo_goes_round():
    def seconds(n, backend):
        return scaling_model.seconds_of(Collective("x", "all_reduce", 1, 16, backend), FAST, n)

    assert seconds(4096, "gloo") / seconds(512, "gloo") == pytest.approx(4095 / 511)
    assert seconds(4096, "device") / seconds(512, "device") < 2


@pytest.mark.parametrize(("network", "n"), [(FAST, 64), (ETHERNET, 16), (ETHERNET, 64)])
def test_the_accumulation_that_is_recommended_is_the_least_that_suffices(network, n):
    work, engine = Work(LARGE, 32, 0.39), Engine(1, reduce_bucket=int(25e6), overlap=True)
    sufficient = [
        2**power
        for power in range(11)
        if scaling_model.step_time(work, replace(engine, accumulation=2**power), network, n).efficiency >= 0.9
    ]
    assert scaling_model.accumulation_for(work, engine, network, n) == sufficient[0]


def test_what_backward_gathers_again_grows_from_nothing_to_everything():
    shares = [scaling_model.share_gathered_again(n, int(1e9)) for n in (10**8, 5 * 10**8, 10**9, 10**12)]
    assert shares[:2] == [0, 0]
    assert all(a <= b for a, b in pairwise(shares))
    assert shares[3] == pytest.approx(1, abs=1e-3)


def test_shares_of_a_checkpoint_add_up():
    for stage in (1, 2):
        total, first, other = scaling_model.checkpoint_sizes(BASE, stage, 64)
        assert first + 63 * other == pytest.approx(total)


TRACE = """\
100 openat(AT_FDCWD</home/u>, "/data/set/shard.idx", O_RDONLY|O_CLOEXEC) = 3</data/set/shard.idx>
100 newfstatat(3</data/set/shard.idx>, "", {st_mode=S_IFREG|0644}, AT_EMPTY_PATH) = 0
100 stat("/phase/save/rank-00000", 0x7ffe) = -1 ENOENT (No such file or directory)
101 openat(AT_FDCWD</home/u>, "run/checkpoints/a.pt", O_WRONLY|O_CREAT|O_TRUNC, 0666 <unfinished ...>
101 <... openat resumed>) = 4</home/u/run/checkpoints/a.pt>
101 fsync(4</home/u/run/checkpoints/a.pt>) = 0
100 rename("/home/u/run/metrics.tmp", "/home/u/run/metrics") = 0
100 openat(AT_FDCWD</home/u>, "/proc/self/status", O_RDONLY) = 5</proc/self/status>
100 +++ exited with 0 +++
"""


def test_a_trace_is_counted_by_phase_place_and_kind():
    places = {"dataset": "/data/set", "output": "/home/u/run", "checkpoints": "/home/u/run/checkpoints"}
    counts = traced_runs.count_operations(TRACE, places)
    assert counts == {
        "imports": {"dataset": {"open": 1}},
        "save": {"checkpoints": {"create": 1, "sync": 1}, "output": {"rename": 1}},
    }


def test_real_runs_send_what_is_computed(tmp_path):
    shape = scaled_runs.Shape(2, 96, 4, 999, 66, 8)
    setups = [scaled_runs.Setup(shape, stage, 2, 2) for stage in range(4)]
    for run in measure_scaling.updates_of(tmp_path, setups):
        compared = scaling.compare_update(run)
        assert compared["calls"] == compared["computed calls"]
        assert compared["computed bytes"] == pytest.approx(compared["bytes on the wire"], rel=0.03)


def test_what_was_counted_agrees_with_what_is_computed():
    """The claim of benchmarks/scaling.md, on each run in its results."""
    runs = [*scaling.found("messages"), *scaling.found("real")]
    assert {run["setup"]["ranks"] for run in runs} == {1, 2, 4, 8}
    for run in runs:
        compared, (model, engine) = scaling.compare_update(run), scaling.engine_of(run["setup"])
        if run["setup"]["ranks"] == 1:
            assert compared["bytes on the wire"] == 0
        elif engine.stage == 3 and scaling_model.share_gathered_again(scaling_model.count(model), engine.reuse_distance):
            assert 0 < compared["error"] < 0.1  # an upper bound, and said to be one
        else:
            assert abs(compared["error"]) < (0.03 if engine.stage == 3 else 0.003), run["setup"]
            assert compared["calls"] == compared["computed calls"]


def test_the_tables_of_the_document_are_those_of_the_script():
    path = BENCHMARKS / "scaling.md"
    tables = {name: make() for name, make in scaling.TABLES.items()}
    text = path.read_text(encoding="utf-8")
    assert all(f"<!-- {name} -->" in text for name in tables)
    assert scaling.put_in(text, tables) == text


def test_numbers_are_short_and_not_rounded_away():
    assert [scaling.short(x) for x in (0.00123, 0.4378, 12.34, 4096, 123456.7, 0.0, None, math.pi)] == [
        "0.0012", "0.44", "12.3", "4,096", "123,457", "0", "–", "3.14",
    ]  # fmt: skip
