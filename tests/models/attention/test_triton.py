"""The back-end ``triton`` without a GPU: its kernels in Triton's interpreter, its dropout's numbers, its errors."""

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version

from mpnet_ds.errors import UserError
from mpnet_ds.models.attention.backend import choose_backend
from tests.models.attention.cases import assert_same, make_case
from tests.models.test_parity import model_of, run

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs the package triton (Linux)")
interpreter_is_broken = pytest.mark.skipif(
    importlib.util.find_spec("triton") is not None
    and Version(version("triton")) < Version("3.7")
    and Version(np.__version__) >= Version("2.4"),
    reason="the interpreter of triton < 3.7 cannot count loops with NumPy >= 2.4",
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_triton
@interpreter_is_broken
@pytest.mark.parametrize("which", ["not long", pytest.param("long", marks=pytest.mark.long)])
def test_the_kernels_in_the_interpreter(which):
    # In a process of their own: the interpreter is chosen once, when triton is imported.
    here = Path(__file__).parent
    tests = [str(folder / "triton_interpreted.py") for folder in (here, here.parent / "layers")]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "--color=no", "-m", which, *tests]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@needs_triton
def test_a_model_on_a_cpu_is_refused():
    with pytest.raises(UserError, match=r"needs a GPU, and the model is on 'cpu'\. Use attention 'auto'"):
        run(model_of("mpnet", "triton"), "mpnet")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="package triton, which is not installed"):
        run(model_of("mpnet", "triton"), "mpnet")


def test_importing_the_model_imports_no_triton():
    code = "import sys, mpnet_ds.model; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@needs_gpu
@needs_triton
@pytest.mark.parametrize("objective", ["mpnet", "plm", "mlm"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("width", [16, 24, 64, 128])
def test_on_a_gpu_output_and_gradients_are_those_of_eager(objective, dtype, tolerance, width):
    last_layer = objective == "mpnet" and width == 64
    shape = {"tokens": 200, "predicted": 33, "padding": 7, "unused": 2, "width": width, "last_layer": last_layer}
    shape["near"] = 4.0 if width == 24 else 0.0
    case = make_case(objective, **shape, device="cuda", dtype=dtype)
    found = {name: x.cpu() for name, x in case.run("triton").items()}
    assert_same(found, case.in_fp32().run("eager"), tolerance)


@needs_gpu
@needs_triton
def test_on_a_gpu_gradients_are_the_same_bit_for_bit():
    case = make_case("mpnet", tokens=200, predicted=33, width=64, device="cuda", dtype=torch.bfloat16)
    first = case.run("triton", dropout=0.1)
    for name, tensor in case.run("triton", dropout=0.1).items():
        assert torch.equal(tensor, first[name])


def test_auto_does_not_pick_it():
    assert choose_backend("auto", torch.device("cuda")).name == "sdpa"
