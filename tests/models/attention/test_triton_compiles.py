"""The Triton kernels compiled for GPUs, without one: nothing is left for the first user to find, and registers suffice.

The compiler (with its own ptxas) comes with the package triton.
"""

import re

import pytest
import torch

pytest.importorskip("triton", reason="needs the package triton (Linux)")

from benchmarks.compiled_kernels import KERNELS, TYPES, compile_kernel, compiled, elements_of_tile, examine
from mpnet_ds.models.attention import triton_kernels
from mpnet_ds.models.layers import cross_entropy_kernel, dropout_kernel, gelu_kernel, residual_norm_kernels


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """What one test has compiled, the next one finds; what was compiled before does not count."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.long), 90])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_of_mpnet_base_keep_everything_in_registers(kernel, capability):
    found = examine(compiled(kernel, capability), capability, elements_of_tile(kernel, capability))
    assert found.stack == 0
    assert found.shared <= 99 * 1024  # what every GPU since 2020 has for a block


@pytest.mark.parametrize(("kernel", "registers", "instructions"), [("forward", 168, 24), ("backward", 255, 33)])
def test_products_on_an_h100_do_not_wait_for_each_other(kernel, registers, instructions):
    found = examine(compiled(kernel, 90), 90, elements_of_tile(kernel, 90))
    assert found.warnings == ()  # C7515: ptxas lets each wgmma wait for the one before
    assert found.registers <= registers  # 3 and 2 blocks of 128 threads share the 65,536 registers
    assert found.instructions <= instructions


@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_products_run_on_hoppers_tensor_cores_and_biases_are_loaded_16_bytes_a_thread(kernel):
    text = compiled(kernel, 90).asm["ptx"]
    assert len(re.findall(r"wgmma\.mma_async", text)) >= 8
    assert not re.findall(r"ld\.global[.\w]*\.b16\b", text)  # a bf16 at a time


@pytest.mark.parametrize(
    ("width", "dtype", "capability"),
    [
        pytest.param(128, torch.bfloat16, 90, marks=pytest.mark.long),
        (24, torch.float16, 80),
        pytest.param(64, torch.float32, 90, marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_other_widths_and_types_keep_all_but_a_few_words_in_registers(kernel, width, dtype, capability):
    assert examine(compiled(kernel, capability, width, dtype), capability, 1).stack <= 16


TYPES_OF_LAYERS = {
    **dict.fromkeys(("mean", "scale", "losses", "grad_weight", "grad_bias", "grad_bias_of_x", "sums"), "*fp32"),
    **{"labels": "*i64", "seeds": "*i64", **dict.fromkeys(("hits", "row_factors", "column_factors"), "*i32")},
    **dict.fromkeys(("width", "stride", "rows", "rows_of_sequence", "numbers", "of_rows", "columns"), "i32"),
    "eps": "fp32",
}
LAYERS = [
    (cross_entropy_kernel.score_kernel, {"IS_RECORDED": True, "BLOCK": 4096}, 8),
    (residual_norm_kernels.forward_kernel, {"KEEP": 0.9, "BLOCK": 1024}, 4),
    (residual_norm_kernels.backward_kernel, {"KEEP": 0.9, "BLOCK": 1024}, 4),
    (dropout_kernel.drop_kernel, {"KEEP": 0.9, "BLOCK": dropout_kernel.BLOCK}, 4),
    (triton_kernels.factors_kernel, {"BLOCK": triton_kernels.FACTORS}, 4),
    (gelu_kernel.backward_kernel, {"ROW_TILE": gelu_kernel.ROW_TILE, "BLOCK": gelu_kernel.BLOCK}, 4),
]


@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.long), 90])
@pytest.mark.parametrize(("kernel", "constants", "num_warps"), LAYERS, ids=lambda value: getattr(value, "__name__", ""))
def test_kernels_of_layers_compile_and_stay_in_registers(kernel, constants, num_warps, capability):
    names = (parameter.name for parameter in kernel.params)
    types = {name: TYPES_OF_LAYERS.get(name, "*bf16") for name in names if name not in constants}
    program = compile_kernel(kernel, types, constants, capability, {"num_warps": num_warps})
    assert examine(program, capability, 1).stack == 0


@pytest.mark.long
@pytest.mark.parametrize("width", [16, 64, 128])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_every_kernel_compiles_for_every_gpu(width, dtype, capability):
    for kernel in KERNELS:
        program = compiled(kernel, capability, width, dtype)
        assert program.metadata.shared <= 99 * 1024
