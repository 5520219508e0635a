"""What happens when something breaks, in real processes: each sentence of the README's section has its test here."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from mpnet_ds.checkpoint.store import CheckpointStore, verify
from tests.runs import RECIPE, ROOT, environment, free_port, pretrain, recipe_with

FAULTY = ROOT / "tests" / "training" / "faulty.py"
SECONDS_TO_SAVE = 30


def train(output: Path, data: Path, *arguments, fault: str = "", ranks: int = 0, config: str = "zero2"):
    """The run of ``trained``, with a fault; the same command again, without one, must end with the same losses."""
    script = [FAULTY, fault] if fault else None
    flags = ["--recipe", RECIPE, "--data", data, *(["--micro_batch_size", 4] if ranks == 2 else []), *arguments]
    return pretrain(output, *flags, config=config, ranks=ranks, script=script)


def events(run, kind: str) -> list[dict]:
    return [line for line in run.metrics if line.get("event") == kind]


def saved_steps(run) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in CheckpointStore(run.folder).all()]


@pytest.mark.parametrize(("fault", "code"), [("sigterm@3", 75), ("sigusr1@3", 75), ("sigint@3", 130), ("stop@3", 0)])
def test_a_request_to_stop_saves_and_the_same_command_goes_on(trained, dataset_folder, tmp_path, fault, code):
    stopped = train(tmp_path / "run", dataset_folder, fault=fault)
    assert stopped.code == code, stopped.err
    assert "at update 3 of 8; everything is saved" in stopped.out
    assert saved_steps(stopped) == [2, 3]
    assert not (tmp_path / "run" / "STOP").exists()
    again = train(tmp_path / "run", dataset_folder)
    assert again.code == 0, again.err
    assert again.losses == trained().losses
    assert "Training loss " + f"{again.losses[0]:.4f} → {again.losses[-1]:.4f}" in again.out


def test_a_file_asks_for_a_checkpoint(dataset_folder, tmp_path):
    run = train(tmp_path / "run", dataset_folder, "--save_interval", 100, "--keep", 9, fault="save@3")
    assert run.code == 0, run.err
    assert saved_steps(run) == [3, 8]
    assert not (tmp_path / "run" / "SAVE").exists()


def test_one_ranks_signal_stops_all_and_the_launcher_passes_the_code_on(trained, dataset_folder, tmp_path):
    stopped = train(tmp_path / "run", dataset_folder, fault="sigterm@3", ranks=2)
    assert stopped.code == 75, stopped.err
    assert saved_steps(stopped) == [2, 3]
    assert train(tmp_path / "run", dataset_folder, ranks=2).losses == trained("zero2", 2).losses


def test_more_signals_while_saving_do_no_harm(trained, dataset_folder, tmp_path):
    stopped = train(tmp_path / "run", dataset_folder, fault="sigterm_while_saving@3", ranks=2)
    assert stopped.code == 75, stopped.err
    verify(stopped.newest_checkpoint)
    assert train(tmp_path / "run", dataset_folder, ranks=2).losses == trained("zero2", 2).losses


def launch(output: Path, data: Path, fault: str, ranks: int = 2) -> subprocess.Popen:
    """Starts the run of ``trained`` under DeepSpeed's launcher and does not wait for it."""
    launcher = ["deepspeed", "--num_accelerators", ranks, "--master_port", free_port(), FAULTY, fault]
    flags = ["--deepspeed_config", ROOT / "ds_configs" / "zero2.json", "--output_dir", output, "--recipe", RECIPE]
    command = [*launcher, *flags, "--data", data, "--micro_batch_size", 8 // ranks]
    with open(output.with_suffix(".log"), "w") as log:
        return subprocess.Popen([str(word) for word in command], env=environment(), stdout=log, stderr=log)


def wait_for_update(output: Path, update: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (output / "metrics.jsonl").exists() and f'"step": {update},' in (output / "metrics.jsonl").read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"update {update} was never reached:\n" + output.with_suffix(".log").read_text())


def ranks_of(launcher: subprocess.Popen) -> list[psutil.Process]:
    return [process for process in psutil.Process(launcher.pid).children(recursive=True) if "RANK" in process.environ()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_ranks_save_when_a_signal_ends_their_launcher(trained, dataset_folder, tmp_path, number):
    """DeepSpeed's launcher passes neither on: it dies, and its ranks notice."""
    output = tmp_path / "run"
    launcher = launch(output, dataset_folder, "slow@3")
    wait_for_update(output, 3, launcher)
    below = psutil.Process(launcher.pid).children(recursive=True)
    launcher.send_signal(number)
    assert launcher.wait(10) == -number
    _, alive = psutil.wait_procs(below, timeout=SECONDS_TO_SAVE)
    assert not alive
    step = saved_steps(type("", (), {"folder": output}))[-1]
    assert 3 <= step < 8
    assert f"at update {step} of 8; everything is saved" in output.with_suffix(".log").read_text()
    assert train(output, dataset_folder, ranks=2).losses == trained("zero2", 2).losses


def test_a_rank_killed_in_the_middle_of_a_save_costs_that_save_only(trained, dataset_folder, tmp_path):
    killed = train(tmp_path / "run", dataset_folder, fault="sigkill_while_saving@5", ranks=2)
    assert killed.code != 0
    assert saved_steps(killed) == [2, 4]
    assert (tmp_path / "run" / "checkpoints" / "step-00000006").exists()
    again = train(tmp_path / "run", dataset_folder, ranks=2)
    assert "at update 4" in again.out
    assert again.losses == trained("zero2", 2).losses


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.long)])
def test_kills_at_random_moments_end_with_the_losses_of_an_undisturbed_run(trained, dataset_folder, tmp_path, kills):
    output, moments = tmp_path / "run", random.Random(kills)
    for kill in range(kills):
        launcher = launch(output, dataset_folder, "slow@1")
        if (output / "metrics.jsonl").exists():
            wait_for_update(output, max(step_of_newest(output), 0) + 1, launcher) if kill % 2 else None
        time.sleep(moments.uniform(0, 4 if kill % 2 else 15))
        ranks = ranks_of(launcher) if launcher.poll() is None else []
        for victim in ranks if kill % 3 else ranks[-1:]:
            victim.kill()
        launcher.wait(60)
        for checkpoint in CheckpointStore(output).all():
            verify(checkpoint)
        if step_of_newest(output) == 8:
            shutil.rmtree(output)  # it got to its end: begin again
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


@pytest.mark.parametrize("damage", [damage_bytes, truncate_shard, remove_shard, cut_manifest])
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
    assert "at update 6" in again.out
    assert (output / "checkpoints" / "damaged-step-00000008").exists()
    assert again.losses == whole.losses
    assert saved_steps(again) == [6, 8]


def test_where_every_checkpoint_is_damaged_nothing_is_begun_anew(trained, dataset_folder, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(trained().folder, output)
    for checkpoint in CheckpointStore(output).all():
        damage_bytes(checkpoint)
    refused = train(output, dataset_folder)
    assert refused.code == 2
    assert "every checkpoint in" in refused.err
    assert len(CheckpointStore(output).all()) == 2


@pytest.mark.parametrize(("config", "ranks"), [("zero0", 0), ("zero2", 2), ("zero3", 2), ("bf16", 0)])
def test_an_update_without_finite_loss_is_skipped_and_reported(trained, dataset_folder, tmp_path, config, ranks):
    arguments = ["--micro_batch_size", 4]
    run = train(tmp_path / "run", dataset_folder, *arguments, fault="nan_on_one_rank@4", ranks=ranks, config=config)
    assert run.code == 0, run.err
    (event,) = events(run, "skipped")
    # the fault is in the last rank's first rows: with one rank the first four of the update, with two the other four
    assert event["samples"] == [[28, 31] if ranks else [24, 27]]
    assert (event["step"], event["what"], event["skipped_updates"]) == (4, "loss", 1)
    assert f"update 4 skipped, 1 in a row: the loss is not finite (samples {28 if ranks else 24} to" in run.err
    reference = trained(config, max(ranks, 1)).losses
    assert run.losses[:3] == pytest.approx(reference[:3], abs=1e-5)
    assert run.losses[3] == pytest.approx(reference[4], abs=0.2)  # update 5, from the weights of update 3
    assert run.losses[3] != pytest.approx(reference[4], abs=1e-4)
    assert len(run.losses) == 7
    assert "NaN" not in (run.folder / "metrics.jsonl").read_text()


def test_a_run_that_makes_no_progress_gives_up_and_leaves_its_state(dataset_folder, tmp_path):
    recipe = recipe_with(tmp_path, run={"max_skipped": 3})
    flags = ["--recipe", recipe, "--data", dataset_folder]
    run = pretrain(tmp_path / "run", *flags, script=[FAULTY, "nan_from@4"])
    assert run.code == 1
    assert "error: stopped at update 6: the last 3 updates had no finite loss or gradient" in run.err
    assert saved_steps(run) == [2, 4]
    inspected = tmp_path / "run" / "inspection"
    verify(inspected / "checkpoints" / "step-00000006")
    assert (inspected / "batch-rank-00000.npz").exists()
    again = pretrain(tmp_path / "run", *flags)
    assert again.code == 0, again.err
    assert "at update 4" in again.out


def test_a_jump_of_the_loss_is_reported(dataset_folder, tmp_path):
    run = train(tmp_path / "run", dataset_folder, "--max_steps", 24, "--log_interval", 8, fault="spike@22")
    assert run.code == 0, run.err
    (event,) = events(run, "loss_spike")
    assert event["step"] == 22
    assert event["loss"] > 2 * event["running_mean"] > 10
    assert event["samples"] == [168, 175]
    assert "update 22: loss" in run.err


def test_a_checkpoint_that_cannot_be_written_leaves_the_others_and_training_goes_on(trained, dataset_folder, tmp_path):
    run = train(tmp_path / "run", dataset_folder, "--keep", 9, fault="no_room@3", ranks=2)
    assert run.code == 0, run.err
    (event,) = events(run, "save_failed")
    assert event["step"] == 4
    assert "File too large" in event["reason"]
    assert "THE CHECKPOINT WAS NOT SAVED" in run.err
    assert saved_steps(run) == [2, 6, 8]
    assert run.losses == trained("zero2", 2).losses


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
        assert "update 8 is not in a checkpoint" in run.err
        kept = saved_steps(run)
        assert kept == [2, 4, 6, 8][: len(kept)]
        for checkpoint in CheckpointStore(run.folder).all():
            verify(checkpoint)
        assert [line["loss"] for line in run.metrics if "loss" in line] == trained().losses
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_hanging_rank_is_named_with_its_stack_and_ends_the_run(dataset_folder, tmp_path):
    run = train(tmp_path / "run", dataset_folder, "--hang_timeout", 4, fault="hang@5", ranks=2)
    assert run.code == 1
    assert "rank 1" in run.err
    stacks = (tmp_path / "run" / "hang" / "rank-00001.txt").read_text()
    assert "faulty.py" in stacks
    assert saved_steps(run) == [2, 4]


def test_two_runs_do_not_share_an_output_folder(dataset_folder, tmp_path):
    output = tmp_path / "run"
    launcher = launch(output, dataset_folder, "slow@1", ranks=1)
    try:
        wait_for_update(output, 1, launcher)
        second = train(output, dataset_folder)
        assert second.code == 2
        assert "is in use by another run" in second.err
    finally:
        for rank in ranks_of(launcher):
            rank.kill()
        launcher.wait(60)


@pytest.mark.parametrize("config", ["zero2", "zero3", "bf16"])
def test_no_update_waits_for_the_device_but_in_deepspeeds_own_check(dataset_folder, tmp_path, config):
    flags = ["--micro_batch_size", 4, "--log_interval", 8, "--max_steps", 3]
    run = train(tmp_path / "run", dataset_folder, *flags, fault="waits@2", config=config)
    assert run.code == 0, run.err
    assert "one update was watched" in run.out
    assert "deepspeed waits in is_invalid_grad_norm" in run.out  # the watch sees such things
    assert "mpnet_ds waits" not in run.out
