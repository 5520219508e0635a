"""Runs that differ in what computes attention: the same losses, the same checkpoints.

On a CPU only these can train; the others' gradients are tested in tests/models.
"""

import json

import pytest

from mpnet_ds.checkpoint import load_consolidated
from tests.runs import pretrain_all

ATTENTION = ["eager", "cpu", "sdpa"]
TOLERANCE = 2e-3
"""Nats, between means over some steps, in fp32 and without dropout (with it each back-end draws other masks): rounding
differs by 1e-7 in a step, and 200 steps make more of it."""


@pytest.mark.parametrize(("steps", "interval", "fall"), [(30, 5, 0.1), pytest.param(200, 20, 0.3, marks=pytest.mark.long)])
def test_over_many_steps_of_the_demos_recipe_all_losses_are_those_of_eager(dataset_folder, tmp_path, steps, interval, fall):
    config = ["--deepspeed_config", "ds_configs/zero2.json", "--recipe", "mpnet-tiny", "--data", dataset_folder]
    config += ["--max_steps", steps, "--log_interval", interval, "--eval_interval", steps // 2]
    done = pretrain_all(tmp_path, {tmp_path / name: [*config, "--attention", name] for name in ATTENTION}, ranks=1)
    runs = {path.name: run for path, run in done.items()}
    assert all(run.code == 0 for run in runs.values()), [run.out + run.err for run in runs.values()]
    eager = runs["eager"]
    assert len(eager.losses) == steps // interval
    assert eager.losses[-1] < eager.losses[0] - fall
    for name, run in runs.items():
        assert f"attention by {name}" in run.out
        assert run.losses == pytest.approx(eager.losses, abs=TOLERANCE), name
        assert run.eval_losses == pytest.approx(eager.eval_losses, abs=TOLERANCE), name
        assert json.loads((run.folder / "run.json").read_text())["execution"]["attention"] == name
        assert list(load_consolidated(run.folder)) == list(load_consolidated(eager.folder))
    assert runs["cpu"].losses != eager.losses  # they are not one and the same
