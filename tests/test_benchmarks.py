"""The benchmarks at their smallest: they run, their figures fit together, and what goes wrong is named."""

import json
import re
import sys
import tempfile
from argparse import Namespace
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from mpnet_ds import command_line
from mpnet_ds.attention_backends import BACKENDS
from mpnet_ds.config.recipe import load_recipe
from mpnet_ds.errors import UserError
from mpnet_ds.models.mpnet.sizes import flops_per_sequence, parameter_count
from tests.runs import RECIPE, ROOT, command

sys.path.insert(0, str(ROOT / "benchmarks"))

import bench_all
import bench_families
import bench_scaling
import bench_step
import measure_gpu
import timed_step
from bench_all import Benchmark
from random_dataset import make_dataset
from step_configuration import Configuration
from timed_step import PARTS, MeasurementFailed

VOCABULARY = 999
EVERY_PRECISION = {"fp32", "bf16", "fp16"}


def benchmark(name: str, folder: Path, *arguments) -> tuple[list[dict], str, dict]:
    """Rows, what was printed, and the whole file."""
    path = folder / f"{name}.json"
    done = command(sys.executable, f"benchmarks/{name}.py", *arguments, "--json", path)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(path.read_text())
    return written["rows"], done.stdout, written


@pytest.fixture(scope="session")
def steps(tmp_path_factory):
    """bench_step of two back-ends."""
    sizes = ["--recipe", RECIPE, "--micro_batch_size", 32, "--vocab_size", VOCABULARY, "--precision", "fp32"]
    return benchmark("bench_step", tmp_path_factory.mktemp("step"), *sizes, "--attention", "eager", "sdpa", "--steps", 7)


@pytest.fixture(scope="session")
def scaling(tmp_path_factory):
    """bench_scaling on two ranks."""
    if torch.cuda.device_count() == 1:
        pytest.skip("one GPU: no two ranks")
    leave_out = ["--layers", "--micro_batch_size", "--seq_length"]
    sizes = ["--recipe", RECIPE, "--hidden_size", 32, "--vocab_size", VOCABULARY, "--steps", 3]
    return benchmark("bench_scaling", tmp_path_factory.mktemp("scaling"), *leave_out, *sizes, "--ranks", 2)


# What is measured


def test_a_step_has_every_promised_figure(steps):
    rows, _, written = steps
    assert [row["attention"] for row in rows] == ["eager", "sdpa"]
    for row in rows:
        assert (row["precision"], row["zero_stage"], row["micro_batch_size"], row["steps"]) == ("fp32", 2, 32, 7)
        assert len(row["all_step_seconds"]) == 7
        assert row["step_seconds"] == sorted(row["all_step_seconds"])[3]
        assert row["skipped_steps"] == 0
        assert all(row[f"{part}_seconds"] > 0 for part in PARTS)
        assert row["first_step_seconds"] > 0
        assert row["peak_bytes"] >= row["held_bytes"] + row["step_bytes"] > row["held_bytes"] > 0
        assert row["mfu"] is None  # of fp32, and of CPUs
    about = written["environment"]
    assert about["versions"]["torch"] == torch.__version__
    assert about["hardware"]["cores"] >= 1
    assert about["command"].startswith("python benchmarks/bench_step.py --recipe")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT.*Z", about["date"])


def test_flops_and_rates_of_a_step_are_those_of_its_sizes(steps):
    recipe = load_recipe(str(RECIPE))
    config, n = recipe.model.config(VOCABULARY), recipe.data.seq_length
    for row in steps[0]:
        assert (row["seq_length"], row["parameters"]) == (n, parameter_count(config))
        assert row["flops"] == 32 * flops_per_sequence(config, n, round(0.15 * n))
        assert row["tokens_per_second"] == pytest.approx(32 * n / row["step_seconds"])
        assert row["flops_per_second"] == pytest.approx(row["flops"] / row["step_seconds"])


def test_the_parts_of_a_step_add_up_to_about_the_step(steps):
    """Medians of different steps, on a machine that may be busy: about, and with one of the back-ends."""
    ratios = [sum(row[f"{part}_seconds"] for part in PARTS) / row["step_seconds"] for row in steps[0]]
    assert any(0.5 < ratio < 2 for ratio in ratios), ratios


def test_each_second_lies_in_the_part_that_took_it(monkeypatch):
    """An engine that takes 10 seconds for forward, 100 for backward and 1,000 to update, of a clock of its own."""
    clock = SlowEngine()
    monkeypatch.setattr(timed_step, "synchronised_clock", lambda device: clock.now)
    targets = np.zeros((4, 1), dtype=int)
    data = Namespace(
        consecutive=lambda first, count: {"numbers": np.arange(first, first + count), "predicted_positions": targets}
    )
    ranks = Namespace(device=torch.device("cpu"), rank=1)
    config = Namespace(batch=Namespace(global_batch_size=8, micro_batch_size=4))
    with closing(timed_step.Steps(clock, data, load_recipe("mpnet-tiny"), config, ranks, total=3)) as steps:
        steps.step()
        parts = steps.time_parts(2)
    assert parts == {"data": [0, 0], "forward": [10, 10], "backward": [100, 100], "optimizer": [1000, 1000]}
    assert clock.batches == [[4, 5, 6, 7], [12, 13, 14, 15], [20, 21, 22, 23]]
    assert steps.skipped == 3


class SlowEngine:
    """An ``Engine`` that only takes time, and keeps what it is given; no update is applied."""

    def __init__(self):
        self.now, self.batches, self.applied = 0, [], False
        self.deepspeed = Namespace(backward=lambda loss: self.take(100))

    def take(self, seconds: int) -> None:
        self.now += seconds

    def set_learning_rate(self, rate: float) -> None:
        pass

    def forward(self, batch: dict):
        self.batches.append(batch["numbers"].tolist())
        self.take(10)
        return Namespace(sums=torch.ones(1))

    def backward(self, loss) -> None:
        self.deepspeed.backward(loss)
        self.take(1000)


def test_the_table_shows_the_figures(steps):
    rows, printed, _ = steps
    lines = [line.split() for line in printed.splitlines() if line.startswith(("precision", "fp32"))]
    assert lines[0][:6] == ["precision", "ZeRO", "attention", "sequences", "ms", "×"]
    assert [line[2] for line in lines[1:]] == ["eager", "sdpa"]
    assert [line[4] for line in lines[1:]] == [f"{row['step_seconds'] * 1e3:,.1f}" for row in rows]
    assert "median of 7 steps" in printed


def test_two_ranks_do_twice_the_work(scaling):
    (row,) = scaling[0]
    assert (row["sweep"], row["value"], row["ranks"]) == ("ranks", 2, 2)
    assert (row["time_ratio"], row["flops_ratio"], row["time_over_flops"]) == (1, 1, 1)
    tokens = 2 * row["micro_batch_size"] * row["seq_length"]
    assert row["tokens_per_second"] == pytest.approx(tokens / row["step_seconds"])
    config = replace(Configuration(recipe=str(RECIPE), hidden_size=32, seq_length=row["seq_length"]), layers=row["layers"])
    sizes = config.sized_recipe().model.config(VOCABULARY)
    assert row["flops"] == row["micro_batch_size"] * flops_per_sequence(sizes, row["seq_length"], row["predicted"])
    assert [line.split()[0] for line in scaling[1].splitlines() if line[:1].isdigit()] == ["2"]


def test_growth_is_told_from_arithmetic(monkeypatch, capsys):
    """Time that grows by the square of the tokens, beside arithmetic that does not."""

    def fake(configuration, data, steps):
        sizes = configuration.sized_recipe().model.config(VOCABULARY)
        n = configuration.seq_length
        found = dict.fromkeys(bench_step.MEASURED, 1.0) | {"step_seconds": n**2 / 1e4, "step_bytes": n, "peak_bytes": None}
        found |= {"flops": flops_per_sequence(sizes, n, round(0.15 * n)), "peak_flops": None, "all_step_seconds": []}
        found |= {"ranks": 1, "micro_batch_size": 1, "seq_length": n, "tokens_per_sequence": n}
        found |= {"skipped_steps": 0, "steps": 1, "threads": 1}
        return found | {
            "device": "cpu",
            "precision": "fp32",
            "attention": "eager",
            "zero_stage": 2,
            "hidden_size": 32,
            "layers": 2,
        }

    monkeypatch.setattr(bench_step, "measure_elsewhere", fake)
    arguments = ["--seq_length", "128", "256", "--layers", "--micro_batch_size", "--ranks", "--vocab_size", "999"]
    assert in_process(bench_scaling.main, monkeypatch, arguments) == 0
    last = capsys.readouterr().out.splitlines()[-1].split()
    time, arithmetic, both, step, memory, peak = last[2], last[3], last[4], last[6], last[7], last[8]
    assert (time, memory, peak) == ("4.00", "2.00", "–")
    assert 2 < float(arithmetic) < 2.5
    assert float(both) == pytest.approx(4 / float(arithmetic), abs=0.02)
    assert step == "0"


# Settings


def engine_of(**values) -> dict:
    configuration = Configuration(recipe=str(RECIPE), **values)
    return configuration.engine_config(configuration.sized_recipe(), EVERY_PRECISION).engine


def test_flags_go_over_deepspeeds_file():
    assert engine_of()["zero_optimization"]["stage"] == 2
    assert engine_of(zero_stage=3)["zero_optimization"]["stage"] == 3
    for precision in ("fp32", "bf16", "fp16"):
        engine = engine_of(precision=precision, deepspeed_config="ds_configs/bf16.json")
        assert (engine["bf16"]["enabled"], engine["fp16"]["enabled"]) == (precision == "bf16", precision == "fp16")
    assert engine_of(precision="fp16")["fp16"]["initial_scale_power"] == 16
    assert engine_of(micro_batch_size=7, ranks=1)["train_batch_size"] == 7
    checkpointing = "ds_configs/activation_checkpointing.json"
    assert "activation_checkpointing" in engine_of(deepspeed_config=checkpointing)
    assert "activation_checkpointing" not in engine_of(deepspeed_config=checkpointing, checkpointing="none")
    assert engine_of(checkpointing="1")["activation_checkpointing"] == {"number_checkpoints": 1}
    assert "number_checkpoints" not in engine_of(checkpointing="all")["activation_checkpointing"]


def test_sizes_go_over_the_recipes():
    recipe = Configuration(layers=5, hidden_size=192, seq_length=700).sized_recipe()
    model = recipe.model
    assert (model.num_hidden_layers, model.hidden_size, model.num_attention_heads, model.intermediate_size) == (
        5,
        192,
        3,
        768,
    )
    assert (recipe.data.seq_length, model.max_position_embeddings) == (700, 702)
    assert Configuration().sized_recipe() == load_recipe("mpnet-base")


def in_process(main, monkeypatch, arguments: list) -> int:
    """The exit code of a program."""
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        command_line.run(main)
    return ended.value.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attention", "spda"], "unknown attention 'spda'. Did you mean 'sdpa'?"),
        (["--recipe", "mpnet-bse"], "unknown recipe 'mpnet-bse'. Did you mean 'mpnet-base'?"),
        (["--deepspeed_config", "nowhere.json"], "no DeepSpeed configuration nowhere.json"),
        (["--checkpointing", "some"], "'some' is neither none nor all nor a number of layers"),
        (["--hidden_size", "100", "200"], "hidden_size 200 is not a multiple of num_attention_heads 3"),
        (["--json", "nowhere/results.json"], "cannot write nowhere/results.json"),
        (["--micro_batch_size", "0"], "'0' is not a whole number above 0"),
        (["--vocab_size", "10"], "--vocab_size is 10; it must be"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(arguments, message, monkeypatch, capsys):
    assert in_process(bench_step.main, monkeypatch, arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (bench_scaling.main, ["--attention", "spda"], "Did you mean 'sdpa'?"),
        (bench_scaling.main, ["--ranks", "--layers", "--seq_length", "--micro_batch_size"], "no sizes to measure"),
        (bench_all.main, ["--only", "bench_stp"], "unknown benchmark 'bench_stp'. Did you mean 'bench_step'?"),
        (bench_all.main, ["--output", "nowhere/results.json"], "cannot write nowhere/results.json"),
        (measure_gpu.main, ["--recipe", "mpnet-bse"], "Did you mean 'mpnet-base'?"),
        (measure_gpu.main, ["--folder", "nowhere"], "no folder nowhere"),
    ],
)
def test_so_it_is_by_the_other_programs(main, arguments, message, monkeypatch, capsys):
    assert in_process(main, monkeypatch, arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_configuration_that_fails_is_named_and_the_others_are_measured(steps, monkeypatch, capsys, tmp_path):
    def fake(configuration, data, number):
        if configuration.attention == "sdpa":
            raise MeasurementFailed("out of memory", "the trace")
        return steps[0][0]

    monkeypatch.setattr(bench_step, "measure_elsewhere", fake)
    arguments = ["--recipe", RECIPE, "--vocab_size", 999, "--attention", "sdpa", "eager", "--rounds", 2]
    assert in_process(bench_step.main, monkeypatch, [*arguments, "--json", tmp_path / "r.json"]) == 1
    said = capsys.readouterr()
    assert "sdpa: out of memory" in said.err
    assert "the trace" in said.err
    written = json.loads((tmp_path / "r.json").read_text())
    assert [row["attention"] for row in written["rows"]] == ["eager"]
    assert written["rows"][0]["rounds"] == 2
    assert len(written["failed"]) == 1


@pytest.mark.parametrize(
    ("code", "said", "reason"),
    [
        (1, "Traceback …\ntorch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB\n", "out of memory"),
        (1, "RuntimeError: [enforce fail] not enough memory: you tried to allocate\n", "out of memory"),
        (-9, "", "out of memory"),
        (1, "[rank1]: ValueError: a\nat the end\n", "ValueError: a"),
        (7, "just words\n", "just words"),
        (7, "", "exit code 7"),
    ],
)
def test_the_reason_of_a_fault_is_one_line(code, said, reason):
    assert timed_step._reason(code, said) == reason


def test_rounds_are_joined_by_medians():
    rounds = [
        dict.fromkeys(bench_step.MEASURED, value) | {"all_step_seconds": [value], "skipped_steps": 1, "held_bytes": None}
        for value in (1, 5, 2)
    ]
    joined = bench_step.middle(rounds)
    assert (joined["step_seconds"], joined["step_bytes"], joined["held_bytes"]) == (2, 2, None)
    assert (joined["all_step_seconds"], joined["skipped_steps"], joined["rounds"]) == ([1, 5, 2], 3, 3)


@pytest.mark.process
def test_a_worker_measures_one_configuration_after_the_other_and_a_fault_is_named(tmp_path):
    make_dataset(tmp_path / "data", 20_000, 1, VOCABULARY)
    small = Configuration(recipe=str(RECIPE), attention="eager", precision="fp32", micro_batch_size=2)
    with timed_step.Worker() as worker:
        measure = partial(worker.measure, data=str(tmp_path / "data"), steps=1, timeout=300)
        first = measure(small, profile=True)
        assert first["step_seconds"] > 0
        assert 0 < len(first["kernels"]) <= 30
        assert [kernel["seconds"] for kernel in first["kernels"]] == sorted(
            (kernel["seconds"] for kernel in first["kernels"]), reverse=True
        )
        with pytest.raises(UserError, match="attention 'flex' has no dropout"):
            measure(replace(small, attention="flex", attention_dropout=0.1))
        process = worker._process
        assert measure(replace(small, zero_stage=0))["zero_stage"] == 0
        assert worker._process is process
        process.kill()
        with pytest.raises(MeasurementFailed, match="out of memory"):  # the usual reason of a SIGKILL
            measure(small)
        assert worker._process is None


# All of them, and on a GPU


SMALLEST = Benchmark("bench_verify", "--shards 1 --gigabytes 0.005 --repeats 1", bench_all.of_verification)


@pytest.mark.process
def test_a_benchmark_that_fails_is_named_and_the_others_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    broken = Benchmark("bench_loader", "--folder {work} --nonsense", bench_all.of_loader)
    odd = Benchmark("other", "--shards 1 --gigabytes 0.005 --repeats 1", bench_all.of_loader, program="bench_verify")
    assert bench_all.run_all([broken, SMALLEST, odd], tmp_path / "all.json") == 1
    said = capsys.readouterr()
    table = {line.split()[0].rstrip(":"): line.split() for line in said.out.splitlines()}
    assert table["bench_loader"][1] == "FAILED"
    assert table["other"][1] == "FAILED"
    assert "unrecognized arguments: --nonsense" in said.err
    assert "not as expected: KeyError: 'way'" in said.err
    assert float(table["bench_verify"][2]) > 0
    assert table["bench_verify"][3] == "GB/s"
    written = json.loads((tmp_path / "all.json").read_text())
    assert [bool(row["error"]) for row in written["rows"]] == [True, False, True]
    assert written["rows"][1]["figures"][0]["unit"] == "GB/s"
    assert set(written["environment"]["versions"]) >= {"python", "torch", "deepspeed", "transformers"}
    assert not list(tmp_path.glob("mpnet-bench-*"))


@pytest.mark.process
def test_without_a_failure_the_exit_code_is_0(capsys):
    assert bench_all.run_all([SMALLEST], None) == 0
    assert "verify" in capsys.readouterr().out


def test_the_summary_takes_its_figures_from_the_rows(steps, scaling):
    (line,) = bench_all.of_step(steps[0])
    eager, sdpa = steps[0]
    assert (line.figure, line.unit, line.compared_with) == (sdpa["tokens_per_second"], "tokens/s", "eager")
    assert line.ratio == pytest.approx(sdpa["tokens_per_second"] / eager["tokens_per_second"])
    (ranks,) = bench_all.of_scaling(scaling[0])
    assert (ranks.what, ranks.unit, ranks.ratio) == ("2 ranks", "ms", 1)


def test_the_loader_writes_its_table_too(tmp_path):
    small = ["--folder", tmp_path / "data", "--tokens", 100_000, "--batches", 2, "--repeats", 1, "--batch_size", 4]
    rows, printed, _ = benchmark("bench_loader", tmp_path, *small)
    assert all(row["way"] in printed and row["tokens_per_second"] > 0 for row in rows)
    stream, documents = bench_all.of_loader(rows)
    assert (stream.what, documents.ratio) == ("stream", pytest.approx(documents.figure / stream.figure))


def test_the_plan_for_a_gpu_has_everything_once_and_the_back_ends_first():
    plan = list(measure_gpu.plan_of("mpnet-base", [32, 64, 128], "sdpa"))
    assert len(set(plan)) == len(plan)
    own = [name for name in BACKENDS if name != "auto"]
    assert [configuration.attention for configuration in plan[: len(own)]] == own
    assert {configuration.micro_batch_size for configuration in plan[: len(own)]} == {64}
    assert {c.deepspeed_config for c in plan} == {"ds_configs/zero2.json", "ds_configs/muon.json"}
    combined = {(c.attention, c.precision, c.micro_batch_size) for c in plan}
    assert combined >= {(name, "bf16", rows) for name in own for rows in (32, 64, 128)}
    assert combined >= {(name, "fp16", rows) for name in own for rows in (32, 64, 128)}
    for name in own:
        assert {c.zero_stage for c in plan if c.attention == name} == {0, 2}
        assert {c.checkpointing for c in plan if c.attention == name} == {None, "all"}
        assert {c.compiled for c in plan if c.attention == name} == {False, True}


def test_only_back_ends_that_the_device_has_are_planned():
    base = Configuration("mpnet-base")
    on_gpu, here = (measure_gpu.backends_of(torch.device(kind), base) for kind in ("cuda", "cpu"))
    assert "cpu" not in on_gpu
    assert (on_gpu["eager"], on_gpu["flex"]) == ({}, {"attention_dropout": 0.0})
    assert set(here) == {"eager", "cpu", "sdpa"}
    plan = list(measure_gpu.plan_of("mpnet-base", [64], "sdpa", on_gpu))
    dropout = {name: {c.attention_dropout for c in plan if c.attention == name} for name in on_gpu}
    assert dropout["flex"] == {0.0}
    assert dropout["sdpa"] == {None, 0.0}
    with_it, without = (replace(base, attention_dropout=p).sized_recipe().model for p in (None, 0.0))
    assert (with_it.attention_probs_dropout_prob, without.attention_probs_dropout_prob) == (0.1, 0.0)


@pytest.fixture
def quick_gpu(steps, monkeypatch, tmp_path):
    """``measure_gpu`` with a clock of its own: a measurement takes 30 seconds, one that compiles 90."""
    now = [0.0]

    def fake(worker, configuration, data, steps, timeout, profile=False):
        if profile:
            now[0] += 20
            return {"kernels": [{"name": "matmul", "launches": 72.0, "seconds": 0.03}]}
        now[0] += 90 if configuration.compiled else 30
        if configuration.precision == "fp16":
            raise MeasurementFailed("out of memory")
        return rows[0] | {"attention": configuration.attention, "compiled": configuration.compiled}

    rows = steps[0]
    monkeypatch.setattr(timed_step.Worker, "measure", fake)
    monkeypatch.setattr(measure_gpu, "time", Namespace(monotonic=lambda: now[0]))
    arguments = ["--recipe", RECIPE, "--micro_batch_size", 2, "--vocab_size", VOCABULARY, "--folder", tmp_path, "--no_tests"]

    def start(minutes: float) -> tuple[int, float]:
        now[0] = 0.0
        return in_process(measure_gpu.main, monkeypatch, [*arguments, "--minutes", minutes]), now[0]

    return start


def test_on_a_gpu_nothing_is_begun_that_would_not_be_done_in_time(quick_gpu, tmp_path):
    for minutes in (2, 3, 5):
        code, seconds = quick_gpu(minutes)
        assert code == 0
        assert 60 * minutes - 90 - 20 < seconds <= 60 * minutes
    pages, files = sorted(tmp_path.glob("*.md")), sorted(tmp_path.glob("*.json"))
    assert len(pages) == len(files) == 3  # of the same day: each has its own
    written = json.loads(files[-1].read_text())
    assert written["left_out"]


def test_on_a_gpu_the_page_tells_what_was_measured_and_what_was_not(quick_gpu, tmp_path, capsys):
    assert quick_gpu(60)[0] == 0
    (page,) = tmp_path.glob("recipe_*.md")
    text = page.read_text()
    assert re.match(r"# Training steps of recipe on \S+, \d{4}-\d\d-\d\d\n", text)
    assert "fp16, ZeRO 2, 2 sequences: out of memory" in text
    assert "Left out" not in text
    assert "torch " in text
    assert re.search(r"Tests \(`pytest tests/models/.*`\): not run", text)
    assert "| 30.00 | 72 | `matmul` |" in text
    written = json.loads(page.with_suffix(".json").read_text())
    backends = "|".join(BACKENDS)
    assert len(re.findall(rf"^\| (?:{backends}) ", text, re.MULTILINE)) == len(written["rows"]) > 0
    assert capsys.readouterr().out.endswith(f"{page}\n")


@pytest.mark.parametrize(
    ("gpus", "name"),
    [
        ([], "4-cores"),
        (["NVIDIA H200, 143771 MiB, 580.1"], "h200"),
        (["NVIDIA H100 80GB HBM3, 1 MiB, 5"] * 2, "2-h100-80gb-hbm3"),
    ],
)
def test_a_page_is_named_after_the_hardware(gpus, name):
    assert measure_gpu.hardware_of({"hardware": {"gpus": gpus, "cores": 4}}) == name


# What takes minutes


def test_tiles_that_spill_wait_or_take_long_are_left_out_and_the_fastest_is_named(capsys):
    tune_tiles = pytest.importorskip("tune_tiles", reason="needs the package triton (Linux)")
    current = tune_tiles.today("forward", 90)
    made = {
        current._replace(warps=8): {"stack": 8},
        current._replace(stages=1): {"warnings": ("C7515",)},
        current._replace(row_tile=128): {"shared": 228 * 1024},
        current._replace(key_tile=32): {"instructions": 27.0},
        current._replace(stages=3): {"instructions": 21.0},
        current: {"instructions": 40.0},
    }
    kernel = tune_tiles.Kernel(registers=168, stack=0, shared=1024, instructions=20.0, warnings=())
    found = [tune_tiles.Candidate("forward", tiles, kernel._replace(**change)) for tiles, change in made.items()]
    kept = tune_tiles.choose(found, current, shared_kib=227)
    assert [one.tiles for one in kept] == [current, current._replace(stages=3), current._replace(key_tile=32)]
    for one, seconds in zip(kept, (2e-3, 1.99e-3, 1.5e-3), strict=True):
        one.seconds = seconds
    tune_tiles.print_candidates(kept, 90)
    assert (
        "Faster: ('forward', 'wgmma'): Tiles(row_tile=64, key_tile=32, warps=4, stages=2, registers=168)"
        in capsys.readouterr().out
    )
    kept[2].seconds = 1.97e-3
    tune_tiles.print_candidates(kept, 90)
    assert "Faster" not in capsys.readouterr().out


@pytest.mark.long
def test_make_bench_runs_all(tmp_path):
    assert bench_all.run_all(list(bench_all.BENCHMARKS), tmp_path / "all.json") == 0
    written = json.loads((tmp_path / "all.json").read_text())
    assert [row["benchmark"] for row in written["rows"]] == [each.name for each in bench_all.BENCHMARKS]
    assert all(row["figures"] for row in written["rows"])
    assert all(figure["figure"] > 0 for row in written["rows"] for figure in row["figures"])


@pytest.mark.long
def test_checkpointing_takes_less_memory(tmp_path):
    sizes = ["--layers", 8, "--hidden_size", 128, "--micro_batch_size", 2, "--vocab_size", 999, "--steps", 1]
    rows = benchmark("bench_step", tmp_path, *sizes, "--checkpointing", "none", 4, "all")[0]
    assert [row["checkpointed_layers"] for row in rows] == [0, 4, 8]
    kept, half, least = (row["step_bytes"] for row in rows)
    assert kept > 1.2 * half
    assert half > 1.2 * least


@pytest.mark.long
def test_layers_are_compiled_in_the_first_step(tmp_path):
    sizes = ["--recipe", RECIPE, "--micro_batch_size", 2, "--vocab_size", 999, "--steps", 2]
    (row,) = benchmark("bench_step", tmp_path, *sizes, "--compile")[0]
    assert row["compiled"]
    assert row["first_step_seconds"] > 1 + 10 * row["step_seconds"]


@pytest.mark.long
def test_a_dataset_that_is_not_there_is_said_in_a_line(tmp_path):
    done = command(sys.executable, ROOT / "benchmarks" / "bench_step.py", "--recipe", RECIPE, "--data", "nowhere")
    assert done.returncode == 2
    assert "no dataset folder nowhere" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.long
def test_a_gpus_page_is_made_on_cpus_too(tmp_path):
    words = ["--recipe", RECIPE, "--micro_batch_size", 2, "--vocab_size", VOCABULARY, "--steps", 2, "--folder", tmp_path]
    done = command(sys.executable, "benchmarks/measure_gpu.py", *words, "--minutes", 1.5)
    assert done.returncode == 0, done.stderr
    (page,) = tmp_path.glob("*.md")
    assert re.search(r"pytest tests/models`\): \d+ passed", page.read_text())
    assert json.loads(page.with_suffix(".json").read_text())["rows"]


def test_families_are_compared_with_a_plain_loop(tmp_path, monkeypatch):
    sizes = {
        "model_type": "bert",
        "num_hidden_layers": 1,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    (tmp_path / "tiny.json").write_text(json.dumps({"objective": "mlm", "model": sizes}))
    arguments = [
        "--recipes",
        tmp_path / "tiny.json",
        "--precision",
        "fp32",
        "--seq_length",
        32,
        "--vocab_size",
        99,
        "--pairs",
        2,
    ]
    assert in_process(bench_families.main, monkeypatch, [*arguments, "--json", tmp_path / "r.json"]) == 0
    (row,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert row["bytes"] < row["plain_bytes"]
    assert row["ratio"] == pytest.approx(sum(row["ratios"]) / 2)
