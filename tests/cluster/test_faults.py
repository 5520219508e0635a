"""What breaks between hosts: processes of one host killed, a link cut, launchers told to stop, hosts that do not fit."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from mpnet_ds.checkpoint.store import CheckpointStore, verify
from tests import runs
from tests.cluster.hosts import HOST_ENVIRONMENT
from tests.cluster.jobs import pretrain, start
from tests.cluster.test_training import assert_same_losses
from tests.runs import RECIPE, ROOT
from tests.training.faulty_runs import FAULTY, saved_steps

SLOW = [FAULTY, "slow@1"]  # steps of a second, so that something can happen between them
LOST_TIMEOUT = 10  # seconds
KEEP_ALIVE = {"PDSH_SSH_ARGS_APPEND": "-o ServerAliveInterval=2 -o ServerAliveCountMax=2"}  # supervise.sh's, in a hurry


def assert_goes_on(output: Path, data: Path, undisturbed) -> None:
    """The same run, continued by two ranks on this machine, ends with the losses of a run that nothing happened to."""
    before = saved_steps(output)[-1]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in HOST_ENVIRONMENT.items():
            patch.setenv(name, value)
        again = runs.pretrain(output, "--recipe", RECIPE, "--data", data, "--micro_batch_size", 4, ranks=2)
    assert f"at step {before}" in again.out, again.out + again.err
    assert_same_losses(again, undisturbed)


@pytest.mark.long  # below a link is cut, which says less to those that remain
@pytest.mark.parametrize("victim", [0, 1])
def test_processes_of_one_host_that_are_killed_end_the_run_and_it_goes_on(
    cluster, undisturbed, dataset_folder, tmp_path, victim
):
    first, *others = cluster.hosts
    slots, output = dict.fromkeys(others, 1), tmp_path / "run"
    job = start(cluster, slots, output, dataset_folder, "--lost_timeout", LOST_TIMEOUT, script=SLOW, at=first)
    job.wait_for_update(4)
    begin = time.monotonic()
    others[victim].kill()
    run = job.finish(timeout=60)
    assert run.code != 0
    assert time.monotonic() - begin < LOST_TIMEOUT + 20
    assert f"rank {victim} (node{victim + 2}) is lost" in run.err
    assert "The same command resumes" in run.err
    assert_goes_on(output, dataset_folder, undisturbed)


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_link_that_is_cut_ends_the_run_on_both_sides_and_it_goes_on(
    cluster, undisturbed, dataset_folder, tmp_path, victim
):
    first, *others = cluster.hosts
    slots, output = dict.fromkeys(others, 1), tmp_path / "run"
    limits = ("--lost_timeout", LOST_TIMEOUT)
    job = start(cluster, slots, output, dataset_folder, *limits, script=SLOW, at=first, env=KEEP_ALIVE)
    job.wait_for_update(4)
    begin = time.monotonic()
    others[victim].cut()
    run = job.finish(timeout=90)
    assert run.code != 0
    while others[victim].processes("faulty.py") and time.monotonic() - begin < 90:
        time.sleep(0.2)
    assert not others[victim].processes("faulty.py")  # it cannot tell anybody, but it does not wait for ever either
    assert f"rank {victim} (node{victim + 2}) is lost" in run.err
    others[victim].mend()
    assert_goes_on(output, dataset_folder, undisturbed)


@pytest.mark.long  # test_local_disks.py
@pytest.mark.parametrize("supervised", [True, False])
def test_sigterm_at_the_launcher_saves_on_all_hosts(cluster, undisturbed, dataset_folder, tmp_path, supervised):
    first, second, _ = cluster.hosts
    slots, output = {first: 1, second: 1}, tmp_path / "run"
    before = ("bash", "launch/supervise.sh") if supervised else ()
    arguments = ("--save_interval", 100)
    job = start(cluster, slots, output, dataset_folder, *arguments, script=SLOW, before=before)
    job.wait_for_update(3)
    job.process.send_signal(signal.SIGTERM)
    run = job.finish(timeout=90)
    deadline = time.monotonic() + 60
    while any(host.processes("faulty.py") for host in cluster.hosts) and time.monotonic() < deadline:
        time.sleep(0.1)
    if supervised:
        assert run.code == 75, run.err
        assert "everything is saved" in run.out
    (step,) = saved_steps(output)
    assert 3 <= step < 8
    verify(CheckpointStore(output).newest())
    assert_goes_on(output, dataset_folder, undisturbed)


def refused(cluster, slots, output, data, *arguments, code: int = 2) -> str:
    """What a run says that does not begin."""
    run = pretrain(cluster, slots, output, data, *arguments)
    assert run.code == code, run.out + run.err
    assert "Traceback" not in run.err
    assert not output.exists()
    return re.sub(r"^node\d: ", "", run.err, flags=re.MULTILINE)


@pytest.mark.long  # tests/ranks/test_rendezvous.py
def test_a_host_that_does_not_come_is_named(cluster, dataset_folder, tmp_path):
    first, second, third = cluster.hosts
    slots = {first: 1, second: 1, third: 1}
    third.kill_server()
    arguments = ("--join_timeout", 20, "--micro_batch_size", 1)
    said = refused(cluster, slots, tmp_path / "run", dataset_folder, *arguments, code=255)  # ssh's own is the highest
    assert "2 of 3 ranks are here after 20 s (--join_timeout); missing: rank 2 (node3)" in said


@pytest.mark.long
def test_more_slots_than_a_host_has_are_refused(cluster, dataset_folder, tmp_path):
    first, second, _ = cluster.hosts
    second.restrict_to_cores({next(iter(os.sched_getaffinity(0)))})
    said = refused(cluster, {first: 1, second: 2}, tmp_path / "run", dataset_folder, "--micro_batch_size", 1)
    assert "ranks 1, 2 (node2): node2 has 1 CPU cores, and no GPU, and is to run 2 ranks: correct its slots" in said


@pytest.mark.long  # tests/preflight/test_inspection.py
def test_a_missing_hostfile_is_refused(cluster, dataset_folder, tmp_path):
    command = ["deepspeed", "--hostfile", tmp_path / "nowhere", "launch/pretrain.py", "--data", dataset_folder]
    flags = ["--deepspeed_config", ROOT / "ds_configs" / "zero2.json", "--output_dir", tmp_path / "run"]
    done = cluster.hosts[0].run(*command, *flags, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert "error: no hostfile" in done.stderr
    assert str(tmp_path / "nowhere") in done.stderr


@pytest.mark.long  # tests/preflight/test_inspection.py has two ranks on one host
def test_another_version_of_a_package_and_another_dataset_on_one_host_are_refused(cluster, dataset_folder, tmp_path):
    first, second, _ = cluster.hosts
    import transformers

    metadata = next(Path(transformers.__file__).parent.parent.glob("transformers-*.dist-info")) / "METADATA"
    other = tmp_path / "METADATA"
    other.write_text(re.sub(r"^Version: .*$", "Version: 4.0.1", metadata.read_text(), flags=re.MULTILINE))
    second.bind(other, metadata)
    copy = shutil.copytree(dataset_folder, tmp_path / "copy")
    manifest = (copy / "dataset.json").read_text()
    digest = re.search(r'"sha256": "([0-9a-f]+)"', manifest)[1]
    (copy / "dataset.json").write_text(manifest.replace(digest, "0" * len(digest)))
    second.bind(copy, dataset_folder)
    said = refused(cluster, {first: 1, second: 1}, tmp_path / "run", dataset_folder)
    assert re.search(r'transformers is "\S+" on rank 0 \(node1\), but "4\.0\.1" on rank 1 \(node2\)', said)
    assert re.search(r"the dataset's checksum is \S+ on rank 0 \(node1\), but \S+ on rank 1 \(node2\)", said)
    assert f"the sha256 of {dataset_folder}/shard-00000" in said
