"""The Triton attention kernels compiled for a GPU that need not be there: registers, instructions, warnings of ptxas.

The compiler (with its own ptxas and disassembler) comes with the package triton; what it makes depends on its version.
"""

import re
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mpnet_ds.models.attention import triton_kernels
from mpnet_ds.models.attention.triton_tiles import configuration

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
KERNELS = ("forward", "backward", "query", "bias", "delta")
DROPPED = round(0.1 * 2**32)
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
INT32 = (
    *("row_indices", "row_levels", "column_from", "column_until"),
    *("predictions", "predicting", "row_factors", "column_factors"),
)
FP32 = ("lse", "delta")
OPTIONS = ("num_warps", "num_stages", "maxnreg")


class Kernel(NamedTuple):
    """What became of a kernel."""

    registers: int
    """Of a thread."""
    stack: int
    """Bytes of a thread that did not fit into registers."""
    shared: int
    """Bytes of shared memory of a block."""
    instructions: float | None
    """Of the longest loop, for each element of a tile; None without a loop."""
    warnings: tuple[str, ...]
    """Numbers of ptxas' warnings: C7515 says that products (wgmma) wait for each other."""


def compiled(
    name: str,
    capability: int,
    width: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    dropped: int = DROPPED,
    settings: Mapping[str, int] | None = None,
):
    """Triton's program of a kernel as it is launched: pointers and strides divisible by 16, all other numbers unknown.

    Args:
        name: one of ``KERNELS``.
        capability: 80, 90, …
        width: of a head.
        dropped: probability of dropout * 2**32.
        settings: as of ``triton_tiles.configuration``, which chooses them otherwise.
    """
    kernel = getattr(triton_kernels, f"{name}_kernel")
    settings = dict(settings or configuration(name, width, dtype, capability))
    options = {option: settings.pop(option) for option in OPTIONS if option in settings}
    names = [parameter.name for parameter in kernel.params]
    flags = {"DROPPED": dropped, "HAS_MASK_KEYS": True}
    constants = settings | {n: v for n, v in flags.items() if n in names}
    types = {n: _type_of(n, dtype) for n in names if n not in constants}
    strides = [n for n in names if n.endswith(("_batch", "_head", "_row")) and n not in triton_kernels.VARYING]
    return compile_kernel(kernel, types, constants, capability, options, strides)


def compile_kernel(
    kernel, types: Mapping[str, str], constants: Mapping, capability: int, options: dict, divisible: Collection[str] = ()
):
    """Triton's program of any kernel; pointers, and the numbers named, are divisible by 16.

    Args:
        types: of its parameters, as Triton writes them: ``*bf16``, ``i32``.
        constants: values of its ``constexpr`` parameters.
        options: num_warps and the like.
    """
    names = [parameter.name for parameter in kernel.params]
    aligned = [n for n in types if types[n].startswith("*") or n in divisible]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    signature = {n: types.get(n, "constexpr") for n in names}
    source = ASTSource(kernel, signature, dict(constants), attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def examine(program, capability: int, elements: int) -> Kernel:
    """Look at what ``compiled`` returned, by ptxas and its disassembler.

    Args:
        elements: of a tile, that a pass of the loop computes.
    """
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        ptx.write_text(program.asm["ptx"])
        target = f"--gpu-name=sm_{capability}{'a' if capability >= 90 else ''}"
        said = subprocess.run([TOOLS / "ptxas", "-v", target, ptx, "-o", cubin], capture_output=True, text=True, check=True)
        sass = subprocess.run([TOOLS / "nvdisasm", "-c", cubin], capture_output=True, text=True, check=True).stdout
    used = re.search(r"Used (\d+) registers", said.stderr)
    stack = re.search(r"(\d+) bytes stack frame", said.stderr)
    loop = _longest_loop(sass)
    threads = 32 * program.metadata.num_warps
    return Kernel(
        registers=int(used[1]),
        stack=int(stack[1]),
        shared=program.metadata.shared,
        instructions=loop * threads / elements if loop else None,
        warnings=tuple(sorted(set(re.findall(r"C75\d\d", said.stderr)))),
    )


def elements_of_tile(name: str, capability: int, width: int = 64, dtype: torch.dtype = torch.bfloat16) -> int:
    """Elements that a pass of a kernel's inner loop computes."""
    settings = configuration(name, width, dtype, capability)
    return settings.get("ROW_TILE", settings.get("BATCH_TILE", 1)) * settings.get("KEY_TILE", settings.get("HEAD_TILE", 1))


def _type_of(name: str, dtype: torch.dtype) -> str:
    """The type of a kernel's parameter, as Triton writes it."""
    if name in INT32 or name in FP32:
        return "*i32" if name in INT32 else "*fp32"
    if name == "scale":
        return "fp32"
    is_number = name == "heads" or name in triton_kernels.VARYING or name.endswith(("_batch", "_head", "_row"))
    return "i32" if is_number else f"*{TYPES[dtype]}"


def _longest_loop(sass: str) -> int:
    """Instructions of the longest loop."""
    labels, count, longest = {}, 0, 0
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = count
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
            count += 1
            target = re.search(r"\bBRA\b.*(\.L_x_\d+)", instruction[1])
            if target and target[1] in labels:
                longest = max(longest, count - labels[target[1]])
    return longest
