"""Killed and hanging processes, damaged checkpoints and full disks, in real processes."""

import os
import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from mpnet_ds.checkpoint.store import CheckpointStore, verify
from tests.training.faulty_runs import events, ranks_of, saved_steps, start_run, train, wait_for_update


def test_a_rank_killed_in_the_middle_of_a_save_costs_that_save_only(trained, dataset_folder, tmp_path):
    killed = train(tmp_path / "run", dataset_folder, fault="sigkill_while_saving@5", ranks=2)
    assert killed.code != 0
    assert re.search(r"^error: rank 1 \(.*\) was killed.* The same command resumes", killed.err, re.MULTILINE)
    assert saved_steps(killed.folder) == [2, 4]
    assert (tmp_path / "run" / "checkpoints" / "step-00000006").exists()
    again = train(tmp_path / "run", dataset_folder, ranks=2)
    assert "at step 4" in again.out
    assert again.losses == trained("zero2", 2).losses


@pytest.mark.parametrize("kills", [pytest.param(20, marks=pytest.mark.long)])
def test_kills_at_random_moments_end_with_the_losses_of_an_undisturbed_run(trained, dataset_folder, tmp_path, kills):
    """Of one rank or of all; every other time in the middle of writing a checkpoint. Eight steps of a second each."""
    output, moments, hits = tmp_path / "run", random.Random(kills), 0
    for kill in range(kills):
        done = max(step_of_newest(output), 0)
        if done == 8:
            shutil.rmtree(output)  # it got to its end: begin again
            done = 0
        if kill % 2:
            launcher = start_run(output, dataset_folder, f"sigkill_while_saving@{moments.randint(done + 1, 8)}")
        else:
            launcher = start_run(output, dataset_folder, "slow@1")
            wait_for_update(output, done + 1, launcher)
            time.sleep(moments.uniform(0, 4))
            ranks = ranks_of(launcher)
            for victim in ranks if kill % 4 else ranks[-1:]:
                victim.kill()
        hits += launcher.wait(120) != 0
        for checkpoint in CheckpointStore(output).all():
            verify(checkpoint)
    assert hits > kills / 2
    done = train(output, dataset_folder, ranks=2)
    assert done.code == 0, done.err
    assert done.losses == trained("zero2", 2).losses


def step_of_newest(output: Path) -> int:
    newest = CheckpointStore(output).newest()
    return int(newest.name.removeprefix("step-")) if newest else -1


def damage_bytes(checkpoint: Path) -> None:
    path = next(checkpoint.glob("*optim_states.pt"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate_shard(checkpoint: Path) -> None:
    path = checkpoint / "mp_rank_00_model_states.pt"
    os.truncate(path, path.stat().st_size // 2)


def remove_shard(checkpoint: Path) -> None:
    next(checkpoint.glob("*optim_states.pt")).unlink()


def cut_manifest(checkpoint: Path) -> None:
    path = checkpoint / "manifest.json"
    path.write_text(path.read_text()[:200])


@pytest.mark.parametrize(
    "damage",
    [
        damage_bytes,
        cut_manifest,
        pytest.param(truncate_shard, marks=pytest.mark.long),
        pytest.param(remove_shard, marks=pytest.mark.long),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(trained, dataset_folder, tmp_path, damage):
    whole = trained()
    output = tmp_path / "run"
    shutil.copytree(whole.folder, output)
    damage(output / "checkpoints" / "step-00000008")
    refused = train(tmp_path / "other", dataset_folder, "--resume", output / "checkpoints" / "step-00000008")
    assert refused.code == 2
    assert "step-00000008" in refused.err
    again = train(output, dataset_folder)
    assert again.code == 0, again.err
    assert "warning: step-00000008 is damaged and set aside" in again.out
    assert "at step 6" in again.out
    assert (output / "checkpoints" / "damaged-step-00000008").exists()
    assert again.losses == whole.losses
    assert saved_steps(again.folder) == [6, 8]


def test_where_every_checkpoint_is_damaged_nothing_is_begun_anew(trained, dataset_folder, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(trained().folder, output)
    for checkpoint in CheckpointStore(output).all():
        damage_bytes(checkpoint)
    refused = train(output, dataset_folder)
    assert refused.code == 2
    assert "every checkpoint in" in refused.err
    assert len(CheckpointStore(output).all()) == 2


def test_a_checkpoint_that_cannot_be_written_leaves_the_others_and_training_goes_on(trained, dataset_folder, tmp_path):
    run = train(tmp_path / "run", dataset_folder, "--keep", 9, fault="no_room@3", ranks=2)
    assert run.code == 0, run.err
    (event,) = events(run, "save_failed")
    assert event["step"] == 4
    assert "File too large" in event["reason"]
    assert "THE CHECKPOINT WAS NOT SAVED" in run.err
    assert saved_steps(run.folder) == [2, 6, 8]
    assert run.losses == trained("zero2", 2).losses


def test_a_run_none_of_whose_saves_succeeds_stops_after_the_second_and_says_what_is_lost(dataset_folder, tmp_path):
    run = train(tmp_path / "run", dataset_folder, fault="never_room@1")
    assert run.code == 1
    assert [event["step"] for event in events(run, "save_failed")] == [2, 4]
    assert [line["step"] for line in run.metrics if "loss" in line] == [1, 2, 3, 4]
    assert run.err.count("there is no older one") == 2
    assert "kept" not in run.err
    lost = "steps 1 to 4 are lost: once {} can be written, the same command begins anew."
    assert f"none of the 2 saves has succeeded, {lost.format(tmp_path / 'run')}" in run.err


def test_a_full_disk_leaves_the_checkpoints_that_are_there(trained, dataset_folder, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here ({mounted.stderr.strip()}); a file size limit is tested above")
    try:
        run = train(disk / "run", dataset_folder, "--keep", 9)
        assert run.code == 1, run.out
        failed = [event["step"] for event in events(run, "save_failed")]
        assert failed
        assert "No space left on device" in run.err
        assert "step 8 is not in a checkpoint" in run.err
        kept = saved_steps(run.folder)
        assert kept == [2, 4, 6, 8][: len(kept)]
        for checkpoint in CheckpointStore(run.folder).all():
            verify(checkpoint)
        assert [line["loss"] for line in run.metrics if "loss" in line] == trained().losses
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_hanging_rank_is_named_with_its_stack_and_ends_the_run(dataset_folder, tmp_path):
    run = train(tmp_path / "run", dataset_folder, "--hang_timeout", 8, fault="hang@5", ranks=2)
    assert run.code == 1
    assert re.search(r"rank 1 \(.*\) hangs", run.err)
    stacks = (tmp_path / "run" / "hang" / "rank-00001.txt").read_text()
    assert "faulty.py" in stacks
    assert saved_steps(run.folder) == [2, 4]
