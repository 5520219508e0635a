"""The back-end ``flex``: forward on a CPU, where it is not compiled; all of it where there is a GPU."""

import pytest
import torch

from mpnet_ds.errors import UserError
from mpnet_ds.models.attention.backend import choose_backend
from tests.models.attention.cases import assert_same, make_case
from tests.models.test_parity import CASES, TOLERANCE, model_of, run, tensor

FLEX = choose_backend("flex", torch.device("cpu"))
EAGER = choose_backend("eager", torch.device("cpu"))
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: FlexAttention has no backward elsewhere")

LAYOUTS = {
    "mpnet": {"objective": "mpnet", "padding": 5, "unused": 3},
    "mpnet, last layer": {"objective": "mpnet", "padding": 5, "unused": 3, "last_layer": True},
    "mpnet, documents": {"objective": "mpnet", "padding": 9, "unused": 1, "documents": True, "width": 24},
    "plm, last layer, documents": {"objective": "plm", "documents": True, "last_layer": True},
    "mlm": {"objective": "mlm", "padding": 5},
    "mpnet, near": {"objective": "mpnet", "padding": 5, "tokens": 140, "near": 4.0},
    "mlm, a sequence of padding": {"objective": "mlm", "tokens": 33, "padding": 33, "predicted": 0},
}


@torch.no_grad()
def output(backend, case):
    prepared = backend.prepare(case.table, case.layout)
    return backend.attend(case.query, case.key, case.value, 0.0, None, case.first_row, *prepared)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_forward_is_that_of_eager(layout):
    case = make_case(**LAYOUTS[layout])
    found, expected = (output(backend, case).transpose(1, 2)[case.meaningful] for backend in (FLEX, EAGER))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_rows_that_see_nothing_are_zero():
    assert (output(FLEX, make_case("mlm", tokens=9, padding=9, predicted=0))[-1] == 0).all()


@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_originals(case):
    with torch.no_grad():
        logits = run(model_of(CASES[case], "flex"), case).logits
    torch.testing.assert_close(logits, tensor(f"{case}/logits"), atol=TOLERANCE, rtol=0)


def test_dropout_is_refused():
    model = model_of("mpnet", "flex")
    for layer in model.mpnet.encoder.layer:
        layer.attention.attn.dropout = 0.1
    with (
        pytest.raises(UserError, match=r"no dropout, and attention_probs_dropout_prob is 0\.1\. Set it to 0"),
        torch.no_grad(),
    ):
        run(model, "mpnet")
    with torch.no_grad():
        run(model.eval(), "mpnet")


def test_gradients_on_a_cpu_are_refused():
    with pytest.raises(UserError, match="gradients on GPUs only, and the model is on 'cpu'"):
        run(model_of("mpnet", "flex"), "mpnet")


@needs_gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_on_a_gpu_output_and_gradients_are_those_of_eager(layout, dtype, tolerance):
    case = make_case(**LAYOUTS[layout], device="cuda", dtype=dtype)
    found = {name: x.cpu() for name, x in case.run("flex").items()}
    assert_same(found, case.in_fp32().run("eager"), tolerance)
