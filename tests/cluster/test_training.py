"""Runs on several hosts come to the losses of a run on one, and go on when their number changes."""

import pytest

from tests.cluster.jobs import pretrain
from tests.runs import Run


def assert_same_losses(run: Run, expected: Run) -> None:
    assert run.code == 0, run.out + run.err
    assert len(run.losses) == len(expected.losses) == 8
    assert run.losses == pytest.approx(expected.losses, abs=1e-5)
    assert run.eval_losses == pytest.approx(expected.eval_losses, abs=1e-5)


def test_two_hosts_give_the_losses_of_one_host_with_two_ranks(cluster, undisturbed, dataset_folder, tmp_path):
    first, second, _ = cluster.hosts
    run = pretrain(cluster, {first: 1, second: 1}, tmp_path / "run", dataset_folder, config="multi_node")
    assert_same_losses(run, undisturbed)
