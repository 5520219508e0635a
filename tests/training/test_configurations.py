"""Every shipped DeepSpeed configuration trains, on one rank and, where it matters, on two, to the same losses."""

import csv
import json
import os
import re
from pathlib import Path
from unittest import mock

import pytest
import torch

from tests.runs import RECIPE, ROOT, Run, pretrain_all

SHIPPED = {path.stem: path for path in sorted((ROOT / "ds_configs").glob("*.json"))}
IN_16_BITS = {"bf16": 0.05, "fp16": 0.1, "zero0_in_bf16": 0.05}  # nats that losses may be away from those in fp32
ON_TWO_RANKS = ["zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "activation_checkpointing_partitioned"]
SECTIONS = {  # of activation_checkpointing: what the shipped ones do not reach with two layers
    "one_of_two_layers": {"number_checkpoints": 1},
    "partitioned_on_the_cpu": {"partition_activations": True, "cpu_checkpointing": True},
    "in_one_buffer": {"partition_activations": True, "contiguous_memory_optimization": True, "number_checkpoints": 2},
}


def train_all(folder: Path, data: Path, configs: dict[str, Path], ranks: int, *more, launcher: str = "") -> dict[str, Run]:
    """Six steps with each configuration, one after the other in the same processes; runs by configuration."""
    recipes = {}
    for precision in ("fp32", "auto"):
        content = json.loads(RECIPE.read_text())
        content["optimization"] |= {"precision": precision, "max_steps": 6}
        content["run"] |= {"eval_interval": 6, "save_interval": 6}
        recipes[precision] = folder / f"{precision}.json"
        recipes[precision].write_text(json.dumps(content))
    runs = {}
    for name, path in configs.items():
        recipe = recipes["auto" if name in IN_16_BITS else "fp32"]
        runs[folder / name] = ["--deepspeed_config", path, "--recipe", recipe, "--data", data, *more]
    with mock.patch.dict(os.environ, TORCH_EXTENSIONS_DIR=str(folder / "compiled")):
        done = pretrain_all(folder, runs, ranks, launcher)
    return {output.name: run for output, run in done.items()}


@pytest.fixture(scope="module")
def made_here(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("configurations")
    content = json.loads(SHIPPED["zero2"].read_text())
    changes = {name: {"activation_checkpointing": section} for name, section in SECTIONS.items()}
    changes["zero0_in_bf16"] = {"zero_optimization": {"stage": 0}, "bf16": {"enabled": True}}
    changes["csv"] = {"csv_monitor": {"enabled": True, "output_path": str(folder), "job_name": "events"}}
    for name, change in changes.items():
        (folder / f"{name}.json").write_text(json.dumps(content | change))
    return {name: folder / f"{name}.json" for name in changes}


@pytest.fixture(scope="module")
def one_rank(dataset_folder, tmp_path_factory, made_here):
    trainable = {name: path for name, path in SHIPPED.items() if name != "fp16" or torch.cuda.is_available()}
    folder = tmp_path_factory.mktemp("one")
    return train_all(folder, dataset_folder, trainable | made_here, 1, launcher="none")  # for what is loaded and compiled


@pytest.fixture(scope="module")
def accumulated(dataset_folder, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("accumulated")
    return train_all(folder, dataset_folder, {"zero2": SHIPPED["zero2"]}, 1, "--micro_batch_size", 4)["zero2"]


@pytest.fixture(scope="module")
def two_ranks(dataset_folder, tmp_path_factory):
    configs = {name: SHIPPED[name] for name in ON_TWO_RANKS}
    return train_all(tmp_path_factory.mktemp("two"), dataset_folder, configs, 2, "--micro_batch_size", 4)


def on_gpu_only(name: str):
    reason = "fp16 needs a GPU; without one it is refused and resolved in test_deepspeed_config.py"
    return pytest.param(name, marks=pytest.mark.skipif(name == "fp16" and not torch.cuda.is_available(), reason=reason))


@pytest.mark.parametrize("name", [*(on_gpu_only(name) for name in SHIPPED if name != "muon"), *SECTIONS])
def test_every_configuration_trains_to_the_losses_of_zero2(one_rank, name):
    run, reference = one_rank[name], one_rank["zero2"]
    assert run.code == 0
    tolerance = IN_16_BITS.get(name, 1e-5)
    assert len(run.losses) == 6
    assert run.losses == pytest.approx(reference.losses, abs=tolerance)
    assert run.eval_losses == pytest.approx(reference.eval_losses, abs=tolerance)
    assert f"in {name if name in IN_16_BITS else 'fp32'} on" in run.out


@pytest.mark.parametrize("name", [*map(on_gpu_only, SHIPPED)])
def test_the_fused_optimizer_does_every_step(one_rank, name):
    calls = int(re.search(r"^fused steps: (\d+)$", one_rank[name].out, re.MULTILINE)[1])
    assert calls >= 6
    assert calls % 6 == 0  # one, or one for each group of parameters


def test_zero0_in_bf16_trains_like_the_other_stages_in_bf16(one_rank):
    run, reference = one_rank["zero0_in_bf16"], one_rank["bf16"]
    assert run.code == 0
    assert run.losses == pytest.approx(reference.losses, abs=2e-3)


@pytest.mark.parametrize("name", ON_TWO_RANKS)
def test_two_ranks_train_to_the_losses_of_one_that_accumulates(two_ranks, accumulated, name):
    run = two_ranks[name]
    assert "8 sequences a step = 4 × 2 accumulated × 1 rank(s)" in accumulated.out
    assert "8 sequences a step = 4 × 1 accumulated × 2 rank(s)" in run.out
    assert run.losses == pytest.approx(accumulated.losses, abs=1e-5)
    assert run.eval_losses == pytest.approx(accumulated.eval_losses, abs=1e-5)


def test_debugging_prints_one_profile_and_the_times_of_each_step(one_rank):
    out = one_rank["debug"].out
    assert out.count("DeepSpeed Flops Profiler") == 1
    assert len(re.findall(r"time \(ms\) \| fwd: [\d.]+ \| bwd: ", out)) == 6
    assert len(out.splitlines()) < 120
    assert "time (ms)" not in one_rank["zero2"].out


def test_csv_files_hold_the_same_numbers_as_the_metrics(one_rank, made_here):
    run, folder = one_rank["csv"], made_here["csv"].parent / "events"
    for name, values in (("train_loss", run.losses), ("eval_loss", run.eval_losses)):
        header, *rows = csv.reader((folder / f"{name}.csv").open())
        assert header == ["step", "loss"]
        assert [float(value) for _, value in rows] == values
    assert [int(step) for step, _ in rows] == [0, 6]


def test_nothing_is_compiled_with_offloading_either(one_rank, two_ranks):
    for runs in (one_rank, two_ranks):
        assert runs["zero3_offload"].code == 0
        assert not (runs["zero3_offload"].folder.parent / "compiled").exists()


def test_the_compiler_is_not_even_loaded(one_rank):
    for name, run in one_rank.items():
        assert "\ncompiler loaded: False\n" in run.out, name


def test_every_shipped_configuration_says_what_it_is_for():
    for path in SHIPPED.values():
        assert len(json.loads(path.read_text())["_purpose"]) > 30, path
