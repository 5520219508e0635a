import pytest
from torch.utils.flop_counter import FlopCounterMode
from transformers import MPNetConfig

from mpnet_ds.config.recipe import load_recipe
from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.models.mpnet.sizes import flops_per_sequence, parameter_count
from tests.models.test_parity import model_of, tensor, tiny_config


def test_base_has_the_published_number_of_parameters():
    assert parameter_count(load_recipe("mpnet-base").model.config(30527)) == 109_518_527


def test_parameter_count_is_the_models():
    model = MPNetForPretraining(tiny_config())
    assert parameter_count(model.config) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("objective", ["mpnet", "plm", "mlm"])
def test_flops_are_exactly_the_matrix_products_that_torch_counts_forward_and_backward(objective, attention):
    model = model_of(objective, attention)
    batch = [tensor(f"mpnet/{name}") for name in ("input_ids", "predicted_positions", "predicted_inputs")]
    num_sequences, num_tokens = batch[0].shape
    with FlopCounterMode(display=False) as counter:
        model(*batch).logits.sum().backward()  # the loss would make the same products where torch does not see them
    flops = flops_per_sequence(model.config, num_tokens, batch[1].shape[1], objective)
    query_rows = 0 if objective == "mlm" else batch[1].shape[1]
    unseen = 4 * model.config.hidden_size**2 * query_rows * (model.config.num_hidden_layers - 1)  # their keys and values
    assert counter.get_total_flops() == num_sequences * (flops + 3 * unseen)


def test_a_row_of_base_costs_what_the_readme_of_the_original_shapes_say():
    config = MPNetConfig(max_position_embeddings=514)
    assert flops_per_sequence(config, 512, 77) == pytest.approx(363e9, rel=0.01)
