"""Hosts with and without a shared file system, played by threads: each has a folder of its own, or shares one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mpnet_ds.checkpoint import store
from mpnet_ds.checkpoint.shard_files import ShardFiles
from mpnet_ds.checkpoint.store import CheckpointInfo, CheckpointStore, SaveFailed, check_at_hand, verify, verify_quickly
from mpnet_ds.errors import UserError
from mpnet_ds.ranks import disks as disks_module
from mpnet_ds.ranks.disks import Disks, find_disks, follow
from mpnet_ds.ranks.process_group import Ranks
from mpnet_ds.run.run_folder import Setting, decide_start, prepare
from tests.ranks.threads import on_ranks

INFO = CheckpointInfo(2, 16, {"name": "mpnet"}, 2, "fp32", 3, {}, 99, 32, identity={"seed": 0})
MODEL, SHARD = "mp_rank_00_model_states.pt", "zero_pp_rank_{}_mp_rank_00_optim_states.pt"


@pytest.fixture
def places(tmp_path, monkeypatch) -> list[Path]:
    """The checkpoint disk of each of three hosts: the first and the last share one."""
    monkeypatch.setattr(disks_module, "PAUSE", 0.01)
    for name in ("shared", "own"):
        (tmp_path / name).mkdir()
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    return [tmp_path / name / "run" for name in ("shared", "own", "shared")]


# Finding them


def test_hosts_that_see_each_others_tokens_share_a_disk_and_nothing_stays(places):
    deep = [place / "new" / "folder" for place in places]
    found = on_ranks(lambda ranks: find_disks(deep[ranks.rank], ranks))
    assert [(disks.keepers, disks.is_keeper, disks.number) for disks in found] == [
        ([0, 1], True, 0),
        ([0, 1], True, 1),
        ([0, 1], False, 0),
    ]
    assert found[0].names == ["a + c", "b"]
    assert "not shared: a + c; b." in found[0].describe()[0]
    assert [*places[0].parent.iterdir(), *places[1].parent.iterdir()] == []


def test_ranks_of_one_host_write_nothing(tmp_path):
    found = on_ranks(lambda ranks: find_disks(Path("/proc/nobody/can/write/here"), ranks), hosts="aaa")
    assert all(disks.is_one and disks.describe() == [] for disks in found)


def test_all_ranks_of_a_host_follow_its_first(places):
    folders = [places[0], places[0], places[1], places[1]]
    found = on_ranks(lambda ranks: find_disks(folders[ranks.rank], ranks), hosts="aabb")
    assert [disks.here_and_elsewhere for disks in found] == [([0, 1], [2, 3])] * 2 + [([2, 3], [0, 1])] * 2


def test_hosts_that_cannot_write_are_named_on_all_ranks_and_nothing_stays(places):
    folders = [places[0], Path("/proc/nobody"), Path("/dev/null/folder")]
    for error in on_ranks(lambda ranks: find_disks(folders[ranks.rank], ranks)):
        assert isinstance(error, UserError)
        assert [text.partition(":")[0] for text in error.findings] == ["b", "c"]
        assert "cannot write to /dev/null/folder: Not a directory" in str(error)
    assert list(places[0].parent.iterdir()) == []


def test_a_token_that_shows_late_is_waited_for(places, monkeypatch):
    """A slow file system: what the first host wrote appears in the second one's folder after the second look."""
    looks = []

    def show(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) >= 4:  # two may have looked at once
            for token in places[0].glob(".mpnet_ds.token-*-0"):
                shutil.copy(token, places[1])

    monkeypatch.setattr(disks_module.time, "sleep", show)
    assert all(disks.is_one for disks in on_ranks(lambda ranks: find_disks(places[ranks.rank], ranks)))


def test_who_sees_a_token_is_on_the_disk_of_its_writer():
    assert follow([0, 0, 0]) == [0, 0, 0]
    assert follow([0, 1, 1, 0]) == [0, 1, 1, 0]
    assert follow([0, 0, 1]) == [0, 0, 0]  # the third does not see the first one's token yet


# Saving


class Engine:
    """Writes shards as DeepSpeed does: the first rank of each disk the model's file, every rank its own."""

    def __init__(self, disks: Disks, full_on: int = -1):
        self.disks, self.full_on, self.checkpoint_engine = disks, full_on, ShardFiles()

    def save_checkpoint(self, root: str, tag: str, save_latest: bool) -> None:
        files, rank, folder = self.checkpoint_engine, self.disks.ranks.rank, Path(root) / tag
        files.create(None)
        files.makedirs(str(folder), exist_ok=True)
        if self.disks.is_keeper:
            files.save({"module": torch.arange(6.0)}, str(folder / MODEL))
        if rank == self.full_on:
            files.failure = f"{folder}: No space left on device"
        else:
            files.save({"shard": torch.full((5,), float(rank))}, str(folder / SHARD.format(rank)))
        self.disks.ranks.barrier()


@pytest.fixture
def save(places):
    """``save(step, …)`` of three ranks on two disks; returns what came of it on each rank."""

    def save(step: int, full_on: int = -1, eval_loss: float | None = None, keep: int = 2) -> list:
        def on_rank(ranks: Ranks):
            disks = Disks(ranks, [0, 1, 0])
            info = replace(INFO, step=step, eval_loss=eval_loss)
            tokenizer = places[0].parent.parent / "tokenizer"
            return CheckpointStore(places[ranks.rank], keep).save(Engine(disks, full_on), info, tokenizer, disks)

        return on_ranks(on_rank)

    return save


def checkpoints(place: Path) -> list[str]:
    return [path.name for path in CheckpointStore(place).all()]


def test_each_disk_can_be_verified_and_says_what_lies_elsewhere(places, save):
    shared, own, _ = save(2)
    assert (shared.parent / "latest").read_text() == (own.parent / "latest").read_text() == "step-00000002"
    verify(shared)
    verify(own)
    (others,) = json.loads((own / "manifest.json").read_text())["elsewhere"]
    assert others["files"].keys() == {SHARD.format(0), SHARD.format(2)}
    with pytest.raises(UserError) as refused:
        verify_quickly(shared)
    assert f"{SHARD.format(1)} is on a local disk of b" in str(refused.value)
    assert f"rsync -a --ignore-existing b:{own}/ {shared}/" in str(refused.value)
    with pytest.raises(UserError) as refused:
        verify_quickly(own)
    assert f"{SHARD.format(0)} and 1 more are on a local disk of a" in str(refused.value)


@pytest.mark.parametrize("overwrite", [False, True])
def test_gathered_files_are_a_whole_checkpoint_whichever_manifest_wins(save, tmp_path, overwrite):
    shared, own, _ = save(2)
    for source, target in ((shared, own), (own, shared)):
        gathered = shutil.copytree(target, tmp_path / f"{overwrite}-{source.parts[-4]}")
        for path in source.rglob("*"):
            place = gathered / path.relative_to(source)
            if path.is_file() and (overwrite or not place.exists()):
                shutil.copy(path, place)
        verify_quickly(gathered)
        verify(gathered)
        for rank in range(3):
            check_at_hand(gathered, rank, conversion="3 rank(s) → 1 rank(s)")
        late = gathered / SHARD.format(0 if target == own else 1)
        late.write_bytes(late.read_bytes()[:-1])
        for check in (verify, verify_quickly):
            with pytest.raises(UserError, match=late.name):
                check(gathered)


def test_a_rank_finds_its_own_shards_only_where_it_saved_them(save):
    shared, own, _ = save(2)
    for rank, folder in enumerate((shared, own, shared)):
        check_at_hand(folder, rank, conversion="")
    with pytest.raises(UserError, match="from which rank 1 resumes, is on a local disk of b"):
        check_at_hand(shared, 1, conversion="")
    with pytest.raises(UserError, match=r"a conversion \(ZeRO 2 → ZeRO 3\) needs the files of all"):
        check_at_hand(shared, 0, conversion="ZeRO 2 → ZeRO 3")


@pytest.mark.parametrize("full_on", [0, 1, 2])
def test_a_save_that_fails_on_one_host_is_undone_on_all(places, save, full_on):
    save(2)
    for outcome in save(4, full_on=full_on):
        assert isinstance(outcome, SaveFailed)
        assert str(outcome).startswith(f"{'abc'[full_on]}: ")
    for place in places[:2]:
        assert [path.name for path in sorted((place / "checkpoints").iterdir())] == ["latest", "step-00000002"]


def test_a_manifest_that_cannot_be_written_on_one_disk_undoes_the_others(places, save, monkeypatch):
    save(2)
    write = store._write_manifest

    def full(folder: Path, body: dict) -> None:
        if folder.is_relative_to(places[1]):
            raise OSError(28, "No space left on device")
        write(folder, body)

    monkeypatch.setattr(store, "_write_manifest", full)
    assert all("b: " in str(outcome) and "No space left" in str(outcome) for outcome in save(4))
    assert checkpoints(places[0]) == checkpoints(places[1]) == ["step-00000002"]


def test_all_disks_keep_the_same_checkpoints(places, save):
    """The newest two and the best; one that has lost its part on one disk is none, and is not kept as the best."""
    for step, loss in ((2, 1.0), (4, 2.0), (6, 3.0)):
        save(step, eval_loss=loss)
    assert checkpoints(places[0]) == checkpoints(places[1]) == ["step-00000002", "step-00000004", "step-00000006"]
    shutil.rmtree(places[1] / "checkpoints" / "step-00000002")
    save(8, eval_loss=4.0)
    assert checkpoints(places[0]) == checkpoints(places[1]) == ["step-00000004", "step-00000006", "step-00000008"]


def test_fewer_that_are_kept_make_room_before_a_save_that_may_fail(places, save):
    """On all disks; the newest and the best stay."""
    for step in (2, 4, 6, 8):
        save(step, eval_loss=float(step), keep=9)
    for outcome in save(10, full_on=1, keep=1):
        assert isinstance(outcome, SaveFailed)
    assert checkpoints(places[0]) == checkpoints(places[1]) == ["step-00000002", "step-00000008"]


def test_a_disk_that_cannot_be_looked_at_loses_nothing(places, save, monkeypatch):
    save(2)
    save(4)
    monkeypatch.setattr(store, "_eval_loss", failing)
    on_ranks(lambda ranks: CheckpointStore(places[ranks.rank], keep=1).prune(Disks(ranks, [0, 1, 0])))
    assert checkpoints(places[0]) == ["step-00000002", "step-00000004"]


@pytest.mark.parametrize("full_on", [-1, 0, 1, 2])
def test_disks_that_turn_out_to_be_one_fail_loudly(places, save, full_on):
    """The file system showed tokens too late: then each disk's keeper finds shards that ranks of the other disk wrote.

    Keepers that write the same file at the same time may fail to read it back; that is not what is reported.
    """
    places[1] = places[0]
    outcomes = save(2, full_on=full_on)
    assert all(isinstance(outcome, SaveFailed) and "shows files late" in str(outcome) for outcome in outcomes)


def failing(*what) -> None:
    raise OSError(5, "Input/output error")


def test_a_disk_that_fails_while_it_is_looked_at_fails_this_save_alone(places, save, monkeypatch):
    save(2)
    monkeypatch.setattr(store, "_check_apart", failing)
    assert all(isinstance(outcome, SaveFailed) and "Input/output error" in str(outcome) for outcome in save(4))
    assert checkpoints(places[0]) == checkpoints(places[1]) == ["step-00000002"]


# Going on


def go_on(places: list[Path], hosts: str = "abc", resume: str = "auto") -> list:
    """The ``Start`` of each rank, or what it raises; damaged checkpoints are set aside where there is one."""

    def on_rank(ranks: Ranks):
        disks = Disks(ranks, [0, 1, 0])
        setting = Setting(3, 2, "fp32")
        start = decide_start(places[ranks.rank], resume, INFO.identity, setting, disks)
        places[ranks.rank].mkdir(exist_ok=True)
        disks.on_each(lambda: prepare(start, {"identity": INFO.identity}, places[0].parent.parent / "tokenizer"))
        return start

    return on_ranks(on_rank, hosts)


@pytest.fixture
def saved(places, save) -> list[Path]:
    """Checkpoints of updates 2 and 4 on both disks."""
    go_on(places)
    save(2)
    save(4)
    return places


def test_the_newest_checkpoint_of_all_disks_is_taken(saved):
    assert [start.checkpoint.name for start in go_on(saved)] == ["step-00000004"] * 3


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-9])])
@pytest.mark.parametrize("file", [SHARD.format(1), MODEL, "manifest.json"])
def test_damage_on_one_host_is_named_and_costs_the_checkpoint_on_all(saved, damage, file):
    damage(saved[1] / "checkpoints" / "step-00000004" / file)
    for start in go_on(saved):
        assert start.checkpoint.name == "step-00000002"
        ((damaged, reason),) = start.damaged
        assert damaged.name == "step-00000004"
        assert reason.startswith("b: ")
        assert file in reason
    for place in saved[:2]:
        assert checkpoints(place) == ["step-00000002"]
        assert (place / "checkpoints" / "damaged-step-00000004").is_dir()


@pytest.mark.parametrize("step", [2, 6])
def test_what_a_kill_between_two_manifests_left_is_no_checkpoint(places, save, step, monkeypatch):
    """The first disk has its manifest, the second has not: as if that save had never begun."""
    go_on(places)
    if step == 6:
        save(4)
    write = store._write_manifest

    def killed(folder: Path, body: dict) -> None:
        if folder.is_relative_to(places[1]):
            raise KeyError("killed here")
        write(folder, body)

    monkeypatch.setattr(store, "_write_manifest", killed)
    assert all(isinstance(outcome, KeyError) for outcome in save(step))
    monkeypatch.undo()
    assert checkpoints(places[0])[-1] == f"step-{step:08d}"
    for start in go_on(places):
        assert start.damaged == ()
        assert (start.checkpoint.name if start.checkpoint else None) == ("step-00000004" if step == 6 else None)
    save(step)
    assert checkpoints(places[0]) == checkpoints(places[1])
    assert [start.step for start in go_on(places)] == [step] * 3


def test_parts_of_different_saves_are_not_put_together(saved, save):
    """One host has the checkpoint of an earlier attempt: each part is whole, but they are not of one save."""
    old = shutil.copytree(saved[1] / "checkpoints" / "step-00000004", saved[1].parent / "old")
    for place in saved[:2]:
        shutil.rmtree(place / "checkpoints" / "step-00000004")
    save(4)
    shutil.rmtree(saved[1] / "checkpoints" / "step-00000004")
    shutil.move(old, saved[1] / "checkpoints" / "step-00000004")
    for start in go_on(saved):
        assert start.checkpoint.name == "step-00000002"
        assert "not of one save on a + c; b" in start.damaged[0][1]


def test_a_host_without_any_checkpoint_is_refused_and_nothing_is_touched(saved):
    shutil.rmtree(saved[1])
    before = sorted(saved[0].rglob("*"))
    for outcome in go_on(saved, hosts="axc"):
        assert isinstance(outcome, UserError)
        assert "has no checkpoints on x, but on a + c (step-00000004)" in str(outcome)
    assert sorted(saved[0].rglob("*")) == before
    assert not saved[1].exists()


def test_another_run_on_one_host_is_refused_with_its_name(saved):
    (saved[1] / "run.json").write_text(json.dumps({"identity": {"seed": 1}}))
    for outcome in go_on(saved):
        assert isinstance(outcome, UserError)
        assert str(outcome).startswith(f"b: {saved[1]} holds another run (seed was 1, is now 0)")


def test_where_no_disk_has_a_whole_checkpoint_nothing_is_begun_anew(saved):
    (saved[0] / "checkpoints" / "step-00000004" / MODEL).unlink()
    (saved[1] / "checkpoints" / "step-00000002" / MODEL).unlink()
    assert all("every checkpoint in" in str(outcome) for outcome in go_on(saved))
    assert checkpoints(saved[0]) == checkpoints(saved[1]) == ["step-00000002", "step-00000004"]
