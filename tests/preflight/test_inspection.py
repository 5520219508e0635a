"""What is found before a model is built, and how the findings of many ranks become one message."""

import json
import os
import shutil
import socket
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from deepspeed.launcher.runner import DLTS_HOSTFILE

from mpnet_ds.config.batch_sizes import BatchSizes
from mpnet_ds.config.deepspeed_config import EngineConfig, name_deprecated
from mpnet_ds.config.recipe import load_recipe
from mpnet_ds.data import BuildOptions, build_dataset
from mpnet_ds.errors import UserError
from mpnet_ds.findings import Finding
from mpnet_ds.machine import GIB, Capacity
from mpnet_ds.models.module import ModulePlan
from mpnet_ds.preflight import checks
from mpnet_ds.preflight.checks import (
    check_memory,
    check_monitors,
    check_slots,
    check_values,
    checkpoints_at_once,
    find_memory_faults,
    find_missing_hostfile,
    find_other_host,
    find_room,
    options_of_launcher,
)
from mpnet_ds.preflight.inputs import open_data
from mpnet_ds.preflight.inspection import (
    Check,
    Inspection,
    differ,
    disagreements,
    facts_of_files,
    flatten,
    raise_if_fatal,
)
from mpnet_ds.preflight.memory_estimate import Workload, estimate
from mpnet_ds.preflight.plan import RunPlan, sizes_of
from mpnet_ds.ranks import network, process_group
from mpnet_ds.ranks.launchers import Placement
from tests.runs import RECIPE, ROOT, command, free_port, pretrain
from tests.training.faulty_runs import train

BASE = load_recipe("mpnet-base")


def test_one_finding_is_one_line_and_several_are_a_numbered_list():
    with pytest.raises(UserError) as caught:
        raise_if_fatal([Inspection(findings=[Finding("a is wrong.")])])
    assert str(caught.value) == "a is wrong."
    with pytest.raises(UserError) as caught:
        raise_if_fatal([Inspection(findings=[Finding("a is wrong."), Finding("a hint", is_fatal=False), Finding("b too.")])])
    assert str(caught.value) == "2 problems to fix:\n  1. a is wrong.\n  2. b too."


def test_what_all_ranks_found_is_said_once_and_what_one_found_names_it():
    everywhere, there = Finding("fp16 is not supported."), Finding("no dataset folder data.")
    ranks = [Inspection(rank, f"node-{rank}", [everywhere]) for rank in range(3)]
    ranks[2].add([there, there])
    with pytest.raises(UserError) as caught:
        raise_if_fatal(ranks)
    assert caught.value.findings == ("fp16 is not supported.", "rank 2 (node-2): no dataset folder data.")


def test_warnings_do_not_stop_a_run():
    assert raise_if_fatal([Inspection(findings=[Finding("beware", is_fatal=False)])] * 2) == ["beware"]
    assert raise_if_fatal([Inspection(), Inspection(1)]) == []


def test_ranks_that_differ_are_named_with_their_hosts_and_what_most_have():
    ranks = [Inspection(rank, f"node-{rank // 2}", facts={"torch": "2.13.0"}) for rank in range(4)]
    ranks[3].facts = {"torch": "2.11.0"}
    with pytest.raises(UserError) as caught:
        raise_if_fatal(ranks)
    usual, odd = '"2.13.0" on ranks 0, 1 (node-0), rank 2 (node-1)', '"2.11.0" on rank 3 (node-1)'
    assert str(caught.value) == f"torch is {usual}, but {odd}: all ranks must have the same."


def test_of_many_differences_the_first_are_named():
    ranks = [Inspection(rank, facts={f"fact {i}": rank for i in range(20)}) for rank in range(2)]
    with pytest.raises(UserError) as caught:
        raise_if_fatal(ranks)
    assert [text.split(" is ")[0] for text in caught.value.findings[:8]] == [f"fact {i}" for i in range(8)]
    assert caught.value.findings[8:] == ("and 12 more differences between the ranks.",)


def test_the_files_are_named_in_which_two_copies_of_a_dataset_differ(dataset_folder, tmp_path):
    copy = shutil.copytree(dataset_folder, tmp_path / "copy")
    manifest = json.loads((copy / "dataset.json").read_text())
    manifest["shards"][0]["files"]["idx"]["sha256"] = "0" * 64
    (copy / "dataset.json").write_text(json.dumps(manifest))
    recipe = load_recipe(RECIPE)
    ranks = []
    for rank, folder in enumerate((dataset_folder, copy)):
        data, _ = open_data([str(folder)], None, recipe)
        facts = facts_of_files([data])
        renamed = {name.replace(str(folder), "data"): value for name, value in facts.items()}  # each host has its own
        ranks.append(Inspection(rank, f"node-{rank}", facts=renamed | {"checksum": data.checksum}))
    assert differ(ranks, "checksum")
    assert not differ(ranks, "the number of files of data")
    (file,) = (text for text in (finding.text for finding in disagreements(ranks)) if "sha256" in text)
    assert file.startswith("the sha256 of data/shard-00000.idx is ")
    assert '"0000' in file
    assert "rank 1 (node-1)" in file


@pytest.mark.parametrize("others", [0, 8])
def test_more_ranks_than_a_host_has_cores_are_warned_of_or_refused(monkeypatch, others):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    placements = [Placement(local_world_size=size, world_size=size + others) for size in (2, 3)]
    monkeypatch.setattr(process_group, "place", lambda: placements.pop(0))
    assert check_slots(RunPlan(), None, None) == []
    (finding,) = check_slots(RunPlan(), None, None)
    assert "has 2 CPU cores, and no GPU, and is to run 3 ranks" in finding.text
    assert finding.is_fatal == bool(others)


def test_settings_are_compared_value_by_value():
    facts = [flatten("recipe", {"run": {"seed": seed}, "data": {"seq_length": 64}}) for seed in (0, 1)]
    assert facts[0] == {"recipe.run.seed": 0, "recipe.data.seq_length": 64}
    with pytest.raises(UserError, match=r"^recipe\.run\.seed is 0 on rank 0 \(a\), but 1 on rank 1 \(a\)"):
        raise_if_fatal([Inspection(rank, "a", facts=own) for rank, own in enumerate(facts)])


def test_a_fact_that_a_rank_could_not_learn_is_no_difference():
    assert raise_if_fatal([Inspection(facts={"the dataset's checksum": "ab"}), Inspection(1)]) == []


def test_attempts_collect_what_is_wrong():
    def fail():
        raise UserError("one", "two")

    def forbid():
        raise PermissionError(13, "Permission denied", "secret.json")

    inspection = Inspection()
    assert inspection.attempt(fail) is None
    assert inspection.attempt(forbid) is None
    assert inspection.attempt(lambda: 7) == 7
    assert [finding.text for finding in inspection.findings] == ["one", "two", "secret.json: permission denied."]
    assert inspection.is_fatal


@pytest.mark.parametrize(
    ("command_line", "expected"),
    [
        (["python", "/opt/bin/deepspeed", "--hostfile", "hosts", "train.py", "--hostfile", "mine"], "hosts"),
        (["python", "/opt/bin/deepspeed", "--num_gpus", "2", "-H", "hosts", "train.py"], "hosts"),
        (["python", "-m", "deepspeed.launcher.runner", "--hostfile=hosts", "train.py"], "hosts"),
        (["python", "/opt/bin/deepspeed", "train.py", "--hostfile", "mine"], None),
        (["bash", "-c", "deepspeed --hostfile hosts train.py"], None),
        ([], None),
    ],
)
def test_a_named_hostfile_is_read_off_the_launchers_command(command_line, expected):
    options = options_of_launcher(command_line)
    assert (options and options.hostfile) == (expected or (options and DLTS_HOSTFILE))


def test_another_host_as_the_only_one_and_a_missing_hostfile_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(network, "resolve", {"here": "127.0.1.1", "there": "192.0.2.7"}.__getitem__)
    assert find_other_host("localhost") == find_other_host(socket.gethostname()) == find_other_host("here") == []
    (finding,) = find_other_host("there")
    assert "not on there: add --force_multi before the script" in finding.text
    assert finding.is_fatal
    monkeypatch.undo()
    assert [one.is_fatal for one in find_other_host("no-such-host.invalid")] == [False], "a name of ssh's alone"
    (tmp_path / "hosts").touch()
    assert find_missing_hostfile("hosts", tmp_path) == find_missing_hostfile(DLTS_HOSTFILE, tmp_path) == []
    assert "no hostfile other: deepspeed would train on this machine" in find_missing_hostfile("other", tmp_path)[0].text


@pytest.mark.long  # tests/cluster does it with a host
def test_a_hostfile_that_is_named_and_missing_stops_the_run(dataset_folder, tmp_path):
    launcher = ["deepspeed", "--hostfile", "nowhere.txt", "--master_port", free_port()]
    script = [ROOT / "launch" / "pretrain.py", "--deepspeed_config", ROOT / "ds_configs" / "zero2.json"]
    arguments = ["--recipe", RECIPE, "--data", dataset_folder, "--output_dir", tmp_path / "run"]
    done = command(*launcher, *script, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "error: no hostfile nowhere.txt" in done.stderr
    assert not (tmp_path / "run").exists()


def test_everything_that_is_wrong_is_said_at_once(tmp_path):
    config = tmp_path / "config.json"
    content = {"zero_optimization": {"stage": 2, "offload_param": {"devicee": "cpu"}}, "gradient_clipp1ng": 1}
    config.write_text(json.dumps(content))
    recipe = json.loads(Path(RECIPE).read_text())
    recipe["optimization"] |= {"learning_rate": -1}
    recipe["model"] |= {"num_attention_heads": 5}
    recipe["run"] |= {"keeep": 3}
    (tmp_path / "mine.json").write_text(json.dumps(recipe))
    arguments = ["--recipe", tmp_path / "mine.json", "--data", tmp_path / "nowhere", "data:x", "--micro_batch_size", 3]
    arguments += ["--eval_data", tmp_path / "away", "--set", "run.seed=-1", "run.eval_samples", "--max_steps", "many"]
    arguments += ["--logging_steps", 3, "--attention", "sdpaa", "--init_from", "nowhere-base", "--resume", "gone"]
    run = pretrain(tmp_path / "run", *arguments, config=str(config))
    assert run.code == 2
    parts = [
        "zero_optimization.offload_param.devicee",
        "gradient_clipp1ng",
        "is not a multiple of micro_batch_size 3",
        "no dataset folder",
        "argument --max_steps: invalid int value: 'many'",
        "unrecognized arguments: --logging_steps 3. Use run.log_interval",
        "--set run.eval_samples: write KEY=VALUE",
        "optimization.learning_rate is -1",
        "is not a multiple of num_attention_heads 5",
        "unknown key 'run.keeep'",
        "--set: run.seed is -1",
        "unknown attention 'sdpaa'",
        "'x' is not a weight",
        "evaluation data: no dataset folder",
        "nowhere-base is not a folder here",
        "--resume gone: there is no such folder",
    ]
    assert f"error: {len(parts)} problems to fix:\n  1. " in run.err
    for part in parts:
        assert part in run.err


def test_another_version_on_one_rank_stops_all_with_one_voice(dataset_folder, tmp_path):
    """A stand-in for a second machine: rank 1 sees another version of numpy."""
    run = train(tmp_path / "run", dataset_folder, fault="another_numpy", ranks=2)
    assert run.code == 2, run.err
    assert run.err.count("error: ") == 1, run.err
    assert "error: numpy is " in run.err
    assert '"99.0.0" on rank 1' in run.err
    assert not (tmp_path / "run").exists()


def test_evaluation_data_of_less_than_a_row_is_named_as_such(dataset_folder, tokenizer_folder, tmp_path):
    (tmp_path / "short.txt").write_text("a few words")
    options = BuildOptions()
    build_dataset([str(tmp_path / "short.txt")], tokenizer_folder, tmp_path / "short", options, show_progress=False)
    with pytest.raises(UserError, match=r"^evaluation data: .* less than one sequence of 32"):
        open_data([str(dataset_folder)], [str(tmp_path / "short")], load_recipe(str(RECIPE)))


def test_values_that_make_no_sense_together():
    def findings(**changes):
        recipe = replace(BASE, optimization=replace(BASE.optimization, **changes))
        return check_values(RunPlan(recipe), None, None)

    assert findings() == []
    assert [finding.is_fatal for finding in findings(warmup_steps=10, max_steps=10)] == [False]


def test_checkpoints_must_fit_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000 if path == tmp_path else 0))
    output = tmp_path / "runs" / "new"
    assert find_room(output, checkpoint=250, wanted=4) == []
    assert [finding.is_fatal for finding in find_room(output, checkpoint=300, wanted=4)] == [False]
    assert [finding.is_fatal for finding in find_room(output, checkpoint=600, wanted=4)] == [True]
    assert "4 checkpoints of 0.6 KiB" in find_room(output, checkpoint=600, wanted=4)[0].text
    assert find_room(output, checkpoint=900, wanted=1) == []


def monitor_findings(**monitors) -> list[str]:
    engine = EngineConfig({}, monitors, BatchSizes(1, 1, 1), "fp32")
    return [finding.text for finding in check_monitors(RunPlan(engine=engine), None, None)]


def test_a_monitor_that_is_not_installed_is_named_with_the_command():
    assert find_spec("wandb") is None, "the tests' environment has only what the project needs"
    (text,) = monitor_findings(wandb={"enabled": True}, comet={"enabled": False}, csv_monitor={"enabled": True})
    assert text == "wandb is enabled, but not installed: pip install wandb, or leave the section wandb out."


def test_a_monitors_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    (text,) = monitor_findings(csv_monitor={"enabled": True, "output_path": str(tmp_path / "file" / "below")})
    assert text.startswith(f"csv_monitor.output_path: cannot write to {tmp_path}/file/below: Not a directory. Choose")
    assert monitor_findings(csv_monitor={"enabled": False, "output_path": "/proc/nowhere"}) == []
    assert len(monitor_findings(tensorboard={"output_path": "/proc/nowhere"})) == 1
    for name, why in {"x" * 300: "File name too long", "a\0b": "embedded null byte"}.items():
        (text,) = monitor_findings(csv_monitor={"enabled": True, "output_path": str(tmp_path / name)})
        assert f"{why}. Choose" in text


def test_looking_for_an_obstacle_leaves_nothing(tmp_path):
    assert monitor_findings(tensorboard={"output_path": str(tmp_path / "a" / "b")}) == []
    assert not list(tmp_path.iterdir())


def test_old_checkpoints_of_the_run_count_as_room(tmp_path, monkeypatch):
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    (tmp_path / "checkpoints" / "step-1").mkdir(parents=True)
    assert find_room(tmp_path, checkpoint=600, wanted=3) != []
    (tmp_path / "checkpoints" / "step-1" / "weights.pt").write_bytes(bytes(800))
    assert find_room(tmp_path, checkpoint=600, wanted=3) == []


def test_checkpoints_at_once_are_the_newest_the_best_and_one_in_the_making():
    assert checkpoints_at_once(BASE) == BASE.run.keep + 2
    short = replace(BASE, optimization=replace(BASE.optimization, max_steps=BASE.run.save_interval))
    assert checkpoints_at_once(short) == 1


def test_deprecated_keys_are_named_with_what_came_after_them():
    (text,) = name_deprecated({"zero_optimization": {"stage": 2, "cpu_offload": True}}, "x.json")
    assert text == "x.json: zero_optimization.cpu_offload is deprecated in DeepSpeed: use offload_optimizer instead."


ON_HOST = {"device": "cpu"}
RANKS = SimpleNamespace(world_size=1, device=torch.device("cuda"))


def memory_findings(device: int, host: int, micro_batch_size: int = 32, world_size: int = 1, **zero) -> list:
    """Of MPNet-base in bf16 on GPUs of so many bytes."""
    batch = BatchSizes(micro_batch_size, 1, micro_batch_size * world_size)
    content = {"zero_optimization": zero, "optimizer": {"type": "AdamW"}}
    engine = EngineConfig(content, {}, batch, "bf16")
    data = SimpleNamespace(tokenizer=SimpleNamespace(vocab_size=30_527))
    plan, capacity = RunPlan(BASE, engine, data=data), Capacity(device, host, is_same=False)
    ranks = SimpleNamespace(world_size=world_size, device=RANKS.device, capacity=capacity)
    return check_memory(replace(plan, sizes=sizes_of(plan, ranks.device)), ranks, None)


def test_memory_that_suffices_is_not_mentioned():
    assert memory_findings(24 * GIB, 64 * GIB) == []


def test_activations_that_do_not_fit_are_a_warning_with_the_micro_batch_that_would():
    (finding,) = memory_findings(8 * GIB, 64 * GIB)
    assert not finding.is_fatal
    assert "try --micro_batch_size 16 or activation checkpointing" in finding.text
    assert memory_findings(8 * GIB, 64 * GIB, micro_batch_size=16) == []


def test_states_that_do_not_fit_are_fatal_with_cures_that_fit_the_case():
    (finding,) = memory_findings(GIB, 64 * GIB, 1, world_size=4, stage=1)
    assert finding.is_fatal
    assert "a ZeRO stage above 1" in finding.text
    assert "offload_optimizer" in finding.text
    (alone,) = memory_findings(GIB, 64 * GIB, 1)
    assert "a ZeRO stage above" not in alone.text


def test_a_host_that_is_too_small_for_what_is_offloaded():
    (finding,) = memory_findings(24 * GIB, GIB, 1, stage=2, reduce_bucket_size=0, offload_optimizer={"device": "cpu"})
    assert finding.is_fatal
    assert finding.text.startswith("What is offloaded takes about 1.6")


def test_a_bucket_that_no_machine_has_room_for_is_named():
    sizes = ModulePlan(parameters=1000, hidden_numbers=0, flops_per_sequence=1.0, activation_bytes=1)
    work = Workload(sizes, zero_stage=2, reduce_bucket_size=2**60, on_gpu=False)
    (finding,) = find_memory_faults(work, estimate(work), Capacity(GIB, GIB, is_same=True))
    assert finding.text.startswith("zero_optimization.reduce_bucket_size asks for 4,294,967,296.0 GiB, this machine has ")
    assert find_memory_faults(replace(work, zero_stage=0), estimate(work), Capacity(GIB, GIB, is_same=True)) == []


def test_a_check_runs_once_as_soon_as_what_it_needs_is_known():
    seen = []

    def check_recipe(plan, ranks, disks):
        seen.append((plan.recipe, ranks))
        return [Finding("odd", is_fatal=False)]

    def check_all(plan, ranks, disks):
        raise UserError("wrong")

    inspection = Inspection()
    checks_to_run = [Check(check_recipe, ("recipe",)), Check(check_all, ("recipe", "ranks"))]
    inspection.run(checks_to_run, RunPlan())
    assert (seen, inspection.findings) == ([], [])
    inspection.run(checks_to_run, RunPlan(BASE))
    inspection.run(checks_to_run, RunPlan(BASE), RANKS)
    assert seen == [(BASE, None)]
    assert [finding.text for finding in inspection.findings] == ["odd", "wrong"]
