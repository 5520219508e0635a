"""Hosts that share no file system for checkpoints: each has a disk of its own under the same path."""

import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mpnet_ds.checkpoint.consolidate import consolidate
from mpnet_ds.errors import UserError
from tests.cluster.hosts import Cluster, Host
from tests.cluster.jobs import pretrain, start
from tests.runs import Run
from tests.training.faulty_runs import FAULTY

OPTIM = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"


@dataclass
class Disks:
    """A cluster whose hosts see different disks at ``path``; the test sees their content in ``folders``."""

    cluster: Cluster
    path: Path
    folders: list[Path]
    data: Path

    @property
    def hosts(self) -> list[Host]:
        return self.cluster.hosts

    def train(self, hosts: list[Host], *arguments: object, **options) -> Run:
        """One rank on each of these hosts; the metrics are read on the first host's disk."""
        slots, options = dict.fromkeys(hosts, 1), {"config": "multi_node"} | options
        run = pretrain(self.cluster, slots, self.path / "run", self.data, *arguments, **options)
        return replace(run, folder=self.folders[self.hosts.index(hosts[0])] / "run")

    def checkpoint(self, number: int, step: int) -> Path:
        return self.folders[number] / "run" / "checkpoints" / f"step-{step:08d}"

    def state(self) -> dict[Path, tuple]:
        """Names on all disks, and which files they are; folders look changed where a token was for a moment."""
        found = [path for folder in self.folders for path in folder.rglob("*")]
        return {path: (path.stat().st_mtime_ns, path.stat().st_ino) if path.is_file() else () for path in found}

    def steps(self, number: int) -> list[int]:
        """Updates of the checkpoints on a disk."""
        folder = self.folders[number] / "run" / "checkpoints"
        return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))

    def files(self, number: int, step: int) -> set[str]:
        return {path.name for path in self.checkpoint(number, step).iterdir()}


@pytest.fixture(scope="module")
def disks(dataset_folder, tmp_path_factory) -> Iterator[Disks]:
    with Cluster(3) as cluster:
        path = tmp_path_factory.mktemp("hosts") / "disk"
        yield Disks(cluster, path, [host.disk(path) for host in cluster.hosts], dataset_folder)


@pytest.fixture(scope="module")
def stopped(disks) -> tuple[Run, int]:
    """Two hosts, whose launcher gets SIGTERM after its third step: the run, and the step of its only checkpoint."""
    slots, output = dict.fromkeys(disks.hosts[:2], 1), disks.path / "run"
    options = {"config": "multi_node", "script": [FAULTY, "slow@1"]}  # steps of a second
    job = start(disks.cluster, slots, output, disks.data, "--save_interval", 100, **options)
    job.wait_for_update(3, output=disks.folders[0] / "run")
    job.process.send_signal(signal.SIGTERM)
    run = job.finish(timeout=90)
    deadline = time.monotonic() + 60
    while any(host.processes("faulty.py") for host in disks.hosts) and time.monotonic() < deadline:
        time.sleep(0.1)
    (step,) = disks.steps(0)
    return run, step


@pytest.fixture(scope="module")
def resumed(disks, stopped) -> Run:
    return disks.train(disks.hosts[:2])


def copy_missing(source: Path, target: Path) -> None:
    """What ``rsync -a --ignore-existing`` does."""
    for path in source.rglob("*"):
        place = target / path.relative_to(source)
        if path.is_file() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place)


def test_each_disk_has_its_own_shards_and_what_every_rank_reads(disks, stopped):
    """Saved at SIGTERM, which reaches the launcher alone."""
    run, step = stopped
    assert run.code != 0, run.out + run.err
    assert 3 <= step < 8
    assert "Checkpoints are on 2 disks that are not shared: node1; node2" in run.out
    common = {"mp_rank_00_model_states.pt", "manifest.json", "tokenizer"}
    for number in (0, 1):
        assert disks.files(number, step) == common | {OPTIM.format(number)}
    model = [(disks.checkpoint(number, step) / "mp_rank_00_model_states.pt").read_bytes() for number in (0, 1)]
    assert model[0] == model[1]
    assert not any(path for folder in disks.folders for path in folder.rglob(".mpnet_ds.token*"))


def test_the_same_hosts_go_on_to_the_losses_of_an_undisturbed_run(disks, stopped, resumed, undisturbed):
    _, step = stopped
    assert "Done: 8 steps" in resumed.out, resumed.out + resumed.err
    assert f"step-{step:08d} at step {step}" in resumed.out
    assert resumed.losses == pytest.approx(undisturbed.losses, abs=1e-5)
    assert resumed.eval_losses == pytest.approx(undisturbed.eval_losses, abs=1e-5)
    assert [disks.files(number, 8) >= {OPTIM.format(number)} for number in (0, 1)] == [True, True]


@pytest.mark.long  # tests/ranks/test_disks.py
def test_other_hosts_are_refused_and_nothing_is_touched(disks, resumed):
    first, second, third = disks.hosts
    before = disks.state()
    swapped = disks.train([second, first])
    assert swapped.code == 2, swapped.out + swapped.err
    assert re.search(rf"{OPTIM.format(1)}, from which rank 1 resumes, is on a local disk of node2", swapped.err)
    assert re.search(rf"{OPTIM.format(0)}, from which rank 0 resumes, is on a local disk of node1", swapped.err)
    replaced = disks.train([first, third])
    assert replaced.code == 2, replaced.out + replaced.err
    assert "has no checkpoints on node3, but on node1 (step-00000008)" in replaced.err
    fewer = disks.train([first])
    assert fewer.code == 2, fewer.out + fewer.err
    assert "a conversion (2 rank(s) → 1 rank(s)) needs the files of all" in fewer.err
    assert f"{OPTIM.format(1)} is on a local disk of node2" in fewer.err
    assert disks.state() == before


def test_consolidation_names_the_host_whose_shards_are_missing_and_works_after_a_copy(disks, resumed, undisturbed, tmp_path):
    parts = [shutil.copytree(disks.checkpoint(number, 8), tmp_path / f"part-{number}") for number in (0, 1)]
    for number, part in enumerate(parts):
        with pytest.raises(UserError) as refused:
            consolidate(part, tmp_path / "refused")
        other = 1 - number
        assert f"{OPTIM.format(other)} is on a local disk of node{other + 1}" in str(refused.value)
        source = disks.path / "run" / "checkpoints" / "step-00000008"
        assert f"rsync -a --ignore-existing node{other + 1}:{source}/ {part}/" in str(refused.value)
        assert not (tmp_path / "refused").exists()
    copy_missing(parts[1], parts[0])
    consolidate(parts[0], tmp_path / "weights")
    consolidate(undisturbed.newest_checkpoint, tmp_path / "plain")
    weights, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("weights", "plain"))
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(expected[name]) for name in expected)


@pytest.mark.long  # tests/ranks/test_disks.py
def test_a_damaged_shard_is_named_with_its_host_and_the_checkpoint_before_is_used(disks, resumed, undisturbed):
    shard = disks.checkpoint(1, 8) / OPTIM.format(1)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    again = disks.train(disks.hosts[:2])
    assert "Done: 8 steps" in again.out, again.out + again.err
    assert "warning: step-00000008 is damaged and set aside: node2: " in again.out
    assert OPTIM.format(1) in again.out
    assert "step-00000006 at step 6" in again.out
    for number in (0, 1):
        assert (disks.folders[number] / "run" / "checkpoints" / "damaged-step-00000008").is_dir()
    assert again.losses == pytest.approx(undisturbed.losses, abs=1e-5)
