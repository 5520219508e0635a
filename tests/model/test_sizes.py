import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import MPNetConfig

from mpnet_ds.model import MPNetForPretraining
from mpnet_ds.model.sizes import flops_per_row, parameter_count
from mpnet_ds.training.recipe import load_recipe
from tests.model.test_parity import model_of, tensor, tiny_config


def test_base_has_the_published_number_of_parameters():
    assert parameter_count(load_recipe("mpnet-base").model_config(30527)) == 109_518_527


def test_parameter_count_is_the_models():
    model = MPNetForPretraining(tiny_config())
    assert parameter_count(model.config) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("objective", ["mpnet", "plm", "mlm"])
def test_flops_are_those_that_torch_counts_in_the_forward_pass(objective):
    model = model_of(objective, attention="eager")
    names = ("input_ids", "predicted_positions", "predicted_inputs")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*(tensor(f"mpnet/{name}") for name in names))
    assert counter.get_total_flops() * 3 == 3 * flops_per_row(model.config, 32, 5, objective)


def test_a_row_of_base_costs_what_the_readme_of_the_original_shapes_say():
    config = MPNetConfig(max_position_embeddings=514)
    assert flops_per_row(config, 512, 77) == pytest.approx(363e9, rel=0.01)
