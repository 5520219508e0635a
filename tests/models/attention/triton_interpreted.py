"""The Triton kernels in Triton's interpreter. Pytest does not find this file by itself: test_triton.py runs it.

TRITON_INTERPRET=1 must be set before triton is imported. It cannot multiply matrices of bf16; fp16 stands for them.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import library
from torch.utils.checkpoint import checkpoint

from mpnet_ds.errors import UserError
from mpnet_ds.models.attention import eager_and_sdpa, triton, triton_kernels
from mpnet_ds.models.attention.backend import choose_backend
from mpnet_ds.models.layers import projections
from tests.models import test_parity
from tests.models.attention.cases import assert_same, make_case

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

import tune_tiles
from operator_count import OperatorCount

CPU = torch.device("cpu")

assert os.environ.get("TRITON_INTERPRET") == "1"

LAYOUTS = {
    "mpnet": {"objective": "mpnet", "padding": 5, "unused": 3, "heads": 1},
    "mpnet, last layer": {"objective": "mpnet", "padding": 5, "unused": 3, "last_layer": True},
    "mpnet, documents": {"objective": "mpnet", "padding": 9, "unused": 1, "documents": True, "width": 24, "heads": 1},
    "plm": {"objective": "plm", "padding": 5, "unused": 3, "heads": 1},
    "plm, last layer, documents": {"objective": "plm", "documents": True, "last_layer": True},
    "mlm": {"objective": "mlm", "padding": 5, "heads": 1},
    "plm, near": {"objective": "plm", "batch": 1, "tokens": 100, "predicted": 5, "padding": 3, "near": 4.0},
    "mlm, documents, a row of padding": {"objective": "mlm", "tokens": 33, "padding": 33, "predicted": 0, "documents": True},
}


ALSO_LONG = ("mpnet, documents", "plm", "mlm")  # the others cover them in part, and an interpreter is slow


@pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=pytest.mark.long) if name in ALSO_LONG else name for name in LAYOUTS]
)
def test_output_and_gradients_are_those_of_eager(layout):
    case = make_case(**LAYOUTS[layout])
    assert_same(case.run("triton"), case.run("eager"), 1e-5)


def test_fp16_stays_near_eager_in_fp32():
    case = make_case("mpnet", padding=5, unused=3, tokens=80, predicted=20, heads=1, dtype=torch.float16)
    found = case.run("triton")
    assert found["out"].dtype == found["query"].dtype == found["table"].dtype == torch.float16
    assert_same(found, case.in_fp32().run("eager"), 2e-3)


@settings(max_examples=3)
@given(data=st.data())
def test_any_shape(data):
    tokens = data.draw(st.integers(2, 40))
    padding = data.draw(st.integers(0, tokens - 2))
    predicted = data.draw(st.integers(1, tokens - padding))
    case = make_case(
        data.draw(st.sampled_from(["mpnet", "plm", "mlm"])),
        batch=data.draw(st.integers(1, 2)),
        tokens=tokens,
        predicted=predicted,
        heads=1,
        width=data.draw(st.sampled_from([1, 8, 12, 33])),
        padding=padding,
        unused=data.draw(st.integers(0, predicted)),
        documents=data.draw(st.booleans()),
        seed=data.draw(st.integers(0, 99)),
    )
    assert_same(case.run("triton"), case.run("eager"), 1e-5)


def test_rows_that_see_nothing_are_zero_and_have_no_gradients():
    case = make_case("mpnet", tokens=20, predicted=6, padding=0, unused=2)
    case.layout.row_levels[0, 3] = -1
    backend = choose_backend("triton", CPU)
    inputs = [x.clone().requires_grad_() for x in (case.query, case.key, case.value)]
    out = backend.attend(*inputs, 0.0, None, 0, *backend.prepare(case.table, case.layout))
    blind = torch.zeros(2, 32, dtype=torch.bool)
    blind[0, 3], blind[1, [24, 25, 30, 31]] = True, True
    assert (out.transpose(1, 2)[blind] == 0).all()
    assert (out.transpose(1, 2)[~blind] != 0).all()
    torch.autograd.backward(out, torch.randn_like(out) * blind[:, None, :, None])
    assert all((x.grad == 0).all() for x in (*inputs, case.table.weight))


@pytest.mark.parametrize("case", ["plm", *(pytest.param(name, marks=pytest.mark.long) for name in ("mlm", "ngram3"))])
def test_logits_are_the_originals(case):
    with torch.no_grad():
        logits = test_parity.run(test_parity.model_of(test_parity.CASES[case], "triton"), case).logits
    torch.testing.assert_close(logits, test_parity.tensor(f"{case}/logits"), atol=test_parity.TOLERANCE, rtol=0)


@pytest.mark.long  # those of eager are, and above these are those of eager
def test_gradients_are_the_originals():
    model = test_parity.model_of("mpnet", "triton")
    out = test_parity.run(model, "mpnet")
    (out.loss * out.num_targets).backward()
    gradients = {f"mpnet/grad/{name}": parameter.grad for name, parameter in model.named_parameters()}
    compared = set(gradients) & set(test_parity.NUMBERS.files)
    assert len(compared) == len([name for name in test_parity.NUMBERS.files if name.startswith("mpnet/grad/")]) > 0
    for name in compared:
        torch.testing.assert_close(gradients[name], test_parity.tensor(name), atol=test_parity.TOLERANCE, rtol=0, msg=name)


def dropout_mask(case, dropout: float, seed: int = 0) -> torch.Tensor:
    """bool [B, H, R, K] that the kernel uses with ``seed`` and those after it, shown by values of one key each."""
    backend = choose_backend("triton", CPU)
    prepared = backend.prepare(case.table, case.layout)
    num_keys, width = case.key.shape[2:]
    weights = []
    for start in range(0, num_keys, width):
        values = torch.zeros_like(case.value)
        for d in range(min(width, num_keys - start)):
            values[:, :, start + d, d] = 1.0
        seeds = seed + torch.arange(len(case.query))
        weights.append(backend.attend(case.query, case.key, values, dropout, seeds, case.first_row, *prepared))
    return torch.cat(weights, dim=3)[..., :num_keys].detach() > 0


@pytest.fixture
def kernel_dropout(monkeypatch):
    """A function (mask, dropout): lets eager leave out what the mask says."""

    def use(mask, dropout):
        monkeypatch.setattr(eager_and_sdpa, "drop", lambda x, seeds, p: x * mask / (1 - dropout))

    return use


@pytest.mark.parametrize("last_layer", [pytest.param(False, marks=pytest.mark.long), True])
def test_dropout_leaves_out_the_same_elements_forward_and_backward(last_layer, kernel_dropout):
    case = make_case("mpnet", tokens=40, predicted=7, unused=1, last_layer=last_layer, heads=2, width=48)
    mask = dropout_mask(case, 0.25)
    visible = case.layout.visible[:, None, case.first_row :] & case.meaningful[:, None, :, None]
    drawn = mask[visible.expand_as(mask)]
    assert drawn.double().mean().item() == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / len(drawn)) ** 0.5)
    found = case.run("triton", dropout=0.25)
    kernel_dropout(mask, 0.25)
    assert_same(found, case.run("eager", dropout=0.25), 1e-5)


def test_dropout_follows_the_seed_and_the_products_of_the_numbers_drawn():
    case = make_case("plm", tokens=40, predicted=5, heads=2, width=48)
    mask = dropout_mask(case, 0.4, seed=1)
    assert torch.equal(mask, dropout_mask(case, 0.4, seed=1))
    assert not torch.equal(mask, dropout_mask(case, 0.4, seed=2))
    of_rows, of_columns = triton_kernels.dropout_factors(torch.tensor([1, 2]), 2, 45, 64)
    kept = of_rows[..., None] * of_columns[:, None, None, :40] >= round(0.4 * 2**32) - 2**31
    visible = (case.layout.visible[:, None]).expand_as(kept)
    assert torch.equal(mask, kept & visible)


def kept(seed: int, dropout: float = 0.1, heads: int = 4, rows: int = 640, keys: int = 600) -> torch.Tensor:
    """bool [heads, rows, keys]: what dropout leaves, by the numbers that the kernel draws."""
    of_rows, of_columns = triton_kernels.dropout_factors(torch.tensor([seed]), heads, rows, keys)
    return (of_rows[0, ..., None] * of_columns[0]) >= round(dropout * 2**32) - 2**31


def test_numbers_of_dropout_are_odd():
    assert all((numbers % 2 == 1).all() for numbers in triton_kernels.dropout_factors(torch.arange(3), 2, 500, 64))


@pytest.mark.parametrize("dropout", [0.01, 0.1, 0.5, 0.9])
def test_dropout_leaves_out_the_fraction_it_is_asked_to(dropout):
    mask = kept(0, dropout)
    deviation = (dropout * (1 - dropout) / mask.numel()) ** 0.5
    assert abs((~mask).double().mean().item() - dropout) < 5 * deviation
    # Of each row and each key on its own, too: sums over independent elements vary as they should.
    for dimension in (1, 2):
        sums = (~mask).double().sum(dimension)
        expected = dropout * (1 - dropout) * mask.shape[dimension]
        assert sums.var().item() == pytest.approx(expected, rel=0.12)


def test_dropout_is_not_correlated_between_rows_keys_heads_or_seeds():
    first, second = kept(0).double(), kept(1).double()
    z = (first - 0.9) / 0.3
    rows = z.flatten(0, 1)  # (heads * rows, keys)
    # The square of a correlation over N elements is 1 / N on average if they are independent, all pairs of columns included.
    for matrix in (rows, rows.t()):
        correlation = matrix @ matrix.t() / matrix.shape[1]
        other = correlation[~torch.eye(len(correlation), dtype=torch.bool)]
        assert other.pow(2).mean().item() == pytest.approx(1 / matrix.shape[1], rel=0.03)
        assert other.abs().max() < 9 / matrix.shape[1] ** 0.5
    neighbours = {"rows": (z[:, 1:], z[:, :-1]), "keys": (z[..., 1:], z[..., :-1]), "heads": (z[1:], z[:-1])}
    for a, b in (*neighbours.values(), (z, (second - 0.9) / 0.3)):
        assert abs((a * b).mean().item()) < 5 / a.numel() ** 0.5


@pytest.mark.parametrize("objective", ["mpnet", "mlm"])
def test_gradients_of_one_product_are_one_tensor(objective):
    case = make_case(objective, tokens=20, predicted=4, padding=2, heads=2)
    maps = [torch.nn.Linear(32, 32) for _ in range(3)]
    hidden = torch.randn(2, case.query.shape[2], 32)
    gradients = {}
    for name in ("triton", "eager"):
        backend = choose_backend(name, CPU)
        rows = hidden.clone().requires_grad_()
        projected = projections.project(rows, case.key.shape[2], *maps)
        inputs = [x.unflatten(2, (2, 16)).transpose(1, 2) for x in projected]
        out = backend.attend(*inputs, 0.0, None, 0, *backend.prepare(case.table, case.layout))
        with OperatorCount() as counter:
            gradients[name] = torch.autograd.grad(out, [rows, *maps[1].parameters()], case.grad_out)
        copies = counter.work.operators["copy_"]
        assert copies == 0 if name == "triton" else copies >= 3
    for found, expected in zip(gradients["triton"], gradients["eager"], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_layer_computed_again_draws_the_same():
    case = make_case("mpnet", tokens=20, predicted=4, heads=1)
    backend = choose_backend("triton", CPU)
    gradients = []
    for again in (False, True):
        query = case.query.clone().requires_grad_()
        prepared = backend.prepare(case.table, case.layout)
        case.table.weight.grad = None
        arguments = (query, case.key, case.value, 0.5, torch.tensor([3, 4]), 0, *prepared)
        out = checkpoint(backend.attend, *arguments, use_reentrant=False) if again else backend.attend(*arguments)
        out.backward(case.grad_out)
        gradients.append((query.grad, case.table.weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.long  # below, torch's own tests of operators trace and compile it
def test_a_compiled_layer_is_one_graph():
    case = make_case("mpnet", tokens=20, predicted=4, heads=1)
    backend = choose_backend("triton", CPU)
    prepared = backend.prepare(case.table, case.layout)

    def attend(query):
        return backend.attend(query, case.key, case.value, 0.0, None, 0, *prepared).transpose(1, 2).flatten(2)

    gradients = []
    for function in (attend, torch.compile(attend, fullgraph=True, backend="aot_eager")):
        query = case.query.clone().requires_grad_()
        function(query).sum().backward(retain_graph=True)
        gradients.append(query.grad)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=0)


def test_the_operator_keeps_what_it_promises_to_torch():
    case = make_case("mpnet", batch=1, tokens=9, predicted=2, heads=1)
    prepared = [x.detach() for x in choose_backend("triton", CPU).prepare(case.table, case.layout)]
    prepared[0].requires_grad_()
    inputs = [x.clone().requires_grad_() for x in (case.query, case.key, case.value)]
    library.opcheck(triton.attention, (*inputs, *prepared, torch.tensor([3]), 0, 0))


def test_the_output_is_flattened_without_a_copy():
    case = make_case("mlm", tokens=9, predicted=0)
    out = choose_backend("triton", CPU).attend(
        case.query, case.key, case.value, 0.0, None, 0, *choose_backend("triton", CPU).prepare(case.table, case.layout)
    )
    assert out.transpose(1, 2).is_contiguous()


def test_a_frozen_table_has_no_gradient():
    case = make_case("mlm", tokens=9, predicted=0)
    case.table.weight.requires_grad_(False)
    found = case.run("triton")
    assert found.pop("table") is None
    expected = case.run("eager")
    assert_same(found, expected, 1e-5)


def test_heads_that_are_too_wide_are_refused():
    case = make_case("mlm", tokens=4, predicted=0, width=129)
    with pytest.raises(UserError, match=r"129 wide.*'sdpa'"):
        case.run("triton")


def test_the_passes_that_tune_tiles_times_are_those_of_a_layer(monkeypatch):
    for name, value in {"TOKENS": 20, "PREDICTED": 3, "HEADS": 1, "WIDTH": 16, "DTYPE": torch.float32}.items():
        monkeypatch.setattr(tune_tiles, name, value)
    backward, forward = tune_tiles.passes_of_a_layer(1, CPU)
    assert forward()[0].shape == (1, 26, 1, 16)
    gradients, of_bias = backward()
    assert gradients.numel() == 26 * 3 * 16  # packed
    assert of_bias.shape == (1, 20, 64)
