"""Bandwidth is measured between real ranks, and a rank that never comes ends in a problem rather than in waiting."""

import itertools

import pytest

from mpnet_ds.cluster import bandwidth
from mpnet_ds.cluster.bandwidth import COLLECTIVES, Row
from tests.cluster_tools.conftest import call_all
from tests.runs import free_port

SIZES = [1 << 12, 1 << 14]
ENDLESS = 1 << 50


@pytest.fixture
def measure(fake_ssh):
    """A function (ranks, ranks that come, seconds for a collective): what they say."""

    def run(world_size, ranks, seconds):
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
        common["GLOO_SOCKET_IFNAME"] = "lo"
        own = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in ranks]
        asked = {"backend": "gloo", "sizes": [*SIZES, ENDLESS], "seconds": seconds}
        return call_all(bandwidth.measure, *(asked | {"variables": each} for each in own))

    return run


def test_bandwidths_are_those_of_nccl_tests():
    """4 ranks, 4 GB in 2 s: each link carries 2 * 3/4 of an all-reduce and 3/4 of an all-gather."""
    reduce, gather = (Row(collective, 4 * 10**9, 4, 2.0) for collective in ("all_reduce", "all_gather"))
    assert reduce.bus_bandwidth == 3e9
    assert gather.bus_bandwidth == 1.5e9


@pytest.mark.process
def test_two_ranks_measure_every_collective_at_every_size_that_does_not_take_minutes(measure):
    found, same = measure(2, [0, 1], seconds=30)
    assert (found["rows"], found["problem"]) == (same["rows"], "")
    rows = [Row(*row) for row in found["rows"]]
    assert [(row.size, row.collective) for row in rows] == list(itertools.product(SIZES, COLLECTIVES))
    assert all(row.ranks == 2 and 0 < row.seconds < 10 for row in rows)


@pytest.mark.process
def test_a_rank_that_never_comes_is_a_problem_within_the_time(measure):
    (found,) = measure(2, [0], seconds=1)
    assert found["rows"] == []
    assert found["problem"].startswith("rank 0 failed: ")
