"""Draws items ahead in a thread, so that the device need not wait for them, and measures how long it does."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

DEPTH = 2  # items that are drawn or being drawn while one is in use

Item = TypeVar("Item")


def prefetched(draw: Callable[[int], Item], first: int, last: int, depth: int = DEPTH) -> Iterator[tuple[Item, float]]:
    """``draw(first)`` … ``draw(last)``, each with the seconds that the caller waited for it.

    An exception in ``draw`` is raised here when its item's turn comes. At most ``depth`` items lie in memory besides the
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
