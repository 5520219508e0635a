"""Tiles, warps and stages of the kernels of triton_kernels.py, by kind of device, type and width of a head.

The numbers are chosen, not found at run time: sums in tiles of another size are rounded otherwise, and a run must give the
same bits tomorrow. They were chosen so that all stays in registers (test_triton_compiles.py), not yet by time;
``benchmarks/tune_tiles.py`` measures others on a GPU and says which entries of the table are faster there.
"""

from types import MappingProxyType
from typing import NamedTuple

import torch


class Tiles(NamedTuple):
    """How a kernel divides its work."""

    row_tile: int
    """Rows of a tile; for the bias kernel sequences."""
    key_tile: int
    """Columns of a tile; divides 64, so that a tile is of tokens or of mask keys."""
    warps: int
    stages: int
    """Passes of the loop that loads run ahead."""
    registers: int | None = None
    """Of a thread at most; None: what the compiler likes."""


TABLE = MappingProxyType(
    {
        # wgmma: sm_90 to sm_119. A few registers fewer let a third block of 128 threads onto a multiprocessor of 65,536.
        ("forward", "wgmma"): Tiles(64, 64, 4, 2, registers=168),
        ("forward", "wgmma wide"): Tiles(64, 32, 4, 2),
        ("forward", "mma"): Tiles(64, 64, 4, 2),
        ("forward", "mma wide"): Tiles(64, 32, 4, 2),
        ("forward", "fp32"): Tiles(32, 32, 8, 2),
        ("backward", "wgmma"): Tiles(64, 64, 4, 3),
        ("backward", "wgmma wide"): Tiles(32, 64, 8, 3),
        ("backward", "mma"): Tiles(64, 32, 4, 3),
        ("backward", "mma wide"): Tiles(32, 32, 4, 3),
        ("backward", "fp32"): Tiles(32, 32, 8, 2),
        ("query", "wgmma"): Tiles(64, 64, 4, 3),
        ("query", "mma"): Tiles(64, 64, 4, 3),
        ("query", "fp32"): Tiles(32, 32, 4, 2),
        ("bias", "any"): Tiles(8, 128, 4, 2),
        ("delta", "any"): Tiles(64, 0, 4, 1),
    }
)


def kinds(head_width: int, dtype: torch.dtype, capability: int) -> tuple[str, ...]:
    """Name the kinds of entries that may hold, the most special first.

    Args:
        head_width: D.
        dtype: of query, key and value. In fp32 products are exact (no TF32) and go without tensor cores.
        capability: the device's compute capability, 80 or 90 and so on.
    """
    kind = "fp32" if dtype == torch.float32 else "wgmma" if 90 <= capability < 120 else "mma"
    return (f"{kind} wide", kind, "any") if head_width > 64 else (kind, "any")


def tiles_of(kernel: str, head_width: int, dtype: torch.dtype, capability: int) -> Tiles:
    """Look up a kernel: forward, delta, backward, query or bias; other arguments as in ``kinds``."""
    return next(TABLE[kernel, kind] for kind in kinds(head_width, dtype, capability) if (kernel, kind) in TABLE)


def configuration(kernel: str, head_width: int, dtype: torch.dtype, capability: int) -> dict[str, int | str]:
    """Name ``tiles_of`` as the kernel's ``constexpr`` parameters and Triton's options."""
    tiles = tiles_of(kernel, head_width, dtype, capability)
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    if tiles.registers:
        options["maxnreg"] = tiles.registers
    if kernel == "bias":
        return {"BATCH_TILE": tiles.row_tile, "KEY_TILE": tiles.key_tile, **options}
    head = {"HEAD_WIDTH": head_width, "HEAD_TILE": max(16, 1 << (head_width - 1).bit_length())}
    if kernel == "delta":
        return {**head, "ROW_TILE": tiles.row_tile, **options}
    return {**head, "ROW_TILE": tiles.row_tile, "KEY_TILE": tiles.key_tile, **options, "PRECISION": "ieee"}
