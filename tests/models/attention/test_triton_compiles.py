"""The Triton kernels compiled for GPUs, without one: nothing is left for the first user to find, and registers suffice.

The compiler (with its own ptxas) comes with the package triton.
"""

import re
import subprocess
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="needs the package triton (Linux)")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from mpnet_ds.models.attention import triton_kernels  # noqa: E402

KERNELS = ("forward", "delta", "backward", "query", "bias")
INT32 = ("row_indices", "row_levels", "column_from", "column_until", "row_factors", "column_factors", "predictions")
FP32 = ("lse", "delta")
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
DROPPED = round(0.1 * 2**32)


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """What one test has compiled, the next one finds; what was compiled before does not count."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def type_of(name: str, dtype: torch.dtype) -> str:
    if name in INT32 or name in FP32:
        return "*i32" if name in INT32 else "*fp32"
    if name == "scale":
        return "fp32"
    is_number = name == "heads" or name in triton_kernels.VARYING or name.endswith(("_batch", "_head", "_row"))
    return "i32" if is_number else f"*{TYPES[dtype]}"


def compiled(name: str, capability: int, width: int = 64, dtype: torch.dtype = torch.bfloat16):
    """The kernel as it is launched for heads of that width: pointers and strides divisible by 16, all else unknown."""
    kernel = getattr(triton_kernels, f"{name}_kernel")
    settings = triton_kernels.configuration(name, width, dtype, capability)
    options = {option: settings.pop(option) for option in ("num_warps", "num_stages", "maxnreg") if option in settings}
    names = [parameter.name for parameter in kernel.params]
    constants = settings | {n: v for n, v in {"DROPPED": DROPPED, "HAS_MASK_KEYS": True}.items() if n in names}
    types = {n: "constexpr" if n in constants else type_of(n, dtype) for n in names}
    aligned = [n for n in names if types[n].startswith("*") or n.endswith(("_batch", "_head", "_row"))]
    aligned = [n for n in aligned if n not in triton_kernels.VARYING]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    source = ASTSource(kernel, types, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(program, folder: Path) -> tuple[int, int]:
    """Registers of a thread, and bytes of a thread's stack, where the compiler keeps what does not fit into registers."""
    file = folder / "kernel.cubin"
    file.write_bytes(program.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    text = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()
    return int(registers), int(stack)


@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.long), 90])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_of_mpnet_base_keep_everything_in_registers(kernel, capability, tmp_path):
    program = compiled(kernel, capability)
    _, stack = resources(program, tmp_path)
    assert stack == 0
    assert program.metadata.shared <= 99 * 1024  # what every GPU since 2020 has for a block


def test_several_blocks_fit_on_an_h100(tmp_path):
    registers = {name: resources(compiled(name, 90), tmp_path)[0] for name in ("forward", "backward")}
    assert registers["forward"] <= 168  # 3 blocks of 128 threads of the 65,536 registers
    assert registers["backward"] <= 255  # 2 blocks


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
def test_other_widths_and_types_keep_all_but_a_few_words_in_registers(kernel, width, dtype, capability, tmp_path):
    _, stack = resources(compiled(kernel, capability, width, dtype), tmp_path)
    assert stack <= 16


@pytest.mark.long
@pytest.mark.parametrize("width", [16, 64, 128])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_every_kernel_compiles_for_every_gpu(width, dtype, capability):
    for kernel in KERNELS:
        program = compiled(kernel, capability, width, dtype)
        assert program.metadata.shared <= 99 * 1024
