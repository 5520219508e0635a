"""Back-ends where biases are large, as ``model.start=near`` makes them, against the definition in fp64."""

import pytest
import torch

from tests.models.attention.cases import make_case

LAYOUTS = {
    "mpnet": {"objective": "mpnet", "padding": 5, "unused": 3},
    "plm, last layer, documents": {"objective": "plm", "documents": True, "last_layer": True},
    "mlm": {"objective": "mlm", "padding": 9, "predicted": 0},
}


ERRORS = {torch.float32: {"others": 3e-6, "table": 3e-6}, torch.bfloat16: {"others": 0.01, "table": 0.05}}
"""Largest relative errors; eager and sdpa sum the table's gradient in its dtype, and err more where biases are small."""


@pytest.mark.parametrize("attention", ["eager", "cpu", "sdpa"])
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("strength", [2.0, 4.0])
def test_output_and_gradients_are_those_of_the_definition(attention, dtype, layout, strength):
    case = make_case(**LAYOUTS[layout], tokens=140, near=strength, dtype=dtype)
    assert -7.5 * strength < case.table.weight.min() < -6 * strength
    found = case.run(attention)
    for name, expected in case.in_fp64().items():
        error = (found[name] - expected).norm() / expected.norm()
        assert error < ERRORS[dtype].get(name, ERRORS[dtype]["others"]), name
