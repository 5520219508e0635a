"""All that DeepSpeed's JSON may say here trains: each optimizer at each ZeRO stage, each key away from its default."""

import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import pytest

from mpnet_ds.config.deepspeed_keys import SERVED
from mpnet_ds.config.deepspeed_optimizers import OPTIMIZERS
from tests.runs import Run, pretrain_all, recipe_with

ON_HOST = {"device": "cpu"}
FEW = [("Adam", 1), ("RAdam", 2), ("NAdam", 3), ("SGD", 0)]  # AdamW and Muon: test_configurations.py, test_muon.py
ALL = [(name, stage) for name, stage in product(OPTIMIZERS, range(4)) if name != "Muon" or stage == 0]


def at(stage: int, zero: dict | None = None, **sections) -> dict:
    """A configuration at a ZeRO stage."""
    return {"zero_optimization": {"stage": stage} | (zero or {})} | sections


KEYS = {  # of zero_optimization: a value that is not the default, and the stages that read it
    "contiguous_gradients": (False, (1, 2, 3)),
    "reduce_scatter": (False, (1, 2, 3)),
    "reduce_bucket_size": (1, (1, 2, 3)),
    "use_multi_rank_bucket_allreduce": (False, (1, 2)),
    "allgather_bucket_size": (0, (1, 2)),
    "round_robin_gradients": (True, (1, 2)),
    "parameter_alignment": (True, (1, 2)),
    "overlap_comm": (True, (1, 2)),  # the default at 3
    "cpu_offload": (True, (1, 2, 3)),
    "cpu_offload_param": (True, (3,)),
    "sub_group_size": (1000, (3,)),
    "stage3_prefetch_bucket_size": (0, (3,)),
    "stage3_param_persistence_threshold": (0, (3,)),
    "stage3_model_persistence_threshold": (10, (3,)),
    "stage3_max_live_parameters": (0, (3,)),
    "stage3_max_reuse_distance": (0, (3,)),
    "stage3_use_all_reduce_for_fetch_params": (True, (3,)),
    "stage3_allgather_sequential": (True, (3,)),
    "log_trace_cache_warnings": (True, (3,)),
    "enable_sanity_checks": (True, (3,)),
}
CPU_PARAMETERS = {"offload_param": ON_HOST, "offload_optimizer": ON_HOST}
OTHERS = {
    "offloaded_sgd": at(2, optimizer={"type": "SGD"}, zero={"offload_optimizer": ON_HOST}),
    "offloaded_nadam": at(3, optimizer={"type": "NAdam"}, zero=CPU_PARAMETERS),
    "not_fused": at(1, optimizer={"type": "AdamW", "params": {"fused": False}}),
    "profiles": at(3, flops_profiler={"enabled": True, "profile_step": 2}, wall_clock_breakdown=True),
    **{
        f"sent_in_{kind}-{stage}": at(stage, communication_data_type=kind) for kind in ("bf16", "fp16") for stage in range(4)
    },
    **{f"bf16-{stage}": at(stage, bf16={"enabled": True}) for stage in range(4)},
    **{
        f"bf16_added_in_fp32-{stage}": at(stage, bf16={"enabled": True}, data_types={"grad_accum_dtype": "fp32"})
        for stage in (2, 3)
    },
}
GROUPS = {
    "optimizers": {f"{name}-{stage}": at(stage, optimizer={"type": name}) for name, stage in ALL},
    "keys": {f"{key}-{stage}": at(stage, zero={key: value}) for key, (value, stages) in KEYS.items() for stage in stages},
    "others": OTHERS,
}
CONFIGS = {name: config for group in GROUPS.values() for name, config in group.items()}


def train_all(folder: Path, data: Path, names: Iterable[str], ranks: int, steps: int) -> dict[str, Run]:
    """So many steps with each of ``CONFIGS``, in the same processes; a run that is there already resumes."""
    optimization = {"warmup_steps": 1, "max_steps": steps, "micro_batch_size": 4}
    recipe = recipe_with(folder, optimization=optimization, run={"eval_interval": 9, "save_interval": 2})
    runs = {}
    for name in names:
        (folder / f"{name}.json").write_text(json.dumps(CONFIGS[name]))
        runs[folder / name] = ["--deepspeed_config", folder / f"{name}.json", "--recipe", recipe, "--data", data]
    return {output.name: run for output, run in pretrain_all(folder, runs, ranks).items()}


@pytest.fixture(scope="module")
def few(dataset_folder, tmp_path_factory) -> dict[str, Run]:
    return train_all(tmp_path_factory.mktemp("few"), dataset_folder, [f"{name}-{stage}" for name, stage in FEW], 1, 2)


@pytest.mark.parametrize("name", [f"{name}-{stage}" for name, stage in FEW])
def test_each_optimizer_that_is_served_trains(few, name):
    run = few[name]
    assert run.code == 0
    assert len(run.losses) == 2
    assert all(line["grad_norm"] > 0 for line in run.metrics if "loss" in line)


def test_every_key_of_zero_is_tried_away_from_its_default():
    assert set(KEYS) == set(SERVED["zero_optimization"]) - {"stage"}


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("group", GROUPS)
def test_all_that_is_served_trains_and_resumes_to_the_losses_of_zero_0(dataset_folder, tmp_path, group, ranks):
    names = {**GROUPS[group], **dict.fromkeys(["AdamW-0", "SGD-0", "NAdam-0"])}
    train_all(tmp_path, dataset_folder, names, ranks, 2)
    runs = train_all(tmp_path, dataset_folder, names, ranks, 4)
    for name, run in runs.items():
        reference = runs[f"{CONFIGS[name].get('optimizer', {'type': 'AdamW'})['type']}-0"]
        assert len(run.losses) == 4, name
        assert run.losses == pytest.approx(reference.losses, abs=2e-2 if "bf16" in name or "sent" in name else 1e-4), name
