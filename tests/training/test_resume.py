"""Runs that were interrupted end like runs that were not."""

import json
import shutil
from pathlib import Path

import pytest

from tests.runs import RECIPE, ROOT, Run, pretrain, pretrain_all, recipe_with
from tests.training.faulty_runs import FAULTY

STAGES = ["zero0", "zero1", "zero2", "zero3"]
CONFIGS = [*STAGES, "muon"]
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def arguments(stage: str, recipe: Path, data: Path, *more) -> list:
    config = ROOT / "ds_configs" / f"{stage}.json"
    return ["--deepspeed_config", config, "--recipe", recipe, "--data", data, *more]


@pytest.mark.parametrize(
    ("ranks", "in_bf16"),
    [(2, ["zero2", "zero3"]), *(pytest.param(ranks, CONFIGS, marks=pytest.mark.long) for ranks in (1, 2))],
)
def test_losses_after_a_resume_are_those_of_the_run_that_never_stopped(dataset_folder, tmp_path, ranks, in_bf16):
    """Bit for bit: all ZeRO stages and Muon, fp32 and bf16, with dropout."""
    runs = {}
    for precision, configs in (("fp32", CONFIGS), ("bf16", in_bf16)):
        (tmp_path / precision).mkdir()
        recipe = recipe_with(tmp_path / precision, model=DROPOUT, optimization={"precision": precision})
        for stage in configs:
            runs[tmp_path / precision / stage] = arguments(stage, recipe, dataset_folder, "--micro_batch_size", 4)
    whole = pretrain_all(tmp_path, runs, ranks)
    before = {}
    for output, run in whole.items():
        assert run.code == 0, run.out
        before[output] = run.repeatable
        (run.newest_checkpoint / "manifest.json").unlink()  # what a kill in the middle of a save leaves
        shutil.rmtree(output / "tokenizer")  # and one right after run.json
        with open(output / "metrics.jsonl", "a") as file:
            file.write('{"step": 9, "lo')  # and one in the middle of a line
    again = pretrain_all(tmp_path, runs, ranks)
    for output, run in again.items():
        assert run.code == 0, run.out
        assert f"step-00000006 at step 6\nOutput {output}" in run.out
        assert (run.newest_checkpoint / "manifest.json").exists()
        assert run.repeatable == before[output], output
    first, *others = (again[tmp_path / "fp32" / stage].losses for stage in STAGES)
    assert all(losses == pytest.approx(first, abs=1e-5) for losses in others)
    assert before[tmp_path / "fp32" / "zero2"] != before[tmp_path / "bf16" / "zero2"]


def keep_checkpoints_up_to(output: Path, step: int) -> None:
    for checkpoint in (output / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)


def test_ranks_and_zero_stage_change_on_the_way_and_the_losses_stay(dataset_folder, tmp_path, monkeypatch):
    """ZeRO 1 → 3 → 2 → 0 with 2 → 1 → 2 → 1 ranks, two steps each, against a run that nothing happened to; with dropout."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # on a GPU attention draws by rank
    output, more, recipe = tmp_path / "run", ("--micro_batch_size", 4, "--keep", 9), recipe_with(tmp_path, model=DROPOUT)
    undisturbed, run = None, None
    legs = [("zero1", 2), ("zero3", 1), ("zero2", 2), ("zero0", 1)]
    changes = ["", "ZeRO 1 → ZeRO 3, 2 rank(s) → 1 rank(s)", "ZeRO 3 → ZeRO 2, 1 rank(s) → 2 rank(s)",
               "ZeRO 2 → ZeRO 0, 2 rank(s) → 1 rank(s)"]  # fmt: skip
    for leg, ((stage, ranks), change) in enumerate(zip(legs, changes, strict=True)):
        keep_checkpoints_up_to(output, 2 * leg)
        run = pretrain_all(tmp_path, {output: arguments(stage, recipe, dataset_folder, *more)}, ranks)[output]
        assert run.code == 0, run.out
        assert ("The checkpoint is converted: " + change in run.out) if change else ("converted" not in run.out)
        assert f"step-{2 * leg:08d} at step" in run.out or not leg
        undisturbed = undisturbed or Run(run.code, run.out, run.err, shutil.copytree(output, tmp_path / "undisturbed"))
        assert run.losses == pytest.approx(undisturbed.losses, abs=1e-5)
        assert run.eval_losses == pytest.approx(undisturbed.eval_losses, abs=1e-5)
        assert len(run.losses) == 8
    norms = [[line["grad_norm"] for line in each.metrics if "grad_norm" in line] for each in (run, undisturbed)]
    assert norms[0] == pytest.approx(norms[1], abs=1e-5)


def test_another_layout_of_the_same_stage_is_converted_too(trained, dataset_folder, tmp_path):
    output = shutil.copytree(trained("zero2", 2).folder, tmp_path / "run")
    keep_checkpoints_up_to(output, 6)
    config = json.loads((ROOT / "ds_configs" / "zero2.json").read_text())
    config["zero_optimization"]["round_robin_gradients"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    flags = ["--recipe", RECIPE, "--data", dataset_folder, "--micro_batch_size", 4]
    run = pretrain(output, *flags, config=str(tmp_path / "config.json"), ranks=2)
    assert run.code == 0, run.err
    assert "converted: round_robin_gradients unset → round_robin_gradients True" in run.out
    assert run.losses == pytest.approx(trained("zero2", 2).losses, abs=1e-5)


def test_a_run_that_began_from_a_checkpoint_goes_on_with_the_same_command(trained, dataset_folder, tmp_path):
    source = trained().folder / "checkpoints" / "step-00000006"
    flags = ["--recipe", RECIPE, "--data", dataset_folder, "--resume", source]
    stopped = pretrain(tmp_path / "run", *flags, script=[FAULTY, "stop@7"])
    assert "at step 7 of 8; everything is saved" in stopped.out, stopped.err
    again = pretrain(tmp_path / "run", *flags)
    assert again.code == 0, again.err
    assert "at step 7" in again.out
    assert again.losses == trained().losses[6:]


@pytest.mark.parametrize("step", [6, 8])
def test_what_another_run_saved_while_this_one_started_is_continued(trained, dataset_folder, tmp_path, step):
    shutil.copytree(trained().folder, tmp_path / "other")
    run = pretrain(tmp_path / "run", "--recipe", RECIPE, "--data", dataset_folder, script=[FAULTY, f"other_saves@{step}"])
    assert run.code == 0, run.err
    assert ("at step 6" if step == 6 else "is already trained to step 8") in run.out
    assert run.losses == trained().losses


def test_a_checkpoint_in_bf16_goes_on_in_fp32(trained, dataset_folder, tmp_path):
    source = trained("bf16").folder / "checkpoints" / "step-00000006"
    run = pretrain(tmp_path / "run", "--recipe", RECIPE, "--data", dataset_folder, "--resume", source, config="fp32")
    assert run.code == 0, run.err
    assert "The checkpoint is converted: bf16 → fp32" in run.out
    assert [line["step"] for line in run.metrics if "loss" in line] == [7, 8]
    assert run.losses == pytest.approx(trained("bf16").losses[6:], abs=0.02)


def test_a_longer_run_with_other_optimizer_settings_uses_them(trained, dataset_folder, tmp_path):
    output = shutil.copytree(trained().folder, tmp_path / "run")
    recipe = recipe_with(tmp_path, optimization={"max_steps": 10, "weight_decay": 0.5, "betas": [0.5, 0.6]})
    (tmp_path / "plain").mkdir()
    plain = recipe_with(tmp_path / "plain", optimization={"max_steps": 10})
    lines = (output / "metrics.jsonl").read_text()
    (output / "metrics.jsonl").write_text(
        lines + '{"step": 9, "consumed_samples": 72, "loss": 1.0}\n'
    )  # it was killed later
    changed = pretrain(output, "--recipe", recipe, "--data", dataset_folder)
    other = shutil.copytree(trained().folder, tmp_path / "other")
    same = pretrain(other, "--recipe", plain, "--data", dataset_folder)
    assert changed.code == same.code == 0, changed.err + same.err
    assert changed.losses[8] == same.losses[8]  # step 9 begins with the same weights
    assert abs(changed.losses[9] - same.losses[9]) > 1e-4
    changes = {"max_steps": [8, 10], "weight_decay": [0.01, 0.5], "betas": [[0.9, 0.98], [0.5, 0.6]]}
    changes = {f"optimization.{key}": values for key, values in changes.items()}
    for key, (before, now) in changes.items():
        assert f"\n{key} {before} → {now} from step 8 on\n" in changed.out
    rates = [line["learning_rate"] for line in changed.metrics if "loss" in line][7:9]
    assert "The learning rate was {:.3g} at step 8 and is {:.3g} at step 9".format(*rates) in changed.out
    assert changed.metrics[: len(lines.splitlines())] == [json.loads(line) for line in lines.splitlines()]
    (event,) = [line for line in changed.metrics if line.get("event") == "resumed"]
    assert (event["step"], event["checkpoint"], event["withdrawn"]) == (8, "step-00000008", [9, 9])
    assert event["changes"] == changes
    starts = json.loads((output / "run.json").read_text())["starts"]
    assert [(start["from_step"], start["to_step"], start["changes"]) for start in starts] == [(0, 8, {}), (8, 10, changes)]
    assert starts[0] == json.loads((trained().folder / "run.json").read_text())["starts"][0]
