"""Runs on several hosts come to the losses of a run on one, and go on when their number changes."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cluster.hosts import Cluster, Host
from tests.cluster.jobs import pretrain
from tests.runs import Run

SLOTS = (2, 1, 1)


@pytest.fixture(scope="module")
def three_hosts(dataset_folder, tmp_path_factory) -> Run:
    """A run on three hosts, four ranks."""
    with Cluster(3) as cluster:
        slots = dict(zip(cluster.hosts, SLOTS, strict=True))
        return pretrain(cluster, slots, tmp_path_factory.mktemp("three") / "run", dataset_folder)


def go_on(cluster: Cluster, slots: Mapping[Host, int], run: Run, folder: Path, data: Path) -> Run:
    """Resumes a copy of a run on these hosts after its sixth step, the last checkpoint but one."""
    output = shutil.copytree(run.folder, folder / "run")
    shutil.rmtree(output / "checkpoints" / "step-00000008")
    again = pretrain(cluster, slots, output, data)
    assert "step-00000006 at step 6" in again.out, again.out + again.err
    return again


def assert_same_losses(run: Run, expected: Run) -> None:
    assert run.code == 0, run.out + run.err
    assert len(run.losses) == len(expected.losses) == 8
    assert run.losses == pytest.approx(expected.losses, abs=1e-5)
    assert run.eval_losses == pytest.approx(expected.eval_losses, abs=1e-5)


@pytest.mark.long  # test_local_disks.py comes to the same losses with the same configuration, after a kill
def test_two_hosts_give_the_losses_of_one_host_with_two_ranks(cluster, undisturbed, dataset_folder, tmp_path):
    first, second, _ = cluster.hosts
    run = pretrain(cluster, {first: 1, second: 1}, tmp_path / "run", dataset_folder, config="multi_node")
    assert_same_losses(run, undisturbed)


@pytest.mark.long  # below, a run of one host goes on with the same
def test_hosts_with_unequal_slots_work(three_hosts, undisturbed):
    assert_same_losses(three_hosts, undisturbed)


@pytest.mark.long
def test_a_run_of_three_hosts_goes_on_with_two(cluster, three_hosts, undisturbed, dataset_folder, tmp_path):
    first, _, third = cluster.hosts
    again = go_on(cluster, {third: 1, first: 1}, three_hosts, tmp_path, dataset_folder)
    assert "4 rank(s) → 2 rank(s)" in again.out
    assert_same_losses(again, undisturbed)


@pytest.mark.long  # tests/training/test_resume.py has it on one host
def test_a_run_of_one_host_goes_on_with_three(cluster, undisturbed, dataset_folder, tmp_path):
    slots = dict(zip(cluster.hosts, SLOTS, strict=True))
    again = go_on(cluster, slots, undisturbed, tmp_path, dataset_folder)
    assert "2 rank(s) → 4 rank(s)" in again.out
    assert_same_losses(again, undisturbed)
