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
def undisturbed(dataset_folder, tmp_path_factory) -> Run:
    """Eight updates without dropout, ZeRO 2, two ranks on one machine: what runs on several hosts must come to.

    On the processor, as on the hosts, also where this machine has a GPU.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in HOST_ENVIRONMENT.items():
            patch.setenv(name, value)
        arguments = ["--recipe", RECIPE, "--data", dataset_folder, "--micro_batch_size", 4]
        run = pretrain(tmp_path_factory.mktemp("undisturbed") / "run", *arguments, ranks=2)
    assert run.code == 0, run.out + run.err
    return run
