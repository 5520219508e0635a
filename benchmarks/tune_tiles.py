"""Try other tiles for the Triton attention kernels: python benchmarks/tune_tiles.py

First every combination of tiles, warps, stages and registers is compiled for the device, on all cores, and those are kept
that need no memory beyond registers and shared memory, whose products do not wait for each other (C7515), and whose loop
has not many more instructions than the shortest. Then these, and today's entry of ``triton_tiles.TABLE``, are timed on the
GPU in one layer's shapes of mpnet-base: the whole of forward, or of backward, with all other kernels as they are today.

Prints a table, the fastest first, and the entries that would be faster by more than 2 %. Changing an entry changes the
rounding of what is trained with it. Without a GPU it compiles only, for ``--capability``.
"""

import multiprocessing
import sys
from argparse import Namespace
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from types import MappingProxyType
from unittest import mock

import torch
from compiled_kernels import Kernel, compiled, examine
from report import add_json_argument, print_table, show, write_results
from step_configuration import positive
from tqdm import tqdm

from mpnet_ds.command_line import Parser, run
from mpnet_ds.machine import available_cores
from mpnet_ds.models.attention import triton, triton_kernels, triton_tiles
from mpnet_ds.models.attention.triton_tiles import Tiles
from mpnet_ds.models.mpnet.visibility import two_stream_layout

HEADS, WIDTH, TOKENS, PREDICTED = 12, 64, 512, 77
DROPOUT = 0.1
DTYPE = torch.bfloat16
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that a block may have, by compute capability (CUDA's programming guide)."""
MORE_INSTRUCTIONS = 1.3
"""Of the shortest loop: how long a loop may be and still be timed."""
GAIN = 0.98
"""A change must take less than this share of today's time."""
CHOICES = MappingProxyType(
    {
        "forward": tuple(map(Tiles._make, product((32, 64, 128), (32, 64), (4, 8), (1, 2, 3), (None, 168)))),
        "backward": tuple(map(Tiles._make, product((32, 64, 128), (32, 64), (4, 8), (1, 2, 3), (None, 168)))),
        "query": tuple(map(Tiles._make, product((64, 128), (32, 64), (4, 8), (2, 3, 4), (None,)))),
        "bias": tuple(map(Tiles._make, product((4, 8, 16), (64, 128, 256), (2, 4, 8), (1, 2, 3), (None,)))),
    }
)


@dataclass
class Candidate:
    """Tiles of a kernel, what the compiler makes of them, and the time of the pass that they are part of."""

    kernel: str
    tiles: Tiles
    made: Kernel
    seconds: float | None = None


def main() -> None:
    parser = Parser("Try other tiles for the attention kernels.", "python benchmarks/tune_tiles.py --kernel backward")
    parser.add_argument("--kernel", nargs="+", default=list(CHOICES), choices=list(CHOICES), help="all")
    parser.add_argument("--sequences", type=positive, default=64, metavar="N", help="of 512 tokens (64)")
    parser.add_argument("--capability", type=int, metavar="N", help="to compile for without a GPU (90)", default=90)
    add_json_argument(parser)
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        arguments.capability = triton_kernels.capability_of(torch.empty(0, device="cuda"))
    candidates = [one for kernel in arguments.kernel for one in promising(kernel, arguments.capability)]
    if on_gpu:
        measure(candidates, arguments)
    else:
        print("No GPU: compiled, not timed.", file=sys.stderr)
    print_candidates(candidates, arguments.capability)
    write_results(arguments.json, [asdict(one) for one in candidates], capability=arguments.capability)


def today(kernel: str, capability: int) -> Tiles:
    """The table's entry."""
    return triton_tiles.tiles_of(kernel, WIDTH, DTYPE, capability)


def promising(kernel: str, capability: int) -> list[Candidate]:
    """Compile all choices of a kernel; those worth timing, today's first."""
    choices = sorted({*CHOICES[kernel], today(kernel, capability)}, key=str)
    with ProcessPoolExecutor(available_cores(), multiprocessing.get_context("spawn")) as pool:
        made = pool.map(compile_tiles, *zip(*((kernel, tiles, capability) for tiles in choices), strict=True))
        found = [
            Candidate(kernel, tiles, one)
            for tiles, one in zip(choices, tqdm(made, kernel, len(choices), unit="program"), strict=True)
            if one is not None
        ]
    return choose(found, today(kernel, capability), SHARED.get(capability, 99))


def choose(found: Iterable[Candidate], current: Tiles, shared_kib: int) -> list[Candidate]:
    """Leave out what spills, waits or has a long loop, but not ``current``, which comes first."""
    fits = [
        one for one in found
        if one.tiles == current or not (one.made.stack or one.made.warnings or one.made.shared > shared_kib * 1024)
    ]  # fmt: skip
    shortest = min(one.made.instructions for one in fits)
    kept = [one for one in fits if one.tiles == current or one.made.instructions <= MORE_INSTRUCTIONS * shortest]
    return sorted(kept, key=lambda one: (one.tiles != current, one.made.instructions))


def settings_of(kernel: str, tiles: Tiles, capability: int) -> dict:
    """The kernel's settings with other tiles."""
    kind = triton_tiles.kinds(WIDTH, DTYPE, capability)
    with mock.patch.object(triton_tiles, "TABLE", {**triton_tiles.TABLE, **{(kernel, one): tiles for one in kind}}):
        return triton_tiles.configuration(kernel, WIDTH, DTYPE, capability)


def compile_tiles(kernel: str, tiles: Tiles, capability: int) -> Kernel | None:
    """Compile a choice in a process of its own; None if the compiler refuses it."""
    try:
        program = compiled(kernel, capability, WIDTH, DTYPE, settings=settings_of(kernel, tiles, capability))
        return examine(program, capability, tiles.row_tile * tiles.key_tile)
    except Exception:  # whatever the compiler and ptxas raise: such tiles cannot be used
        return None


# On a GPU


def measure(candidates: list[Candidate], arguments: Namespace) -> None:
    """Fill in ``seconds``; a choice that fails on the device keeps None."""
    from triton.testing import do_bench

    passes = passes_of_a_layer(arguments.sequences, torch.device("cuda"))
    configuration = triton_tiles.configuration
    for one in tqdm(candidates, "timing", unit="choice"):

        def chosen(kernel, *kind, one=one):
            return settings_of(one.kernel, one.tiles, kind[-1]) if kernel == one.kernel else configuration(kernel, *kind)

        with mock.patch.object(triton_kernels, "configuration", chosen):
            try:
                one.seconds = do_bench(passes[one.kernel == "forward"], return_mode="median") / 1e3
            except (RuntimeError, triton_kernels.triton.runtime.errors.TritonError) as error:
                print(f"{one.kernel} {one.tiles}: {error}", file=sys.stderr)


def passes_of_a_layer(sequences: int, device: torch.device):
    """Functions that compute backward and forward of one layer's attention, with random numbers and gradients."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(sequences, TOKENS, generator=generator).argsort(dim=1)[:, :PREDICTED].to(device)
    mask = torch.ones(sequences, TOKENS, dtype=torch.bool, device=device)
    layout = two_stream_layout(chosen, mask, True, None)
    table = torch.nn.Embedding(32, HEADS, device=device, dtype=DTYPE)
    prepared = [x.detach() for x in triton.TritonAttention().prepare(table, layout)]
    rows, keys = layout.row_indices.shape[1], layout.key_indices.shape[1]
    packed = torch.randn(sequences, rows, 3, HEADS, WIDTH, device=device, dtype=DTYPE)
    query, key, value = (x[:, :count].transpose(1, 2) for x, count in zip(packed.unbind(2), (rows, keys, keys), strict=True))
    inputs, dropped = (query, key, value, *prepared, torch.arange(sequences, device=device)), round(DROPOUT * 2**32)
    out, lse = triton.attention(*inputs, dropped, 0)
    gradient = torch.randn_like(out).transpose(1, 2)
    return (
        lambda: triton.attention_backward(*inputs, out, lse, gradient, dropped, 0, True),
        lambda: triton.attention(*inputs, dropped, 0),
    )


def print_candidates(candidates: list[Candidate], capability: int) -> None:
    """The tables, and the entries to change."""
    head = ("kernel, row and key tile", "warps", "stages", "limit", "registers", "KiB", "instructions", "ms of its pass")
    for kernel in dict.fromkeys(one.kernel for one in candidates):
        of_kernel = [one for one in candidates if one.kernel == kernel]
        current = of_kernel[0]
        of_kernel.sort(key=lambda one: (one.seconds is None, one.seconds or 0.0))
        lines = [
            (
                f"{kernel} {one.tiles.row_tile} {one.tiles.key_tile}{' (today)' * (one is current)}",
                *(str(one.tiles.warps), str(one.tiles.stages), str(one.tiles.registers or "")),
                *(str(one.made.registers), str(one.made.shared // 1024), show(one.made.instructions, ".1f")),
                show(one.seconds, ".3f", 1e3),
            )
            for one in of_kernel
        ]
        print_table(head, lines)
        best = of_kernel[0]
        if best.seconds and (current.seconds is None or best.seconds < GAIN * current.seconds):
            kind = triton_tiles.kinds(WIDTH, DTYPE, capability)[0]
            print(f"Faster: ({kernel!r}, {kind!r}): {best.tiles}")
        print()


if __name__ == "__main__":
    run(main)
