"""Batches on their way to the device: drawn and packed ahead in a thread, unpacked where they are used.

int64 travels as int32, at half the width, from pinned memory, so that the copies are asynchronous.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

DEPTH = 2  # items drawn, or being drawn, while one is in use

Item = TypeVar("Item")


def prefetched(draw: Callable[[int], Item], first: int, last: int, depth: int = DEPTH) -> Iterator[tuple[Item, float]]:
    """Yield ``draw(first)`` … ``draw(last)``, each with the seconds that the caller waited for it.

    An exception in ``draw`` is raised here when its item's turn comes. At most ``depth`` items are in memory besides the
    caller's.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    try:
        upcoming = deque(pool.submit(draw, number) for number in range(first, min(first + depth, last + 1)))
        for number in range(first, last + 1):
            begin = time.perf_counter()
            item = upcoming.popleft().result()
            waited = time.perf_counter() - begin
            if number + depth <= last:
                upcoming.append(pool.submit(draw, number + depth))
            yield item, waited
    finally:
        pool.shutdown(cancel_futures=True)


def pack(batch: dict[str, np.ndarray], device: torch.device, omitted_if_true: Sequence[str] = ()) -> dict[str, Tensor]:
    """Turn what an objective draws into tensors in host memory: int64 as int32 if it fits, other types as they are.

    Args:
        omitted_if_true: boolean arrays that are omitted if all True.
    """
    needed = {name: array for name, array in batch.items() if name not in omitted_if_true or not array.all()}
    tensors = {name: torch.from_numpy(_narrowed(array)) for name, array in needed.items()}
    return {name: tensor.pin_memory() for name, tensor in tensors.items()} if device.type == "cuda" else tensors


def _narrowed(array: np.ndarray) -> np.ndarray:
    """Narrow int64 to int32 if all numbers fit; leave other types as they are."""
    if array.dtype != np.int64:
        return array
    narrow = array.astype(np.int32)
    return narrow if np.array_equal(narrow, array) else array


def unpack(packed: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Turn a packed batch into a module's arguments, on the device."""
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in packed.items()}
    return {name: tensor.long() if tensor.dtype == torch.int32 else tensor for name, tensor in moved.items()}
