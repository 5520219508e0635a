"""What the tests on several hosts share."""

from collections.abc import Iterator

import pytest

from tests.cluster.hosts import HOST_ENVIRONMENT, Cluster
from tests.runs import RECIPE, Run, pretrain


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Three hosts."""
    with Cluster(3) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def undisturbed(dataset_folder, run_once) -> Run:
    """Eight steps without dropout, ZeRO 2, two ranks on one machine: what runs on several hosts must come to.

    On the CPU, as on the hosts, also where this machine has a GPU.
    """
    arguments = ["--recipe", RECIPE, "--data", dataset_folder, "--micro_batch_size", 4]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in HOST_ENVIRONMENT.items():
            patch.setenv(name, value)
        return run_once("undisturbed", lambda output: pretrain(output, *arguments, ranks=2))
