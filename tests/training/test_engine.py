from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.training.engine import parameter_groups
from tests.models.test_parity import tiny_config


def test_weight_decay_spares_biases_and_layer_norm():
    model = MPNetForPretraining(tiny_config())
    with_decay, without = parameter_groups(model, 0.01)
    assert (with_decay["weight_decay"], without["weight_decay"]) == (0.01, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all(names[id(p)].endswith("weight") and "LayerNorm" not in names[id(p)] for p in with_decay["params"])
    assert all(names[id(p)].endswith("bias") or "orm" in names[id(p)] for p in without["params"])
    assert len(with_decay["params"]) + len(without["params"]) == len(names)
