"""Safetensors files, written a few MiB at a time.

Layout (https://huggingface.co/docs/safetensors), for one fp32 tensor "a" of shape [3]:

    8 bytes     length of what follows, little-endian
    JSON        {"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}, padded
                with blanks to a multiple of 8
    12 bytes    the values; offsets count from here

Wider types come first, so that every tensor begins at a multiple of its element size. Above ``max_shard_size`` there
are several files and ``model.safetensors.index.json``, as ``transformers`` writes and reads them.
"""

import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from mpnet_ds.errors import UserError, did_you_mean
from mpnet_ds.progress import Progress
from mpnet_ds.zero.torch_file import StoredTensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INDEX = "model.safetensors.index.json"
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def dtype_of(name: str) -> torch.dtype:
    """The type of numbers by its short name; ``UserError`` with the nearest one if it does not exist."""
    if name not in DTYPES:
        raise UserError(f"unknown dtype '{name}'. {did_you_mean(name, DTYPES)}")
    return DTYPES[name]


def cast(name: str, numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert the values of a weight; raise ``UserError``, naming it, where a finite one would become infinite."""
    values = numbers.to(dtype)
    is_narrower = dtype.is_floating_point and torch.finfo(dtype).max < torch.finfo(numbers.dtype).max
    if is_narrower and (values.isinf() & numbers.isfinite()).any():
        wider = [short for short, other in DTYPES.items() if torch.finfo(other).max > torch.finfo(dtype).max]
        cure = f": choose --dtype {' or '.join(reversed(wider))}" if wider else ""
        raise UserError(f"{name} has values that {str(dtype).removeprefix('torch.')} cannot hold{cure}.")
    return values


def write_weights(
    tensors: Mapping[str, StoredTensor | Tensor],
    folder: Path,
    dtype: torch.dtype,
    max_shard_size: int | str = "5GB",
    tied: Mapping[str, str] | None = None,
    check: Callable[[str, Tensor], None] | None = None,
    show_progress: bool = False,
    stem: str = "model",
) -> list[Path]:
    """Write ``model.safetensors``, or several files and their index, into ``folder``; return the files.

    Args:
        tensors: in the order in which they are best read.
        dtype: of all floating-point tensors; others stay as they are.
        max_shard_size: bytes, or text such as ``"5GB"``.
        tied: second name → first name of tensors that are left out; noted as ``safetensors.torch.load_model`` expects it.
        check: called with name and values as read, a chunk at a time; may raise.
        stem: of the files' names.
    Raises:
        UserError: a value that ``dtype`` cannot hold, a type that the format does not have, a full disk.
    """
    types = {name: dtype if tensor.dtype.is_floating_point else tensor.dtype for name, tensor in tensors.items()}
    for name, kind in types.items():
        if kind not in _NAMES:
            raise UserError(f"{name} is {kind}, a type that safetensors files do not have here.")
    sizes = {name: math.prod(tensor.shape) * types[name].itemsize for name, tensor in tensors.items()}
    plan = split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=int,
        filename_pattern=stem + "{suffix}.safetensors",
        get_storage_id=lambda size: None,
        max_shard_size=max_shard_size,
    )
    with Progress("Writing", sum(sizes.values()), "B", enabled=show_progress) as progress:
        for file_name, names in plan.filename_to_tensors.items():
            names = sorted(names, key=lambda name: -types[name].itemsize)  # a stable sort
            header = _header({name: (types[name], tensors[name].shape) for name in names}, tied or {})
            total = len(header) + sum(sizes[name] for name in names)
            with _full_disk_named(folder, total), open(folder / file_name, "wb") as file:
                _allocate(file, total)
                file.write(header)
                for name in names:
                    for chunk in _chunks(tensors[name]):
                        if check is not None:
                            check(name, chunk)
                        values = cast(name, chunk, types[name])
                        file.write(memoryview(values.contiguous().view(torch.uint8).numpy()))
                        progress.update(values.nbytes)
    index_name = INDEX.replace("model", stem, 1)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / index_name).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [folder / name for name in [*plan.filename_to_tensors, *([index_name] if plan.is_sharded else [])]]


def _allocate(file, size: int) -> None:
    """Allocate the file at once: writing is faster then, and a full disk is noticed before anything is read."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV):  # what file systems answer that cannot
            raise


@contextmanager
def _full_disk_named(folder: Path, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{folder}: {error.strerror}: {size:,} bytes are needed for this file.") from error


def _header(entries: dict[str, tuple[torch.dtype, tuple]], tied: Mapping[str, str]) -> bytes:
    content: dict = {"__metadata__": {"format": "pt"} | {name: source for name, source in tied.items() if source in entries}}
    end = 0
    for name, (dtype, shape) in entries.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        content[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _chunks(tensor: StoredTensor | Tensor) -> Iterable[Tensor]:
    return [tensor.flatten()] if isinstance(tensor, Tensor) else tensor.chunks()
