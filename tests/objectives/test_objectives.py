from dataclasses import dataclass
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from mpnet_ds.data import MaskingConfig, PretrainingDataset
from mpnet_ds.data.samples.mixture import open_datasets
from mpnet_ds.errors import UserError
from mpnet_ds.objectives import OBJECTIVES, Objective, objective_of
from mpnet_ds.objectives.base import Term
from mpnet_ds.objectives.model_section import MPNetSection

ABLATION = ("mpnet", "plm", "mlm")


def test_the_three_objectives_of_the_ablation_are_there():
    assert set(ABLATION) <= set(OBJECTIVES)
    for name in ABLATION:
        objective = objective_of(name)
        assert (objective.name, objective.unit, objective.terms) == (name, "block", (Term(name, "predicted_positions"),))
        assert objective_of(objective.section()) == objective


@pytest.mark.parametrize("name", ["mpnet", "mlm"])
def test_mpnet_and_mlm_take_the_masking_of_the_recipe(name):
    values = {"mask_probability": 0.5, "keep_probability": 0.3, "random_probability": 0.2, "whole_word": False}
    assert objective_of({"name": name, "masking": values}).masking == MaskingConfig(**values)


def test_plm_starts_every_query_from_the_mask_and_keeps_the_other_settings(dataset_folder):
    values = {"predicted_fraction": 0.25, "whole_word": False, "predict_special_tokens": True}
    objective = objective_of({"name": "plm", "masking": values})
    masking = objective.masking
    assert (masking.predicted_fraction, masking.whole_word, masking.predict_special_tokens) == (0.25, False, True)
    data = PretrainingDataset(dataset_folder, seq_length=64, objective=objective)
    assert np.all(data.batch(range(100))["predicted_inputs"] == data.tokenizer.mask_id)


def test_all_three_predict_the_same_tokens(dataset_folder):
    batches = [PretrainingDataset(dataset_folder, 64, objective=objective_of(name)).batch(range(20)) for name in ABLATION]
    for batch in batches[1:]:
        np.testing.assert_array_equal(batch["predicted_positions"], batches[0]["predicted_positions"])


@pytest.mark.parametrize("parts", [1, 2])
def test_an_objective_for_the_step_draws_in_place_of_the_datasets(dataset_folder, parts):
    """As a masking rate that changes during training needs it; the sequences stay the same."""
    data = open_datasets([(dataset_folder, Fraction(1)), (dataset_folder, Fraction(2))][:parts], seed=0, seq_length=64)
    higher = objective_of({"name": "mpnet", "masking": {"predicted_fraction": 0.3}})
    usual, ramped = data.consecutive(5, 4), data.consecutive(5, 4, higher)
    np.testing.assert_array_equal(usual["input_ids"], ramped["input_ids"])
    assert usual["predicted_positions"].shape == (4, 10)
    assert ramped["predicted_positions"].shape == (4, 19)


def test_targets_are_counted_and_cleared_and_nothing_else_changes(dataset_folder):
    objective = objective_of("mpnet")
    batch = PretrainingDataset(dataset_folder, 64, objective=objective).batch(range(4))
    (count,) = objective.num_targets(batch)
    assert count == (batch["predicted_positions"] >= 0).sum() > 0
    cleared = objective.without_targets(batch, np.array([False, True, True, True]))
    assert objective.num_targets(cleared) == [(batch["predicted_positions"][0] >= 0).sum()]
    for name in batch.keys() - {"predicted_positions"}:
        assert cleared[name] is batch[name]


def test_initial_values_that_an_objective_does_not_have_are_refused():
    class Other(Objective):
        name = "other"

    (finding,) = Other().findings(MPNetSection(start="near"), None, None)
    assert finding.text == "model.start is 'near', which objective 'other' does not have: leave it out."
    assert finding.is_fatal
    assert Other().findings(MPNetSection(), None, None) == []
    tokenizer = SimpleNamespace(misfit_of_mpnet="")
    assert objective_of("mlm").findings(MPNetSection(start="near"), tokenizer, None) == []


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("mpnt", "'mpnt'.*Did you mean 'mpnet'"),
        ("electra", "mlm, mpnet, plm"),
        ({"masking": {}}, "an objective without a name"),
        ({"name": "mpnet", "maskin": {}}, r"unknown key 'objective\.maskin'\. Did you mean 'masking'"),
    ],
)
def test_an_unknown_name_or_key_is_refused_with_a_suggestion(section, message):
    with pytest.raises(UserError, match=message):
        objective_of(section)


def test_a_plain_dataclass_takes_no_unknown_keys_either(monkeypatch):
    @dataclass(frozen=True)
    class Plain(Objective):
        name = "plain"
        weight: float = 1.0

    monkeypatch.setitem(OBJECTIVES, "plain", Plain)
    assert objective_of({"name": "plain", "weight": 3}).weight == 3.0
    with pytest.raises(UserError, match=r"unknown key 'objective\.wieght'\. Did you mean 'weight'"):
        objective_of({"name": "plain", "wieght": 3})
