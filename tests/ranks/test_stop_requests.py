"""Requests to stop and to save, in real processes."""

import os
import signal
from types import SimpleNamespace

import psutil
import pytest

from mpnet_ds.checkpoint.store import verify
from mpnet_ds.preflight.checks import check_hostfile
from mpnet_ds.ranks import stop_requests as control_module
from mpnet_ds.ranks.process_group import ancestors
from mpnet_ds.ranks.stop_requests import Agreement, Control, Request
from tests.training.faulty_runs import launch, ranks_of, saved_steps, train, wait_for_update

SECONDS_TO_SAVE = 30


def test_what_is_asked_after_an_agreement_began_is_for_the_next(tmp_path):
    ranks = SimpleNamespace(world_size=1, is_main=True, local_rank=0)
    control = Control(tmp_path, ranks)
    finish = control.begin([3, 5])
    (tmp_path / "STOP").touch()
    assert finish() == Agreement(Request.NOTHING, [3, 5])
    assert control.agree([5]) == Agreement(Request.STOP, [5])


def test_a_launcher_that_is_gone_before_it_is_asked_for_its_parent_has_gone_and_is_no_error(tmp_path, monkeypatch):
    parent = psutil.Process.parent

    def parent_of_this_process(process: psutil.Process) -> psutil.Process | None:
        if process.pid != os.getpid():
            raise psutil.NoSuchProcess(process.pid)
        return parent(process)

    monkeypatch.setattr(psutil.Process, "parent", parent_of_this_process)
    monkeypatch.setattr(control_module, "SECONDS_BETWEEN_LOOKS", 0)
    control = Control(tmp_path, SimpleNamespace(world_size=1, is_main=True, local_rank=0))
    control._launchers = [os.getppid(), 1]
    assert control.agree().request == Request.REQUEUE
    assert [process.pid for process in ancestors()] == [os.getppid()]
    assert check_hostfile() == []


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("sigusr1@3", 75),
        ("sigint@3", 130),
        ("stop@3", 0),
        pytest.param("sigterm@3", 75, marks=pytest.mark.long),  # two ranks get it below
    ],
)
def test_a_request_to_stop_saves_and_the_same_command_goes_on(trained, dataset_folder, tmp_path, fault, code):
    stopped = train(tmp_path / "run", dataset_folder, fault=fault)
    assert stopped.code == code, stopped.err
    assert "at update 3 of 8; everything is saved" in stopped.out
    assert saved_steps(stopped.folder) == [2, 3]
    assert not (tmp_path / "run" / "STOP").exists()
    again = train(tmp_path / "run", dataset_folder)
    assert again.code == 0, again.err
    assert again.losses == trained().losses
    assert "Training loss " + f"{again.losses[0]:.4f} → {again.losses[-1]:.4f}" in again.out


def test_a_stop_between_two_lines_of_the_log_leaves_no_trace_in_it(dataset_folder, tmp_path):
    more = ["--log_interval", 4, "--save_interval", 3]
    whole = train(tmp_path / "whole", dataset_folder, *more)
    stopped = train(tmp_path / "run", dataset_folder, *more, fault="sigterm@3")
    assert (whole.code, stopped.code) == (0, 75), whole.err + stopped.err
    again = train(tmp_path / "run", dataset_folder, *more)
    assert again.repeatable == whole.repeatable
    assert [line["step"] for line in again.metrics if "loss" in line] == [4, 8]


def test_a_warning_after_the_last_update_does_not_spoil_the_exit_code(dataset_folder, tmp_path):
    run = train(tmp_path / "run", dataset_folder, fault="warned_in_the_end")
    assert run.code == 0, run.err
    assert saved_steps(run.folder)[-1] == 8


def test_a_file_asks_for_a_checkpoint(dataset_folder, tmp_path):
    run = train(tmp_path / "run", dataset_folder, "--save_interval", 100, "--keep", 9, fault="save@3")
    assert run.code == 0, run.err
    assert saved_steps(run.folder) == [3, 8]
    assert not (tmp_path / "run" / "SAVE").exists()


def test_one_ranks_signal_stops_all_and_the_launcher_passes_the_code_on(trained, dataset_folder, tmp_path):
    stopped = train(tmp_path / "run", dataset_folder, fault="slow_last_words@3", ranks=2)
    assert stopped.code == 75, stopped.err
    assert "at update 3 of 8; everything is saved" in stopped.out  # no rank left before rank 0 had said so
    assert saved_steps(stopped.folder) == [2, 3]
    assert train(tmp_path / "run", dataset_folder, ranks=2).losses == trained("zero2", 2).losses


@pytest.mark.long
def test_more_signals_while_saving_do_no_harm(trained, dataset_folder, tmp_path):
    stopped = train(tmp_path / "run", dataset_folder, fault="sigterm_while_saving@3", ranks=2)
    assert stopped.code == 75, stopped.err
    verify(stopped.newest_checkpoint)
    assert train(tmp_path / "run", dataset_folder, ranks=2).losses == trained("zero2", 2).losses


@pytest.mark.parametrize(
    ("number", "everyone"),
    [
        (signal.SIGTERM, False),
        pytest.param(signal.SIGUSR1, False, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, True, marks=pytest.mark.long),
    ],
)
def test_ranks_save_when_a_signal_ends_their_launcher(trained, dataset_folder, tmp_path, number, everyone):
    """DeepSpeed's launcher passes neither on: it dies, and its ranks notice. Some schedulers signal every process."""
    output = tmp_path / "run"
    launcher = launch(output, dataset_folder, "slow@3")
    wait_for_update(output, 3, launcher)
    below = psutil.Process(launcher.pid).children(recursive=True)
    for process in [*below, launcher] if everyone else [launcher]:
        process.send_signal(number)
    assert launcher.wait(10) == -number
    _, alive = psutil.wait_procs(below, timeout=SECONDS_TO_SAVE)
    assert not alive
    step = saved_steps(output)[-1]
    assert 3 <= step < 8
    assert f"at update {step} of 8; everything is saved" in output.with_suffix(".log").read_text()
    assert train(output, dataset_folder, ranks=2).losses == trained("zero2", 2).losses


def test_two_runs_do_not_share_an_output_folder(dataset_folder, tmp_path):
    output = tmp_path / "run"
    launcher = launch(output, dataset_folder, "slow@1", "--max_steps", 500, ranks=1)
    try:
        wait_for_update(output, 1, launcher)
        second = train(output, dataset_folder, "--max_steps", 500)
        assert second.code == 2
        assert "is in use by another run" in second.err
    finally:
        for rank in ranks_of(launcher):
            rank.kill()
        launcher.wait(60)
