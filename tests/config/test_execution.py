"""How a run is computed may change on the way; what it trains and its checkpoints do not."""

import json
import shutil

import pytest
import torch

from mpnet_ds.attention_backends import BACKENDS
from mpnet_ds.config.execution import Execution
from mpnet_ds.training.profile import SPANS
from tests.runs import RECIPE, pretrain


def test_a_run_goes_on_with_another_attention_and_says_which(trained, dataset_folder, tmp_path):
    output = shutil.copytree(trained().folder, tmp_path / "run")
    shutil.rmtree(output / "checkpoints" / "step-00000008")
    flags = ["--recipe", RECIPE, "--data", dataset_folder]
    run = pretrain(output, *flags, "--attention", "sdpa")
    assert run.code == 0, run.err
    assert "at step 6" in run.out
    assert ", attention by sdpa\n" in run.out
    assert run.losses == pytest.approx(trained().losses, abs=1e-5)
    record = json.loads((output / "run.json").read_text())
    assert record["execution"]["attention"] == "sdpa"
    before = json.loads((trained().folder / "run.json").read_text())
    assert before["arguments"]["attention"] == "auto"
    assert before["execution"]["attention"] in set(BACKENDS) - {"auto"}
    assert record["identity"] == before["identity"]


def test_one_step_is_profiled_by_each_rank(dataset_folder, tmp_path):
    flags = ["--recipe", RECIPE, "--data", dataset_folder, "--micro_batch_size", 2, "--profile", 3, "--max_steps", 4]
    run = pretrain(tmp_path / "run", *flags, ranks=2)
    assert run.code == 0, run.err
    assert "profiler_st" not in run.err  # what PyTorch says of its profiler
    traces = sorted((tmp_path / "run" / "profile").iterdir())
    assert [path.name for path in traces] == [f"step-00000003-rank-0000{rank}.json" for rank in (0, 1)]
    assert run.out.count("Step 3 is profiled in ") == 1
    table = run.out.split(str(traces[0]))[1].split("operator")[1].splitlines()[1:11]
    times = [float(line.split()[-2]) for line in table]
    assert times == sorted(times, reverse=True)
    assert any("aten::" in line for line in table)
    assert not any(line.split()[0] in SPANS for line in table)
    for path in traces:
        events = json.loads(path.read_text())["traceEvents"]
        in_order = sorted(
            (event for event in events if event.get("name") in SPANS and event["ph"] == "X"), key=lambda event: event["ts"]
        )
        spans = [event["name"] for event in in_order]
        once, for_each = dict.fromkeys(("agreement", "data"), 1), dict.fromkeys(("forward", "backward", "optimizer"), 2)
        assert {name: spans.count(name) for name in SPANS} == once | for_each
        # The next step is drawn, and agreed on, before the last backward pass: that hides it.
        assert spans[-4:] == ["forward", "data", "backward", "optimizer"]
        named = {name: [event for event in events if name in event.get("name", "")] for name in ("optimizer", "AdamW.step")}
        _, update = [event for event in named["optimizer"] if event["ph"] == "X"]
        assert named["AdamW.step"]
        for event in named["AdamW.step"]:
            assert update["ts"] <= event["ts"] <= event["ts"] + event["dur"] <= update["ts"] + update["dur"]


@pytest.mark.parametrize("profile", [0, 9])
def test_a_step_that_does_not_come_cannot_be_profiled(profile):
    (finding,) = Execution(profile=profile).check_steps(max_steps=8)
    assert finding.is_fatal
    assert f"--profile is {profile}; this run's steps are 1 to 8 (max_steps)" in finding.text


def test_a_step_that_is_done_is_not_profiled(trained, dataset_folder, tmp_path):
    output = shutil.copytree(trained().folder, tmp_path / "run")
    done = pretrain(
        output, "--recipe", RECIPE, "--data", dataset_folder, "--profile", 8, "--set", "optimization.max_steps=9"
    )
    assert done.code == 0, done.err
    assert "--profile 8: that step is done, the run resumes after step 8" in done.out
    assert not (output / "profile").exists()
    assert "going to be profiled" not in done.out


@pytest.mark.parametrize("attention", ["flex", "triton"])
def test_attention_that_cannot_be_trained_here_is_refused_before_anything_is_written(attention, dataset_folder, tmp_path):
    run = pretrain(tmp_path / "run", "--recipe", RECIPE, "--data", dataset_folder, "--attention", attention)
    if torch.cuda.is_available():
        assert run.code == 0, run.err
        return
    assert run.code == 2
    assert f"error: attention '{attention}'" in run.err
    assert "the model is on 'cpu'. Use attention 'auto' or 'eager'" in run.err
    assert not (tmp_path / "run").exists()
