"""What DeepSpeed does besides the work of a step: launches, host reads; and steps whose gradient is not finite."""

import json
import sys

import pytest

from tests.runs import RECIPE, ROOT, Run, command, pretrain_all
from tests.training.faulty_runs import events

STAGES = ("zero0", "zero1", "zero2", "zero3")
FAULTS = ("nan_on_one_rank", "infinite")


@pytest.mark.parametrize(("precision", "names"), [("bf16", [*STAGES, "muon"]), ("fp32", ["zero0"])])
def test_a_step_launches_little_and_reads_one_number(tmp_path, precision, names):
    configs = ["--deepspeed_config", *names, "--precision", precision]
    program = [sys.executable, "benchmarks/count_step.py", "--attention", "--capability", "--json", tmp_path / "counts.json"]
    done = command(*program, *configs)
    assert done.returncode == 0, done.stderr
    steps = json.loads((tmp_path / "counts.json").read_text())["optimizer_steps"]
    assert [step["deepspeed_config"] for step in steps] == names
    for step in steps:
        of_muon = sum(step["operators"].get(name, 0) for name in ("mm", "addmm"))
        beside = of_muon // 15 * 8  # Muon: for each matrix 5 iterations of 3 products, and 8 operators more
        assert step["tensors"] == 202
        assert step["host_reads"] == 1, step
        assert 5 < step["launches"] - of_muon - beside <= 100, step


@pytest.fixture(scope="module")
def faulty(dataset_folder, tmp_path_factory) -> dict[str, Run]:
    """Four steps in bf16 at every ZeRO stage, without a fault, and with a gradient that is not finite in step 2."""
    folder = tmp_path_factory.mktemp("faulty")
    runs = {}
    for stage in STAGES:
        content = json.loads((ROOT / "ds_configs" / f"{stage}.json").read_text()) | {"bf16": {"enabled": True}}
        path = folder / f"{stage}.json"
        path.write_text(json.dumps(content))
        arguments = ["--deepspeed_config", path, "--recipe", RECIPE, "--data", dataset_folder, "--max_steps", 4]
        runs[folder / stage] = arguments
        runs |= {folder / f"{stage}-{fault}": [*arguments, "--fault", f"{fault}@2"] for fault in FAULTS}
    return {output.name: run for output, run in pretrain_all(folder, runs, 1).items()}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_without_a_finite_gradient_is_left_out_in_bf16(faulty, stage, fault):
    whole, run = faulty[stage], faulty[f"{stage}-{fault}"]
    assert run.code == 0, run.err
    (event,) = events(run, "skipped")
    assert event["step"] == 2
    assert run.losses[0] == whole.losses[0]
    norms = {line["step"]: line["grad_norm"] for line in run.metrics if line.get("loss") is not None and "event" not in line}
    assert sorted(norms) == [1, 3, 4]
    assert all(0 < norm < 100 for norm in norms.values())
    assert run.losses[1] != pytest.approx(whole.losses[2], abs=1e-4)  # step 3 begins with the weights of step 1


@pytest.mark.parametrize("stage", STAGES[1:])
def test_norms_in_bf16_are_the_same_at_every_stage(faulty, stage):
    first, other = (
        next(line["grad_norm"] for line in faulty[name].metrics if "grad_norm" in line) for name in ("zero0", stage)
    )
    assert other == pytest.approx(first, rel=1e-6)
