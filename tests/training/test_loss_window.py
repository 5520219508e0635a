"""Losses and gradients that are not finite, and losses that jump, in real processes."""

import json
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from mpnet_ds.checkpoint.store import verify
from mpnet_ds.config.recipe import load_recipe
from mpnet_ds.data import PretrainingDataset
from mpnet_ds.models.module import Scores
from mpnet_ds.objectives import objective_of
from mpnet_ds.objectives.base import Objective, Term
from mpnet_ds.objectives.mpnet import MPNet
from mpnet_ds.training.loss_window import LossWindow, totals_of
from tests.runs import RECIPE, pretrain, recipe_with
from tests.training.faulty_runs import FAULTY, events, saved_steps, train


@dataclass(frozen=True)
class TwoTerms(Objective):
    """A first term, a second one of weight 50, and a histogram."""

    name: ClassVar[str] = "two"

    @property
    def terms(self):
        return (Term("mlm", "slots"), Term("rtd", "tokens", 50.0))

    def metrics(self, counts):
        return {"mode": int(counts["histogram"].sum(0).argmax())} if counts else {}


def test_the_window_has_the_mean_over_targets_since_it_was_closed_last():
    window = LossWindow(MPNet())
    window.add(1, torch.tensor([30.0, 2.0]), [10])
    window.add(2, torch.tensor([10.0, 4.0]), [30])
    metrics, spikes = window.close()
    assert metrics == {"loss": 1.0, "accuracy": 0.15, "loss/mpnet": 1.0, "accuracy/mpnet": 0.15}
    assert spikes == []
    window.add(3, torch.tensor([8.0, 1.0]), [4])
    assert window.arrived() == []
    assert window.close()[0]["loss"] == 2.0
    assert math.isnan(window.close()[0]["loss"])


def test_the_loss_is_the_weighted_sum_of_the_terms_means_and_counts_become_metrics():
    window, counts = LossWindow(TwoTerms()), {"histogram": torch.tensor([[1, 0, 2], [0, 0, 3]])}
    totals = 2 * totals_of(Scores(torch.tensor([6.0, 8.0]), torch.tensor([1, 30]), counts))
    window.add(1, totals, [4, 80], counts)
    window.add(2, totals, [2, 0], counts)
    metrics, _ = window.close()
    assert metrics["loss/mlm"] == 24 / 6
    assert metrics["loss/rtd"] == 32 / 80
    assert metrics["loss"] == pytest.approx(24 / 6 + 50 * 32 / 80)
    assert (metrics["accuracy"], metrics["accuracy/mlm"], metrics["accuracy/rtd"]) == (4 / 6, 4 / 6, 120 / 80)
    assert metrics["mode"] == 2
    assert math.isnan(window.close()[0]["loss"])  # nothing came since


def test_a_module_need_not_say_what_it_hits():
    window = LossWindow(MPNet())
    window.add(1, totals_of(Scores(torch.tensor([6.0]))), [3])
    assert window.close()[0]["accuracy"] == 0


def test_a_term_without_targets_counts_nothing():
    window = LossWindow(TwoTerms())
    window.add(1, torch.tensor([6.0, 0.0, 1.0, 0.0]), [3, 0])
    metrics, _ = window.close()
    assert metrics == {"loss": 2.0, "accuracy": 1 / 3, "loss/mlm": 2.0, "accuracy/mlm": 1 / 3}


class Ramped(TwoTerms):
    """The second term's weight is the step."""

    def __init__(self, weight: float = 0.0):
        object.__setattr__(self, "weight", weight)

    @property
    def terms(self):
        return (Term("mlm", "slots"), Term("rtd", "tokens", self.weight))

    def at(self, step):
        return Ramped(float(step))


def test_terms_have_the_weight_of_their_step():
    window = LossWindow(Ramped(), spike_factor=2.0)
    for step in range(1, 31):
        window.add(step, torch.tensor([6.0, 1.0, 0.0, 0.0]), [3, 1])
    assert window.arrived() == []
    window.add(31, torch.tensor([6.0, 3.0, 0.0, 0.0]), [3, 1])
    (spike,) = window.arrived()
    assert spike.loss == 2 + 31 * 3
    metrics, _ = window.close()
    assert metrics["loss"] == pytest.approx(2 + 31 * 33 / 31)


def test_a_window_continues_from_its_state():
    one, other = LossWindow(MPNet(), 2.0), LossWindow(MPNet(), 2.0)
    one.add(1, torch.tensor([30.0, 2.0]), [10])
    other.restore(json.loads(json.dumps(one.state())))
    for window in (one, other):
        window.add(2, torch.tensor([10.0, 4.0]), [30])
    assert one.state() == other.state()
    assert one.close() == other.close()


def test_a_window_of_a_version_without_counts_is_continued():
    window, masked = LossWindow(MPNet(), 2.0), {"masked": torch.tensor([8.0, 1.0, 4.0])}
    older = {"totals": [30.0, 2.0], "targets": [10], "shapes": {}, "mean": 3.0, "seen": 1}
    window.restore(json.loads(json.dumps(older)))
    for step in (2, 3):
        window.add(step, totals_of(Scores(torch.tensor([10.0]), torch.tensor([4]), masked)), [5], masked)
    metrics, _ = window.close()
    assert (metrics["loss"], metrics["accuracy"]) == (50 / 20, 10 / 20)
    assert (metrics["masked_loss"], metrics["masked_accuracy"]) == (2.0, 0.25), "of the steps that counted them"


@pytest.mark.parametrize("objective", ["mpnet", "mlm"])
@torch.no_grad()
def test_masked_loss_is_that_of_the_targets_read_as_mask(dataset_folder, objective):
    data = PretrainingDataset(dataset_folder, 32, objective=objective_of(objective))
    module = data.objective.build(load_recipe(str(RECIPE)).model, data.tokenizer, 32)
    module.keep_logits = True
    ids = data.batch(range(20))["input_ids"]
    module.lm_head.bias[np.bincount(ids[ids > 4]).argmax()] = 9.0  # the most frequent token, for some hits
    window, losses, hits, num_targets = LossWindow(data.objective), [], [], 0
    for step in (1, 2):
        batch = {name: torch.from_numpy(array) for name, array in data.consecutive(8 * step, 8).items()}
        out, positions = module(**batch), batch["predicted_positions"]
        num_targets += int(out.num_targets)
        window.add(step, totals_of(out), [int(out.num_targets)], out.counts)
        is_masked = (positions >= 0) & (batch["predicted_inputs"] == data.tokenizer.mask_id)
        true, logits = batch["input_ids"].gather(1, positions.clamp(min=0))[is_masked], out.logits[is_masked].double()
        losses += (logits.logsumexp(1) - logits.gather(1, true[:, None])[:, 0]).tolist()
        hits += (logits.argmax(1) == true).tolist()
    metrics, _ = window.close()
    assert 0 < sum(hits) < len(hits) < num_targets
    assert metrics["masked_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert metrics["masked_accuracy"] == pytest.approx(sum(hits) / len(hits))


@pytest.mark.parametrize("section", ["plm", {"name": "mlm", "masking": {"mask_probability": 1.0}}])
def test_there_is_no_masked_loss_where_all_targets_are_read_as_mask(section):
    objective = objective_of(section)
    assert objective.metrics({"masked": np.array([8.0, 1.0, 4.0])}) == {}
    assert MPNet().metrics({"masked": np.zeros(3)}) == {}, "nor where no target is"


def test_a_spike_is_a_loss_above_a_multiple_of_the_mean_once_that_has_settled():
    window = LossWindow(MPNet(), spike_factor=2.0)
    window.add(1, torch.tensor([900.0, 0.0]), [10])  # before anything is known
    for step in range(2, 40):
        window.add(step, torch.tensor([30.0, 0.0]), [10])
    assert window.arrived() == []
    window.add(40, torch.tensor([170.0, 0.0]), [10])
    (spike,) = window.arrived()
    assert (spike.step, spike.loss) == (40, 17.0)
    assert spike.running_mean == pytest.approx((90 + 38 * 3) / 39)
    assert LossWindow(MPNet(), spike_factor=0.0).close()[1] == []


@pytest.mark.parametrize(
    ("config", "ranks"),
    [
        ("zero0", 2),
        ("bf16", 0),
        *(pytest.param(config, ranks, marks=pytest.mark.long) for config, ranks in (("zero2", 0), ("zero3", 2))),
    ],
)
def test_a_step_without_finite_loss_is_skipped_and_reported(trained, dataset_folder, tmp_path, config, ranks):
    arguments = ["--micro_batch_size", 4]
    run = train(tmp_path / "run", dataset_folder, *arguments, fault="nan_on_one_rank@4", ranks=ranks, config=config)
    assert run.code == 0, run.err
    (event,) = events(run, "skipped")
    # the fault is in the last rank's first rows: with one rank the first four of the step, with two the other four
    assert event["samples"] == [[28, 31] if ranks else [24, 27]]
    assert (event["step"], event["what"], event["skipped_steps"]) == (4, "loss", 1)
    assert f"step 4 skipped, 1 in a row: the loss is not finite (samples {28 if ranks else 24} to" in run.err
    reference = trained(config, max(ranks, 1)).losses
    assert run.losses[:3] == pytest.approx(reference[:3], abs=0.01 if config == "bf16" else 1e-5)
    assert run.losses[3] == pytest.approx(reference[4], abs=0.2)  # step 5, from the weights of step 3
    assert run.losses[3] != pytest.approx(reference[4], abs=1e-4)
    assert len(run.losses) == 7
    assert "NaN" not in (run.folder / "metrics.jsonl").read_text()


def test_a_run_that_makes_no_progress_gives_up_and_leaves_its_state(dataset_folder, tmp_path):
    recipe = recipe_with(tmp_path, run={"max_skipped": 3})
    flags = ["--recipe", recipe, "--data", dataset_folder]
    run = pretrain(tmp_path / "run", *flags, script=[FAULTY, "nan_from@4"])
    assert run.code == 1
    assert "error: stopped at step 6: the last 3 steps had no finite loss or gradient" in run.err
    assert saved_steps(run.folder) == [2, 4]
    inspected = tmp_path / "run" / "inspection"
    verify(inspected / "checkpoints" / "step-00000006")
    assert (inspected / "batch-rank-00000.npz").exists()
    again = pretrain(tmp_path / "run", *flags)
    assert again.code == 0, again.err
    assert "at step 4" in again.out


def test_a_jump_of_the_loss_is_reported(dataset_folder, tmp_path):
    run = train(tmp_path / "run", dataset_folder, "--max_steps", 24, "--log_interval", 8, fault="spike@22")
    assert run.code == 0, run.err
    (event,) = events(run, "loss_spike")
    assert event["step"] == 22
    assert event["loss"] > 2 * event["running_mean"] > 10
    assert event["samples"] == [168, 175]
    assert "step 22: loss" in run.err


@pytest.mark.parametrize("config", ["zero0", pytest.param("zero2", marks=pytest.mark.long), "zero3", "bf16"])
def test_no_step_waits_for_the_device_except_to_check_the_gradient(dataset_folder, tmp_path, config):
    flags = ["--micro_batch_size", 4, "--log_interval", 8, "--max_steps", 3]
    run = train(tmp_path / "run", dataset_folder, *flags, fault="waits@2", config=config)
    assert run.code == 0, run.err
    assert "one step was watched" in run.out
    own = [line for line in run.out.splitlines() if line.startswith("mpnet_ds waits")]
    if config == "zero0":  # in fp32 DeepSpeed checks nothing
        assert own == ["mpnet_ds waits in _step"]
    else:
        assert "deepspeed waits in is_invalid_grad_norm" in run.out  # the watch sees such things
        assert own == []
