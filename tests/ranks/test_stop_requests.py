"""Requests to stop and to save, in real runs: several in one process where they need none of their own."""

import os
import shutil
import signal
from dataclasses import dataclass, replace
from types import SimpleNamespace

import psutil
import pytest

from mpnet_ds.checkpoint.store import verify
from mpnet_ds.preflight.checks import check_launcher
from mpnet_ds.preflight.plan import RunPlan
from mpnet_ds.ranks import stop_requests
from mpnet_ds.ranks.process_group import ancestors
from mpnet_ds.ranks.stop_requests import Agreement, Request, StopRequests, noting_signals
from mpnet_ds.run.run_folder import held
from tests.runs import RECIPE, ROOT, Run, pretrain_all
from tests.training.faulty_runs import saved_steps, start_run, train, wait_for_update

SECONDS_TO_SAVE = 30


@pytest.fixture(autouse=True)
def answers_to_signals():
    """Those of this process, as they were before: programs that other tests start inherit what is ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)}
    yield
    for number, answer in before.items():
        signal.signal(number, answer)


def test_what_is_asked_after_an_agreement_began_is_for_the_next(tmp_path):
    ranks = SimpleNamespace(world_size=1, is_main=True, local_rank=0)
    requests = StopRequests(tmp_path, ranks)
    finish = requests.begin([3, 5])
    (tmp_path / "STOP").touch()
    assert finish() == Agreement(Request.NOTHING, [3, 5])
    assert requests.agree([5]) == Agreement(Request.STOP, [5])


def test_a_hangup_that_nohup_has_ignored_remains_so(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequests(tmp_path, SimpleNamespace(world_size=1, is_main=True, local_rank=0)):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_training_kills_no_rank_and_is_a_request_to_the_run(tmp_path, capfd, monkeypatch, number):
    signal.signal(number, signal.SIG_DFL)
    siblings = SimpleNamespace(have_left=False, is_ending=lambda seconds=0: False)
    ranks = SimpleNamespace(world_size=1, is_main=True, local_rank=0, siblings=siblings)
    monkeypatch.setattr(stop_requests.start_up, "is_on", lambda: True)
    with noting_signals(ranks):
        signal.raise_signal(number)
        with StopRequests(tmp_path, ranks) as requests:
            assert requests.agree().request == Request.REQUEUE
        assert capfd.readouterr().err == f"{number.name}: the run stops before its first step.\n"
        monkeypatch.setattr(stop_requests.os, "_exit", lambda code: siblings.left.append(code))
        siblings.have_left, siblings.left, siblings.leave = True, [], lambda: siblings.left.append("farewell")
        signal.raise_signal(number)
        assert siblings.left == ["farewell", 1]  # the launcher ends all
    assert signal.getsignal(number) == (signal.SIG_IGN if number == signal.SIGUSR1 else signal.SIG_DFL)


def test_a_launcher_that_is_gone_before_it_is_asked_for_its_parent_has_gone_and_is_no_error(tmp_path, monkeypatch):
    parent = psutil.Process.parent

    def parent_of_this_process(process: psutil.Process) -> psutil.Process | None:
        if process.pid != os.getpid():
            raise psutil.NoSuchProcess(process.pid)
        return parent(process)

    monkeypatch.setattr(psutil.Process, "parent", parent_of_this_process)
    monkeypatch.setattr(stop_requests, "SECONDS_BETWEEN_LOOKS", 0)
    requests = StopRequests(tmp_path, SimpleNamespace(world_size=1, is_main=True, local_rank=0))
    requests._launchers = [os.getppid(), 1]
    assert requests.agree().request == Request.REQUEUE
    assert [process.pid for process in ancestors()] == [os.getppid()]
    assert check_launcher(RunPlan(), None, None) == []


STOPPED = {"sigusr1@3": 75, "sighup@3": 75, "sigint@3": 130, "stop@3": 0}
"""Faults of faulty.py by which a run is asked to stop, and the exit codes; two ranks get SIGTERM below."""
SPARSE = ["--log_interval", 4, "--save_interval", 3]


@dataclass(frozen=True)
class Before:
    """A run that was asked to stop, and the files it left; it has been continued since then."""

    run: Run
    again: Run


@pytest.fixture(scope="module")
def asked(dataset_folder, tmp_path_factory) -> dict[str, Run | Before]:
    """Runs of one rank by what was asked of them, all in one process; those that stopped are continued in another."""
    folder = tmp_path_factory.mktemp("asked")
    common = ["--deepspeed_config", ROOT / "ds_configs" / "zero2.json", "--recipe", RECIPE, "--data", dataset_folder]
    more = {"sigterm@3": SPARSE, "save@3": ["--save_interval", 100, "--keep", 9]}
    faults = ["warned_in_the_end", *STOPPED, "sigterm@3", "save@3"]  # the first while a second SIGUSR1 would still end it
    runs = {folder / fault: [*common, *more.get(fault, []), "--fault", fault] for fault in faults}
    runs[folder / "whole"] = [*common, *SPARSE]
    first = {output.name: run for output, run in pretrain_all(folder, runs, 1).items()}
    stopped = [*STOPPED, "sigterm@3"]
    for fault in stopped:
        shutil.copytree(folder / fault, folder / "left" / fault)
    second = pretrain_all(folder, {folder / fault: [*common, *more.get(fault, [])] for fault in stopped}, 1)
    continued = {
        fault: Before(replace(first[fault], folder=folder / "left" / fault), second[folder / fault]) for fault in stopped
    }
    return first | continued


@pytest.mark.parametrize(("fault", "code"), STOPPED.items())
def test_a_request_to_stop_saves_and_the_same_command_continues(trained, asked, fault, code):
    stopped, again = asked[fault].run, asked[fault].again
    assert stopped.code == code, stopped.err
    assert "at step 3 of 8; everything is saved" in stopped.out
    assert saved_steps(stopped.folder) == [2, 3]
    assert not (stopped.folder / "STOP").exists()
    assert again.code == 0, again.err
    assert again.losses == trained().losses
    assert "Training loss " + f"{again.losses[0]:.4f} → {again.losses[-1]:.4f}" in again.out


def test_ctrl_c_says_what_it_does_and_what_a_second_one_would(asked):
    said = "Ctrl-C: the run saves now and stops; a second Ctrl-C quits without saving.\n"
    assert asked["sigint@3"].run.err.count(said) == 1


def test_a_stop_between_two_lines_of_the_log_leaves_no_trace_in_it(asked):
    whole, stopped, again = asked["whole"], asked["sigterm@3"].run, asked["sigterm@3"].again
    assert (whole.code, stopped.code) == (0, 75), whole.err + stopped.err
    assert again.repeatable == whole.repeatable
    assert [line["step"] for line in again.metrics if "loss" in line] == [4, 8]


def test_a_warning_after_the_last_step_does_not_spoil_the_exit_code(asked):
    run = asked["warned_in_the_end"]
    assert run.code == 0, run.err
    assert saved_steps(run.folder)[-1] == 8


def test_a_file_asks_for_a_checkpoint(asked):
    run = asked["save@3"]
    assert run.code == 0, run.err
    assert saved_steps(run.folder) == [3, 8]
    assert not (run.folder / "SAVE").exists()


def test_one_ranks_signal_stops_all_and_the_launcher_passes_the_code_on(trained, dataset_folder, tmp_path):
    stopped = train(tmp_path / "run", dataset_folder, fault="slow_last_words@3", ranks=2, launcher="deepspeed")
    assert stopped.code == 75, stopped.err
    assert "at step 3 of 8; everything is saved" in stopped.out  # no rank left before rank 0 had said so
    assert saved_steps(stopped.folder) == [2, 3]
    assert train(tmp_path / "run", dataset_folder, ranks=2).losses == trained("zero2", 2).losses


@pytest.mark.long
def test_more_signals_while_saving_do_no_harm(trained, dataset_folder, tmp_path):
    stopped = train(tmp_path / "run", dataset_folder, fault="sigterm_while_saving@3", ranks=2)
    assert stopped.code == 75, stopped.err
    verify(stopped.newest_checkpoint)
    assert train(tmp_path / "run", dataset_folder, ranks=2).losses == trained("zero2", 2).losses


@pytest.mark.parametrize(
    ("number", "everyone", "ranks"),
    [
        (signal.SIGTERM, False, 1),
        pytest.param(signal.SIGUSR1, False, 2, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, True, 2, marks=pytest.mark.long),
    ],
)
def test_ranks_save_when_a_signal_ends_their_launcher(trained, dataset_folder, tmp_path, number, everyone, ranks):
    """DeepSpeed's launcher passes neither on: it dies, and its ranks notice. Some schedulers signal every process."""
    output = tmp_path / "run"
    launcher = start_run(output, dataset_folder, "slow@3", ranks=ranks)
    wait_for_update(output, 3, launcher)
    below = psutil.Process(launcher.pid).children(recursive=True)
    for process in [*below, launcher] if everyone else [launcher]:
        process.send_signal(number)
    assert launcher.wait(10) == -number
    _, alive = psutil.wait_procs(below, timeout=SECONDS_TO_SAVE)
    assert not alive
    step = saved_steps(output)[-1]
    assert 3 <= step < 8
    assert f"at step {step} of 8; everything is saved" in output.with_suffix(".log").read_text()
    assert train(output, dataset_folder, ranks=ranks).losses == trained("zero2", ranks).losses


def test_two_runs_do_not_share_an_output_folder(dataset_folder, tmp_path):
    with held(tmp_path / "run"):
        second = train(tmp_path / "run", dataset_folder)
    assert second.code == 2
    assert f"error: {tmp_path / 'run'} is in use by another run" in second.err
