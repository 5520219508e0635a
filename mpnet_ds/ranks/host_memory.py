"""Host memory in a training step on CPU: kept by the C library instead of fetched again for each tensor.

glibc returns large blocks to the kernel as soon as they are freed, and requests them again for the next tensor: the kernel
then fills every page with zeros at its first touch. A training step makes and frees hundreds of such tensors, which took a
tenth (fp32) to a fifth (bf16) of its time on a CPU. Kept blocks cost memory instead: about a seventh more.
"""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_CHOSEN_BY_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Have glibc keep what this process frees; return whether it does.

    It does not if the environment configures malloc (MALLOC_…_, GLIBC_TUNABLES), nor with another C library.
    """
    if any(name in os.environ for name in _CHOSEN_BY_THE_USER):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*pair) for pair in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)))
