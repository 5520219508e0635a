import json
import math
import re
import sys
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
import torch
from deepspeed.monitor import csv_monitor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpnet_ds.config.recipe import load_recipe
from mpnet_ds.models.mpnet.sizes import flops_per_sequence
from mpnet_ds.progress import show_duration
from mpnet_ds.training import metrics
from mpnet_ds.training.metrics import MetricsWriter, Throughput, describe, peak_flops, peak_memory
from mpnet_ds.training.monitors import Csv
from tests.runs import command
from tests.small_disk import file_size_limit

LINE = {
    "step": 100,
    "consumed_samples": 25600,
    "loss": 2.5,
    "accuracy": 0.4567,
    "learning_rate": 4.5e-4,
    "grad_norm": 0.85,
    "tokens_per_second": 1_523_000.0,
    "predicted_tokens_per_second": 228_100.0,
    "data_wait": 0.001,
    "memory": int(22.6 * 2**30),
    "mfu": 0.457,
}


def test_other_ranks_write_nothing(tmp_path):
    writer = MetricsWriter(tmp_path, {}, is_main=False, first_step=1)
    writer.write({"step": 1, "loss": 0.5})
    writer.close()
    assert not list(tmp_path.iterdir())


def test_files_hold_whole_records_and_catch_up_when_a_disk_was_full(tmp_path, capsys, monkeypatch):
    writer = MetricsWriter(tmp_path, {}, is_main=True, first_step=0)
    monkeypatch.setattr(csv_monitor.dist, "get_rank", lambda: 0)
    monitor = Csv(csv_monitor.csvMonitor(SimpleNamespace(enabled=True, output_path=str(tmp_path), job_name="csv")), None)
    for step in range(30):
        with file_size_limit(10_000 if step % 12 < 3 else 15 + 50 * step):
            writer.write({"step": step, "loss": float(step)})
            with suppress(OSError):
                monitor.write_events([("train/loss", float(step), step)])
        lines = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        assert [event.step for event in events.Scalars("train/loss")] == list(range(len(events.Scalars("train/loss"))))
        rows = (tmp_path / "csv" / "train_loss.csv").read_text().splitlines()[1:]
        assert rows == [f"{done},{float(done)}" for done in range(len(rows))]
        assert lines == list(range(len(lines)))
        assert step % 12 >= 3 or len(lines) == len(rows) == len(events.Scalars("train/loss")) == step + 1
    writer.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(rows) == 30
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3  # once for each time that the disk was full
    assert all("File too large" in line and "training continues" in line for line in said)


@pytest.mark.parametrize(("seconds", "shown"), [(12.7, "12s"), (200, "3m20s"), (7500, "2h05m")])
def test_durations_read_well(seconds, shown):
    assert show_duration(seconds) == shown


WRITE = """
import sys
from pathlib import Path
from mpnet_ds.ranks import process_group
process_group.start()
from mpnet_ds.training.metrics import MetricsWriter
monitors = {"tensorboard": {"enabled": False}, "wandb": {"enabled": True, "project": "p"}, "comet": {"enabled": True}}
writer = MetricsWriter(Path(sys.argv[1]), monitors | {"csv_monitor": {"enabled": True}}, is_main=True, first_step=1)
writer.write({"step": 1, "consumed_samples": 8, "loss": 6.5, "grad_norm": float("inf")})
nan = float("nan")
writer.write({"step": 2, "consumed_samples": 16, "event": "skipped", "samples": [8, 15], "loss": nan, "losses": [nan]})
writer.write({"step": 2, "consumed_samples": 16, "eval_loss": 6.25, "final": True})
writer.write({"step": 2, "consumed_samples": 16, "loss": 6.0})
writer.close()

import wandb  # now a run that is resumed after step 1, where it had come to step 3, then after 1 again, then after 2
monitors = {"csv_monitor": {"enabled": True}, "wandb": {"enabled": True, "project": "p"}}
for first, last, wandb.refuses in ((0, 3, False), (2, 2, False), (2, 2, True), (3, 3, False)):
    wandb.run = None
    writer = MetricsWriter(Path(sys.argv[1]).with_name("resumed"), monitors, is_main=True, first_step=first)
    print("withdrawn", writer.withdrawn)
    for step in range(first, last + 1):
        writer.write({"step": step, "loss": first + step / 10})
    writer.close()
process_group.stop()
"""
WANDB = """
from types import SimpleNamespace
run, refuses, number = None, False, 0
def init(project, group, entity, **given):
    global run, number
    print("wandb init", project, given)
    if given and refuses:
        raise RuntimeError("Rewind is not enabled.")
    if run is None:
        number += 0 if given else 1
        run = SimpleNamespace(id=f"run{number}")
def log(data, step=None, commit=None):
    print("wandb", data, step)
"""
COMET = """
__version__ = "3.47.0"
class Experiment:
    def __internal_api__log_metric__(self, name, value, step):
        print("comet", {name: value}, step)
def start(**given):
    return Experiment()
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Four lines by a ``MetricsWriter`` with every monitor but TensorBoard; W&B and Comet only say what they get."""
    folder = tmp_path_factory.mktemp("written")
    for name, text in (("wandb", WANDB), ("comet_ml", COMET), ("write", WRITE)):
        (folder / f"{name}.py").write_text(text)
    for name in ("run", "resumed"):
        (folder / name).mkdir()
    done = command(sys.executable, folder / "write.py", folder / "run")  # a script's folder is where it imports from
    assert done.returncode == 0, done.stderr
    first, _, resumed = done.stdout.partition("withdrawn None\n")
    return SimpleNamespace(
        folder=folder / "run", out=first.splitlines(), resumed=folder / "resumed", out_later=resumed, err=done.stderr
    )


def test_lines_are_strict_json_with_null_for_what_is_not_finite(written):
    def refuse(constant):
        raise ValueError(constant)

    lines = (written.folder / "metrics.jsonl").read_text().splitlines()
    at_wandb, first, event, evaluation, _ = (json.loads(line, parse_constant=refuse) for line in lines)
    times = [datetime.fromisoformat(line.pop("time")) for line in (at_wandb, first, event, evaluation)]
    assert times == sorted(times)
    assert abs(datetime.now(timezone.utc) - times[0]) < timedelta(hours=1)
    assert at_wandb == {"step": 0, "event": "wandb_run", "id": "run1"}
    assert first == {"step": 1, "consumed_samples": 8, "loss": 6.5, "grad_norm": None}
    assert (event["event"], event["samples"], event["loss"], event["losses"]) == ("skipped", [8, 15], None, [None])
    assert evaluation["eval_loss"] == 6.25


@pytest.mark.parametrize("monitor", ["wandb", "comet"])
def test_monitors_get_finite_numbers_and_nothing_else(written, monitor):
    said = [line for line in written.out if line.startswith(f"{monitor} {{")]
    expected = [("train/loss", 6.5, 1), ("eval/loss", 6.25, 2), ("train/loss", 6.0, 2)]
    assert said == [f"{monitor} {{'{name}': {value}}} {step}" for name, value, step in expected]
    assert "wandb init p {}" in written.out


def test_csv_files_lie_in_the_runs_folder_by_default(written):
    assert (written.folder / "csv" / "train_loss.csv").read_text().split() == ["step,loss", "1,6.5", "2,6.0"]
    assert not (written.folder / "tensorboard").exists()


def test_what_a_resume_withdraws_is_withdrawn_by_every_monitor(written):
    """Steps 2 and 3 of the first start and step 2 of the second were made again: everywhere only the newest is left."""
    losses = [(0, 0.0), (1, 0.1), (2, 2.2), (3, 3.3)]
    events = EventAccumulator(str(written.resumed / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (step, pytest.approx(loss)) for step, loss in losses
    ]
    rows = (written.resumed / "csv" / "train_loss.csv").read_text().split()
    assert rows == ["step,loss", *(f"{step},{loss}" for step, loss in losses)]
    lines = [json.loads(line) for line in (written.resumed / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines if "loss" in line] == losses
    assert re.findall(r"^withdrawn (.*)", written.out_later, re.MULTILINE) == ["[2, 3]", "[2, 2]", "None"]


def test_weights_and_biases_goes_back_or_it_is_said_what_stays_there(written):
    inits = re.findall(r"^wandb init p (\{.+\})$", written.out_later, re.MULTILINE)
    assert inits == ["{'resume_from': 'run2?_step=1'}"] * 2 + ["{'id': 'run3', 'resume': 'allow'}"]
    warning = "W&B does not continue its run run2 at step 2 (Rewind is not enabled): this start is a new run there"
    assert f"warning: {warning}; steps 2 to 2 stay in run2." in written.err
    ids = [line["id"] for line in map(json.loads, (written.resumed / "metrics.jsonl").open()) if "id" in line]
    assert ids == ["run2", "run3"]


def throughput(recipe=None, tokens_per_sequence=512.0, world_size=1, precision="bf16", device="cpu", clock=None):
    recipe = recipe or load_recipe("mpnet-base")
    ranks = SimpleNamespace(device=torch.device(device), world_size=world_size)
    flops = flops_per_sequence(recipe.model.config(30527), recipe.data.seq_length, 77)
    return Throughput(flops, recipe.optimization.global_batch_size, tokens_per_sequence, ranks, precision, clock)


def test_rates_are_of_the_time_since_the_last_restart():
    times = iter([0.0, 5.0, 15.0, 15.0, 20.0, 20.0])
    measured = throughput(clock=lambda: next(times))
    measured.restart(step=10)  # at second 5
    measured.waited += 0.5
    measured.predicted += 4 * 256 * 77
    first = measured.measure(step=14)  # at 15
    assert measured.steps_per_second == 0.4
    assert first["tokens_per_second"] == pytest.approx(0.4 * 256 * 512)
    assert first["predicted_tokens_per_second"] == pytest.approx(0.4 * 256 * 77)
    assert first["data_wait"] == pytest.approx(0.05)
    assert first["memory"] > 2**20
    assert "mfu" not in first
    second = measured.measure(step=16)  # at 20
    assert second["data_wait"] == 0
    assert second["tokens_per_second"] == pytest.approx(0.4 * 256 * 512)


def test_the_first_step_is_reported_apart_and_in_no_rate():
    times = iter([0.0, 40.0, 40.0, 40.0, 40.0, 42.0, 42.0])
    measured = throughput(clock=lambda: next(times))
    assert measured.leave_out_first(step=1) == 40
    first = measured.measure(step=1)
    assert first["first_step_seconds"] == 40
    assert math.isnan(first["tokens_per_second"])
    assert measured.steps_per_second == 0
    second = measured.measure(step=5)
    assert second["tokens_per_second"] == 2 * 256 * 512
    assert "first_step_seconds" not in second
    assert "    ? tok/s" in describe(LINE | first, 10, math.inf, 150)


def test_padding_is_no_token_but_work(monkeypatch):
    monkeypatch.setattr(metrics, "peak_flops", lambda *_: 1e15)
    times = iter([0.0, 2.0, 2.0])
    monkeypatch.setattr(metrics, "peak_memory", lambda device: 7)
    measured = throughput(tokens_per_sequence=256.0, world_size=2, clock=lambda: next(times))
    measured.predicted += 256 * 38
    padded = measured.measure(step=1)
    assert padded["tokens_per_second"] == 256 * 256 / 2
    assert padded["predicted_tokens_per_second"] == 256 * 38 / 2
    row = flops_per_sequence(load_recipe("mpnet-base").model.config(30527), 512, 77)
    assert padded["mfu"] == pytest.approx(256 * row / 2 / (2 * 1e15))


def test_memory_of_a_cpu_is_the_peak_of_what_this_process_used():
    before = peak_memory(torch.device("cpu"))
    program = (
        "import torch; from mpnet_ds.training.metrics import peak_memory; a = peak_memory(torch.device('cpu')); "
        "torch.empty(2**29); torch.ones(2**26); print(a, peak_memory(torch.device('cpu')))"
    )
    done = command(sys.executable, "-c", program)
    a, b = map(int, done.stdout.split())
    assert 2**28 * 0.9 < b - a < 2**28 * 1.5
    assert before > 2**26


def test_the_terminals_line_says_everything_in_150_columns():
    text = describe(LINE, 125_000, 30 * 3600, 150)
    assert len(text) <= 150
    for expected in (
        "step    100/125000", "loss  2.5000", "ppl  12.18", "acc 45.7%", "lr 4.50e-04", "norm  0.85", "1.52M tok/s",
        "228k pred", "MFU 46%", "wait 0.1%", "22.6 GiB", "30h00m left",
    ):  # fmt: skip
        assert expected in text


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": 10.3262, "grad_norm": 12.3, "step": 125_000},
        {"loss": 0.0123, "grad_norm": 1e-9, "accuracy": 0.999},
        {"grad_norm": 123_456.0, "tokens_per_second": 312.0, "predicted_tokens_per_second": 49.0},
        {"grad_norm": math.inf, "tokens_per_second": 9_999.9, "predicted_tokens_per_second": 999_999.0},
        {"loss": math.nan, "tokens_per_second": 45_678_901.0, "memory": 2**20},
    ],
)
def test_columns_stand_below_each_other(changes):
    def columns(text):
        return [text.index(word) for word in ("loss", "ppl", "acc", "lr", "norm", "tok/s", "pred", "MFU", "wait", "GiB")]

    text = describe(LINE | changes, 125_000, 59, 150)
    assert columns(text) == columns(describe(LINE, 125_000, 59, 150))
    assert len(text) <= 150


@pytest.mark.parametrize("columns", [60, 80, 100])
@pytest.mark.parametrize("seconds", [1, 30 * 3600, math.inf])
def test_a_narrow_terminal_shows_what_is_worth_most(columns, seconds):
    text, wide = describe(LINE, 125_000, seconds, columns), describe(LINE, 125_000, seconds, 150)
    assert len(text) <= columns
    assert [part for part in wide.split("  ") if part in text.split("  ")] == text.split("  ")
    for expected in (
        "step    100/125000",
        "loss  2.5000",
        "1.52M tok/s",
        "left",
        *(["lr 4.50e-04"] if columns > 60 else []),
    ):
        assert expected in text
    assert len(describe(LINE, 10**9, seconds, columns)) <= columns


@pytest.mark.parametrize(("loss", "shown"), [(0.0, "  1.00"), (12.0, "162755"), (30.0, " 1e+13"), (800.0, "   inf")])
def test_perplexity_of_any_loss_is_shown(loss, shown):
    assert f"ppl {shown} " in describe(LINE | {"loss": loss}, 125_000, 1, 150)


def test_what_a_run_does_not_know_is_left_out():
    line = {name: value for name, value in LINE.items() if name not in ("mfu", "grad_norm")}
    text = describe(line, 125_000, math.inf, 150)
    assert "MFU" not in text
    assert "norm" not in text
    assert text.endswith("? left")
    assert "norm" not in describe(LINE | {"grad_norm": None}, 125_000, 1, 150)


def test_no_peak_is_claimed_for_a_cpu():
    assert peak_flops(torch.device("cpu"), "bf16") is None
