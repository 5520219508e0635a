"""Plans for machines that are not there."""

import re
from types import SimpleNamespace

import pytest

from mpnet_ds.errors import UserError
from mpnet_ds.machine import GIB
from mpnet_ds.preflight.assumed_ranks import assumed_ranks
from tests.runs import RECIPE, pretrain, recipe_with


@pytest.mark.parametrize(
    ("text", "ranks", "hosts", "gib"),
    [("2x8xH100", 16, 2, 79), ("8xa100-40GB", 8, 1, 39), ("1×2×RTX 4090", 2, 1, 23), (" 512x8xH200 NVL", 4096, 512, 139)],
)
def test_hosts_gpus_and_kind_are_read(text, ranks, hosts, gib):
    assumed = assumed_ranks(text)
    assert (assumed.world_size, len(set(assumed.hosts)), assumed.capacity.device) == (ranks, hosts, gib * GIB)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("2x8xH1000", "Did you mean 'H100'?"), ("8xcpu", "Known: A10"), ("H100", "such as 2x8xH100"), ("2x8", "such as"),
        ("0x8xH100", "such as"), ("2x0xH100", "such as"), ("-1x8xH100", "such as"), ("2x8xH100xH100", "unknown GPU"),
        ("", "such as"), ("99999999x8xH100", "such as"),
    ],
)  # fmt: skip
def test_what_names_no_machines_is_refused(text, named):
    with pytest.raises(UserError, match=re.escape(named)):
        assumed_ranks(text)


def test_a_dry_run_plans_memory_batches_and_time_of_ranks_that_are_not_there(dataset_folder, tmp_path):
    recipe = recipe_with(tmp_path, optimization={"max_steps": 10**9, "global_batch_size": 64, "micro_batch_size": 2})
    flags = ["--recipe", recipe, "--data", dataset_folder, "--dry_run"]
    config = "multi_node"  # in bf16 where the GPUs can
    plans = {gpus: pretrain(tmp_path / "run", *flags, "--assume", f"{gpus}xH100", config=config) for gpus in ("8", "2x8")}
    for plan in plans.values():
        assert plan.code == 0, plan.err
        assert "in bf16 on cuda" in plan.out
        assert "79.0 GiB on the device" in plan.out
    assert "64 sequences a step = 2 × 4 accumulated × 8 rank(s)" in plans["8"].out
    assert "64 sequences a step = 2 × 2 accumulated × 16 rank(s)" in plans["2x8"].out
    assert not (tmp_path / "run").exists()


def test_time_is_that_of_the_arithmetic():
    """8 GPUs of 989 TFLOP/s, 100 sequences of 1 TFLOP a step: 30.9 steps/s at 39 %, 9.1 at 11.5 %."""
    engine = SimpleNamespace(precision="bf16", batch=SimpleNamespace(global_batch_size=100))
    recipe, sizes = SimpleNamespace(optimization=SimpleNamespace(max_steps=1000)), SimpleNamespace(flops_per_sequence=1e12)
    plan = SimpleNamespace(engine=engine, recipe=recipe, sizes=sizes, data=SimpleNamespace(tokens_per_sequence=512))
    assert "About 32s to 1m49s, 1,579,868 to 465,859 tokens/s" in assumed_ranks("8xH100").describe_time(plan)
    engine.precision = "fp32"
    assert "unknown" in assumed_ranks("8xH100").describe_time(plan)


def test_a_plan_names_what_does_not_fit_there(dataset_folder, tmp_path):
    large = {"hidden_size": 8192, "num_attention_heads": 64, "intermediate_size": 32768, "num_hidden_layers": 48}
    flags = ["--recipe", recipe_with(tmp_path, model=large), "--data", dataset_folder, "--dry_run", "--assume", "8xT4"]
    plan = pretrain(tmp_path / "run", *flags, config="zero0")
    assert plan.code == 2
    assert "The device's memory is 14.0 GiB. Parameters, gradients and optimizer states take about" in plan.err


def test_assuming_machines_is_for_dry_runs_with_data(tmp_path):
    run = pretrain(tmp_path / "run", "--recipe", RECIPE, "--assume", "8xH100", "--global_batch_size", 8)
    assert run.code == 2
    assert "add --dry_run" in run.err
    assert "Add --data DIR" in run.err
