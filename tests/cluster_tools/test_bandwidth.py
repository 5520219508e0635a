"""Bandwidth is measured between real ranks, and a rank that never comes ends in a problem rather than in waiting."""

import time

import pytest

from mpnet_ds.cluster import bandwidth
from mpnet_ds.cluster.bandwidth import COLLECTIVES, SIZES, Row, measure_here
from tests.runs import free_port


@pytest.fixture
def plan():
    """Arguments for ranks of this machine alone."""
    return {"first_rank": 0, "address": "127.0.0.1", "port": free_port(), "interface": "lo", "backend": "gloo"}


def test_bandwidths_are_those_of_nccl_tests():
    """4 ranks, 4 GB in 2 s: 2 GB/s; each link carries 2 * 3/4 of an all-reduce and 3/4 of an all-gather."""
    reduce, gather = (Row(collective, 4 * 10**9, 4, 2.0) for collective in ("all_reduce", "all_gather"))
    assert (reduce.algorithm_bandwidth, reduce.bus_bandwidth) == (2e9, 3e9)
    assert (gather.algorithm_bandwidth, gather.bus_bandwidth) == (2e9, 1.5e9)


def test_rounds_fit_into_the_time():
    assert bandwidth._rounds(1e-9) == bandwidth.MOST_ROUNDS
    assert bandwidth._rounds(60) == bandwidth.LEAST_ROUNDS


def test_sizes_that_would_take_minutes_on_a_slow_link_are_left_out():
    quick, slow = (Row("all_reduce", 1 << 20, 2, seconds) for seconds in (0.01, 1.0))
    assert not bandwidth._takes_too_long(1 << 24, None)
    assert not bandwidth._takes_too_long(1 << 24, quick)
    assert bandwidth._takes_too_long(1 << 24, slow)


def test_two_ranks_measure_every_collective_at_every_size(plan):
    found = measure_here(**plan, ranks_here=2, world_size=2, seconds=120)
    assert found["problem"] is None
    rows = {(row["size"], row["collective"]): Row(**row) for row in found["rows"]}
    smaller = dict(zip(SIZES, (None, *SIZES), strict=False))
    assert list(rows) == [
        (size, name)
        for size in SIZES
        for name in COLLECTIVES
        if not bandwidth._takes_too_long(size, rows.get((smaller[size], name)))  # on a machine that is very busy
    ]
    assert len(rows) >= 2 * len(COLLECTIVES)
    assert all(row.ranks == 2 and 0 < row.seconds < 10 for row in rows.values())


def test_a_rank_that_never_comes_is_a_problem_within_the_time(plan):
    begin = time.monotonic()
    found = measure_here(**plan, ranks_here=1, world_size=2, seconds=12)
    assert time.monotonic() - begin < 20
    assert found["rows"] == []
    assert found["problem"].startswith("rank 0 ")
