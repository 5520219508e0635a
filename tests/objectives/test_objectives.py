import numpy as np
import pytest

from mpnet_ds.data import MaskingConfig, PretrainingDataset
from mpnet_ds.errors import UserError
from mpnet_ds.objectives import OBJECTIVES, get_objective


def test_the_three_objectives_of_the_ablation_are_there():
    rows = {name: (objective.has_query_stream, objective.has_mask_rows) for name, objective in OBJECTIVES.items()}
    assert rows == {"mpnet": (True, True), "plm": (True, False), "mlm": (False, False)}
    assert all(get_objective(name).name == name for name in OBJECTIVES)


@pytest.mark.parametrize("name", ["mpnet", "mlm"])
def test_mpnet_and_mlm_take_the_masking_of_the_recipe(name):
    config = MaskingConfig(mask_probability=0.5, keep_probability=0.3, random_probability=0.2, whole_word=False)
    assert get_objective(name).masking(config) == config


def test_plm_starts_every_query_from_the_mask_and_keeps_the_other_settings(dataset_folder):
    config = MaskingConfig(predicted_fraction=0.25, whole_word=False, predict_special_tokens=True)
    masking = get_objective("plm").masking(config)
    assert (masking.predicted_fraction, masking.whole_word, masking.predict_special_tokens) == (0.25, False, True)
    data = PretrainingDataset(dataset_folder, seq_length=64, masking=masking)
    assert np.all(data.batch(range(100))["predicted_inputs"] == data.tokenizer.mask_id)


def test_plm_predicts_the_same_slots_as_mpnet(dataset_folder):
    batches = [
        PretrainingDataset(dataset_folder, 64, get_objective(name).masking(MaskingConfig())).batch(range(20))
        for name in ("mpnet", "plm", "mlm")
    ]
    for batch in batches[1:]:
        np.testing.assert_array_equal(batch["predicted_positions"], batches[0]["predicted_positions"])


def test_an_unknown_objective_is_refused_with_a_suggestion():
    with pytest.raises(UserError, match=r"'mpnt'.*Did you mean 'mpnet'"):
        get_objective("mpnt")
    with pytest.raises(UserError, match="mlm, mpnet, plm"):
        get_objective("electra")
