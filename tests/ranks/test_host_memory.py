"""Whether freed memory is used again without the kernel, by counting page faults."""

import os
import subprocess
import sys

import pytest

from mpnet_ds.ranks.host_memory import keep_freed_memory

PAGES = 64 * 2**20 // os.sysconf("SC_PAGE_SIZE")  # of a tensor
PROGRAM = f"""
import resource, torch
from mpnet_ds.ranks.host_memory import keep_freed_memory
def count_faults():
    for _ in range(20):  # until there are gaps of the right size
        torch.ones({PAGES} * 1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones({PAGES} * 1024)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(count_faults(), keep_freed_memory(), count_faults())
"""


@pytest.fixture(scope="module")
def said() -> list[str]:
    """Page faults of making ten tensors of 64 MiB one after the other, by default and with ``keep_freed_memory``."""
    if sys.platform != "linux":
        pytest.skip("needs glibc")
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout.split()


def test_freed_memory_is_kept(said):
    _, is_kept, count = said
    assert is_kept == "True"
    assert int(count) < PAGES / 4


def test_by_default_it_is_given_back_each_time(said):
    """Should a C library learn to do better, this fails, and the module can go."""
    assert int(said[0]) > 5 * PAGES / 8


@pytest.mark.parametrize("variable", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES"])
def test_the_users_own_settings_stay(monkeypatch, variable):
    monkeypatch.setenv(variable, "")
    assert not keep_freed_memory()
