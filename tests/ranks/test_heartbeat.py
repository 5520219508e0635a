"""Heartbeats of several ranks at a store in this process, interval by interval, without waiting for one."""

import pytest
import torch
from torch.distributed import HashStore

from mpnet_ds.ranks.heartbeat import Alarm, Heartbeat, Heartbeats
from mpnet_ds.ranks.process_group import Ranks

INTERVAL, LOST_TIMEOUT = 5.0, 20.0


class Cluster:
    """Ranks on hosts of their own that exchange heartbeats when they are told to."""

    def __init__(self, size: int, lost_timeout: float = LOST_TIMEOUT):
        self.store, hosts = HashStore(), tuple(f"node-{rank}" for rank in range(size))
        self.posted = [0] * size
        self.ranks = [
            Heartbeats(Ranks(rank, 0, size, torch.device("cpu"), hosts), INTERVAL, lost_timeout, self._maker(rank))
            for rank in range(size)
        ]

    def _maker(self, rank: int):
        return lambda number: Heartbeat(rank, 100 + rank, "update", 7, 1, 0.0, True, "there", number)

    def pass_intervals(self, count: int, silent: tuple[int, ...] = ()) -> None:
        for _ in range(count):
            for rank, heartbeats in enumerate(self.ranks):
                if rank not in silent:
                    self.posted[rank] += 1
                    heartbeats.exchange(self.store, self.posted[rank])

    @property
    def alarms(self) -> list[Alarm | None]:
        return [heartbeats.alarm for heartbeats in self.ranks]


@pytest.mark.parametrize(("victim", "finder"), [(1, 0), (2, 0), (0, 2)])
def test_a_rank_that_is_silent_for_too_long_is_named_to_all(victim, finder):
    cluster = Cluster(3)
    cluster.pass_intervals(3)
    cluster.pass_intervals(3, silent=(victim,))
    assert cluster.alarms == [None] * 3
    cluster.pass_intervals(2, silent=(victim,))
    expected = Alarm(finder, f"no heartbeat from rank {victim} (node-{victim}) for 20 s (run.lost_timeout)")
    assert [alarm for rank, alarm in enumerate(cluster.alarms) if rank != victim] == [expected] * 2
    cluster.pass_intervals(4, silent=(victim,))
    known, silent = cluster.ranks[finder].read()
    assert silent == {victim}
    assert [heartbeat.pid for heartbeat in known] == [100, 101, 102]


def test_a_rank_that_never_posted_is_silent():
    cluster = Cluster(3)
    cluster.ranks[0].raise_alarm("it hangs")
    cluster.pass_intervals(4, silent=(1,))
    known, silent = cluster.ranks[0].read()
    assert silent == {1}
    assert [heartbeat.rank for heartbeat in known] == [0, 2]


def test_a_rank_that_left_in_good_order_is_not_lost():
    cluster = Cluster(3)
    cluster.pass_intervals(2)
    cluster.store.set("1", "")
    cluster.pass_intervals(9, silent=(1,))
    assert cluster.alarms == [None] * 3
    cluster.ranks[0].raise_alarm("it hangs")
    cluster.pass_intervals(4, silent=(1,))
    known, silent = cluster.ranks[0].read()
    assert ([heartbeat.rank for heartbeat in known], silent) == ([0, 2], set())


def test_without_a_timeout_silence_is_no_alarm():
    cluster = Cluster(3, lost_timeout=0)
    cluster.pass_intervals(1)
    cluster.pass_intervals(99, silent=(1,))
    assert cluster.alarms == [None] * 3


def test_the_first_alarm_counts_and_its_rank_is_the_only_speaker():
    cluster = Cluster(3)
    cluster.pass_intervals(1)
    for rank in (1, 0):
        cluster.ranks[rank].raise_alarm(f"alarm of rank {rank}")
    cluster.ranks[1].exchange(cluster.store, 2)
    cluster.pass_intervals(1)
    assert cluster.alarms == [Alarm(1, "alarm of rank 1")] * 3
    assert [heartbeats.is_speaker for heartbeats in cluster.ranks] == [False, True, False]


def test_a_rank_that_answers_the_alarm_late_is_not_silent():
    cluster = Cluster(3)
    cluster.pass_intervals(1)
    cluster.ranks[0].raise_alarm("it hangs")
    cluster.pass_intervals(3, silent=(1, 2))
    cluster.pass_intervals(2, silent=(2,))
    assert cluster.ranks[0].read()[1] == {2}


def test_a_rank_that_failed_learns_when_all_know_of_it_and_is_no_speaker():
    cluster = Cluster(3)
    cluster.ranks[0].raise_alarm("rank 0 failed", is_failure=True)
    cluster.pass_intervals(2, silent=(2,))
    assert not cluster.ranks[0].seen_by_all.is_set()
    cluster.ranks[2].exchange(cluster.store, 1)
    cluster.pass_intervals(1)
    assert cluster.ranks[0].seen_by_all.is_set()
    assert not any(heartbeats.is_speaker for heartbeats in cluster.ranks)


def test_a_rank_that_is_suspended_with_all_others_is_not_lost():
    """Silence is counted in intervals, of which none passes meanwhile."""
    cluster = Cluster(2)
    for _ in range(9):
        cluster.pass_intervals(3, silent=(1,))
        cluster.pass_intervals(1)
    assert cluster.alarms == [None] * 2
