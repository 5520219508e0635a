"""The back-end ``cpu`` against the plain formula, with dropout too: both draw the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import library

from mpnet_ds.errors import UserError
from mpnet_ds.models.attention.backend import choose_backend
from mpnet_ds.models.attention.cpu import attention
from tests.models.attention.cases import assert_same, make_case


@given(
    objective=st.sampled_from(["mpnet", "plm", "mlm"]), batch=st.integers(1, 3), tokens=st.integers(12, 40),
    padding=st.integers(0, 5), unused=st.integers(0, 3), documents=st.booleans(), last_layer=st.booleans(),
    heads=st.integers(1, 3), width=st.sampled_from([1, 8, 12]), seed=st.integers(0, 99),
)  # fmt: skip
def test_output_and_gradients_are_those_of_eager(objective, last_layer, **sizes):
    case = make_case(objective, predicted=6, last_layer=last_layer and objective != "mlm", **sizes)
    assert_same(case.run("cpu"), case.run("eager"), 1e-5)


def test_bf16_stays_as_near_to_fp32_as_eager_does():
    case = make_case("mpnet", tokens=80, predicted=20, padding=5, unused=3, dtype=torch.bfloat16)
    exact, found, eager = case.in_fp32().run("eager"), case.run("cpu"), case.run("eager")
    assert found["out"].dtype == found["query"].dtype == found["table"].dtype == torch.bfloat16
    for name, expected in exact.items():
        errors = [(gradients[name].float() - expected).norm() / expected.norm() for gradients in (found, eager)]
        assert errors[0] < 1.2 * errors[1] + 1e-3, name


def test_without_gradients_no_probabilities_are_kept():
    case = make_case("mlm", tokens=9, predicted=0)
    prepared = choose_backend("cpu", torch.device("cpu")).prepare(case.table, case.layout)
    out, kept = attention(case.query, case.key, case.value, *prepared, None, 0.0, False)
    assert kept.numel() == 0
    torch.testing.assert_close(out, case.run("eager")["out"], atol=1e-5, rtol=0)


def test_the_operator_keeps_what_it_promises_to_torch():
    case = make_case("mpnet", batch=1, tokens=9, predicted=2, heads=1)
    backend = choose_backend("cpu", torch.device("cpu"))
    bias = [x.detach().requires_grad_() for x in backend.prepare(case.table, case.layout)]
    inputs = [x.clone().requires_grad_() for x in (case.query, case.key, case.value)]
    library.opcheck(attention, (*inputs, *bias, torch.tensor([3]), 0.2, True))


def test_another_device_is_refused():
    with pytest.raises(UserError, match="attention 'cpu' is for CPUs, and the model is on 'meta'"):
        choose_backend("cpu", torch.device("meta")).check(torch.device("meta"), None)
