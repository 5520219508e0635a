"""Ranks that meet before a run and after it, in real processes: all, too few, and those of two runs at one place."""

import json
import multiprocessing
import os
import socket
import time
from pathlib import Path

import torch.distributed  # loaded once for all ranks of all tests

from mpnet_ds.errors import UserError
from mpnet_ds.ranks import process_group
from mpnet_ds.ranks.launchers import Placement
from mpnet_ds.ranks.rendezvous import connect, join, leave_together
from tests.runs import free_port

ctx = multiprocessing.get_context("forkserver")
ctx.set_forkserver_preload([__name__])


def meet(folder: Path, name: str, rank: int, world_size: int, port: int, timeout: float, begin) -> None:
    """Writes what came of it to ``folder/name``; all begin when all have started."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    begin.wait(60)
    try:
        store, hosts = join(Placement("deepspeed", rank, rank, world_size, world_size, "127.0.0.1", port), timeout)
        outcome = f"met {len(hosts)} at {len(set(hosts))}"
        store.add("met", 1)
        while rank == 0 and store.add("met", 0) < world_size:  # its store ends with it
            time.sleep(0.01)
    except UserError as error:
        outcome = str(error)
    (folder / name).write_text(outcome)


def meet_all(folder: Path, ranks: list[int], world_size: int, timeout: float = 20) -> list[str]:
    """What each of ``ranks`` gets to know, in their order; those that have come at all."""
    port = free_port()
    names = [f"{number}-rank-{rank}" for number, rank in enumerate(ranks)]
    common = (world_size, port, timeout, ctx.Barrier(len(ranks)))
    callers = [ctx.Process(target=meet, args=(folder, *pair, *common)) for pair in zip(names, ranks, strict=True)]
    for process in callers:
        process.start()
    for process in callers:
        process.join(60)
        process.kill()
    return [(folder / name).read_text() for name in names]


def meet_alone(path: Path) -> None:
    """Without a launcher, while another process takes the port that the environment names; writes who finds whose store."""
    placement = process_group.place()
    with socket.create_server(("", int(os.environ["MASTER_PORT"]))):
        store, _ = join(placement, 5)
    store.set("word", "found")
    torch.distributed.init_process_group("gloo")
    torchs = torch.distributed.distributed_c10d._get_default_store()
    while hasattr(torchs, "underlying_store"):
        torchs = torchs.underlying_store
    found = [one.check(["word"]) for one in (torchs, connect(5))]
    torch.distributed.destroy_process_group()
    path.write_text(str(found))


def test_nobody_can_take_the_port_of_a_rank_that_is_alone(tmp_path):
    rank = ctx.Process(target=meet_alone, args=(tmp_path / "found",))
    rank.start()
    rank.join(60)
    assert (tmp_path / "found").read_text() == "[True, True]"


def test_all_learn_where_the_others_are(tmp_path):
    assert meet_all(tmp_path, [0, 1, 2], 3) == ["met 3 at 1"] * 3


def test_ranks_that_do_not_come_are_named_to_all(tmp_path):
    said = meet_all(tmp_path, [0, 2], 4, timeout=2)
    for text in said:
        assert text.startswith("2 of 4 ranks are here after 2 s (--join_timeout); missing: ranks 1, 3. Rank 0 waits at ")


def test_where_rank_0_does_not_come_its_place_is_named(tmp_path):
    (said,) = meet_all(tmp_path, [1], 2, timeout=2)
    assert "rank 1 on" in said
    assert "cannot reach rank 0 at 127.0.0.1, port" in said


def test_two_runs_that_meet_at_one_place_are_told_apart(tmp_path):
    said = meet_all(tmp_path, [0, 1, 1], 3, timeout=3)
    assert sum("another run uses 127.0.0.1, port" in text for text in said[1:]) == 1


def test_a_port_that_is_taken_is_named(tmp_path):
    said = meet_all(tmp_path, [0, 0], 2, timeout=2)
    assert any("is in use on" in text for text in said)


PAUSE, PATIENCE = 0.5, 3.0  # seconds


def part(folder: Path, rank: int, port: int, failing: int | None) -> None:
    """Meets two others, and leaves twice together with them, later by its number; the rank that fails does not."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    store, _ = join(Placement("deepspeed", rank, rank, 3, 3, "127.0.0.1", port), 20)
    store.add("met", 1)
    while store.add("met", 0) < 3:
        time.sleep(0.01)
    if rank == failing:
        time.sleep(PAUSE)  # until the others wait
        os._exit(1)
    times = []
    for _ in range(2 if failing is None else 1):
        time.sleep(PAUSE * rank)
        times.append(time.time())
        leave_together(store, rank, 3, PATIENCE if failing is not None else 30)
        times.append(time.time())
    (folder / str(rank)).write_text(json.dumps(times))


def part_all(folder: Path, failing: int | None = None) -> list[list[float]]:
    """Of each rank that did not fail, when it began to leave and had left."""
    port = free_port()
    ranks = [ctx.Process(target=part, args=(folder, rank, port, failing)) for rank in range(3)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [int(rank == failing) for rank in range(3)]
    return [json.loads((folder / str(rank)).read_text()) for rank in range(3) if rank != failing]


def test_no_rank_leaves_before_the_last_is_done_however_often_they_meet(tmp_path):
    begun, left, begun_again, left_again = zip(*part_all(tmp_path), strict=True)
    assert max(begun) <= min(left)
    assert max(begun_again) <= min(left_again)


def test_a_rank_that_failed_is_waited_for_no_longer_than_allowed(tmp_path):
    begun, left = zip(*part_all(tmp_path, failing=1), strict=True)
    assert PATIENCE <= min(left) - min(begun) < PATIENCE + 20


def test_where_rank_0_failed_nobody_waits(tmp_path):
    assert all(left - begun < PATIENCE for begun, left in part_all(tmp_path, failing=0))
