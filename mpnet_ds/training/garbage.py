"""Python's garbage collection, kept out of the steps.

By itself the interpreter looks through its objects whenever there are many new ones, at another moment on each rank, and all
ranks wait for the slowest. So what is there when training begins is set aside, and the rest is looked through where a run
waits anyway. Updates leave no cycles behind, so there is little to wait for (tests/training/test_garbage.py).

What it is worth, on two busy cores at ZeRO 2: looking through the 450,000 objects that PyTorch, DeepSpeed and transformers
make took 600 to 800 ms, with these set aside 0.2 ms. By itself that comes after tens of thousands of steps; in 300 steps
there were three small collections of 0.2 ms in all. So on a few CPUs the gain is nil.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def collected_by_hand() -> Iterator[Callable[[], int]]:
    """Collect garbage only when called: ``with collected_by_hand() as collect: … collect()``.

    Objects that are there on entering are never looked through. All is as before on leaving.
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield gc.collect
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
