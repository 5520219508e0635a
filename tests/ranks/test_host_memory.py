"""Whether memory that was freed is taken again without the kernel's help, by counting the pages that it had to bring."""

import os
import subprocess
import sys

import pytest

from mpnet_ds.ranks.host_memory import keep_freed_memory

PAGES = 64 * 2**20 // os.sysconf("SC_PAGE_SIZE")  # of a tensor
PROGRAM = f"""
import resource, sys, torch
from mpnet_ds.ranks.host_memory import keep_freed_memory
print(keep_freed_memory() if "keep" in sys.argv else None)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):  # until there are gaps of the right size
    torch.ones({PAGES} * 1024)
before = faults()
for _ in range(10):
    torch.ones({PAGES} * 1024)
print(faults() - before)
"""


def pages_brought(*arguments: str, **environment: str) -> tuple[str, int]:
    """What ``keep_freed_memory`` said, and the page faults of making ten tensors of 64 MiB one after the other."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], env=variables, capture_output=True, text=True, check=True
    )
    said, count = done.stdout.split()
    return said, int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_freed_memory_is_kept():
    said, count = pages_brought("keep")
    assert said == "True"
    assert count < PAGES / 4


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_by_default_it_is_given_back_each_time():
    """Should a C library learn to do better, this fails, and the module can go."""
    assert pages_brought()[1] > 5 * PAGES / 8


@pytest.mark.parametrize("variable", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES"])
def test_the_users_own_settings_stay(monkeypatch, variable):
    monkeypatch.setenv(variable, "")
    assert not keep_freed_memory()
