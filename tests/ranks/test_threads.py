"""How many threads ranks choose, from the cores that others leave free."""

import os
from types import SimpleNamespace

import pytest
import torch

from mpnet_ds.machine import Usage
from mpnet_ds.ranks import threads
from mpnet_ds.ranks.threads import Cores, choose_threads, observe

FOUR = frozenset(range(4))


def cores(usable=FOUR, granted=4, own=0.0, used=()):
    return Cores(frozenset(usable), granted, own, tuple(used))


@pytest.fixture
def chosen(monkeypatch):
    """A function (what the ranks of a host know, environment): threads of the first of them, and the sentence."""

    def choose(*here, environment=None):
        found = []
        monkeypatch.setattr(torch, "set_num_threads", found.append)
        ranks = SimpleNamespace(gather=lambda own: [*here, cores()], hosts=["a"] * len(here) + ["b"], host="a", rank=0)
        said = choose_threads(ranks, None, environment or {})
        return found, said

    return choose


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        ([cores()], 4),
        ([cores(own=1, used=(1, 0, 0, 0))], 4),
        ([cores(own=1, used=(1, 1, 0, 0))], 3),
        ([cores(own=1, used=(1, 1, 1, 1))], 1),
        ([cores(own=1, used=(0.4, 0.3, 0.3, 0.2))], 4),  # what an idle machine does
        ([cores(), cores()], 2),
        ([cores(own=1, used=(1, 1, 0, 0)), cores(own=1, used=(1, 1, 0, 0))], 2),
        ([cores(own=1, used=(1, 1, 1, 1)), cores(own=1, used=(1, 1, 1, 1))], 1),
        ([cores({0, 1}, 2, own=1, used=(1, 0, 1, 0)), cores({2, 3}, 2, own=1, used=(1, 0, 1, 0))], 2),  # bound by srun
        ([cores({0, 1}, 2, own=1, used=(1, 0, 9, 9))], 2),  # others are busy elsewhere
        ([cores(granted=2)], 2),  # a container's quota
        ([cores(granted=2), cores(granted=2)], 1),
        ([cores() for _ in range(8)], 1),
    ],
)
def test_ranks_share_the_free_cores_of_their_host(chosen, here, expected):
    found, said = chosen(*here)
    assert found == [expected]
    assert "OMP_NUM_THREADS sets another number" in said


def test_what_others_use_is_told_and_the_users_number_is_left_alone(chosen):
    assert "4 cores, 1 rank(s), other programs use 2.0 cores" in chosen(cores(own=1, used=(1, 1, 1, 0)))[1]
    for name in threads.VARIABLES:
        found, said = chosen(cores(), environment={name: "3"})
        assert found == []
        assert said.endswith(f"for each rank ({name})")


def test_cores_are_observed_since_a_moment_that_is_long_enough_ago(monkeypatch):
    monkeypatch.setattr(threads, "usable_cores", lambda: FOUR)
    before = Usage(10.0, 1.0, (5.0, 6.0))
    monkeypatch.setattr(Usage, "now", lambda: Usage(14.0, 3.0, (9.0, 7.0)))
    assert observe(before)[2:] == (0.5, (1.0, 0.25))
    for short in (None, Usage(13.9, 1.0, (5.0, 6.0)), Usage(10.0, 1.0, (5.0,))):
        assert observe(short)[2:] == (0.0, ())


def test_usage_counts_each_core_of_the_machine():
    now = Usage.now()
    assert len(now.cores) == os.cpu_count()
    assert now.own > 0
