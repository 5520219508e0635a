"""Facts of a host, also where things are missing or broken."""

import shutil
import subprocess

import pytest

from mpnet_ds.cluster import probe
from mpnet_ds.cluster.check import LIBRARIES
from mpnet_ds.data.storage.manifest import DatasetManifest
from mpnet_ds.machine import limited_cores


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise OSError('libcudart.so.12: cannot open shared object file')", "OSError: libcudart.so.12: cannot open"),
        ("import sys; sys.exit('no licence')", "SystemExit: no licence"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
    ],
)
def test_a_library_that_cannot_be_imported_is_a_fact_and_hides_no_other(tmp_path, monkeypatch, code, message):
    (tmp_path / "broken.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    found = probe.import_libraries(["broken", "numpy"])
    (problem,) = found["problems"]
    assert problem.startswith(f"cannot import broken: {message}")
    assert list(found["versions"]) == ["numpy"]
    assert found["gpus"] is None


def test_libraries_are_told_with_versions():
    import deepspeed
    import torch

    found = probe.import_libraries(LIBRARIES)
    assert found["problems"] == []
    assert found["versions"]["torch"] == str(torch.__version__)
    assert found["versions"]["deepspeed"] == deepspeed.__version__
    assert set(LIBRARIES) <= set(found["versions"])
    assert len(found["gpus"]) == torch.cuda.device_count()


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), (None, 8)])
def test_cores_are_those_that_a_container_grants(tmp_path, quota, cores):
    if quota:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert limited_cores(8, tmp_path) == cores


def test_cores_are_those_that_an_older_container_grants(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("300000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert limited_cores(8, tmp_path) == 3


def test_git_tells_revision_and_local_changes(tmp_path, monkeypatch):
    def git(*words):
        own = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(["git", *own, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    def state():
        found = probe.look([], "runs", False, [])
        return found["versions"].get("the git revision"), found["changed"]

    monkeypatch.chdir(tmp_path)
    assert state() == (None, [])
    git("init", "-q")
    (tmp_path / "a.py").write_text("a = 1\n")
    git("add", "a.py")
    git("commit", "-qm", "a")
    (tmp_path / "run.log").write_text("not tracked\n")
    revision = git("rev-parse", "HEAD")[:12]
    assert state() == (revision, [])
    (tmp_path / "a.py").write_text("a = 2\n")
    assert state() == (revision, ["a.py"])
    monkeypatch.setenv("PATH", str(tmp_path))  # there is no git
    assert state() == (None, [])


def test_disk_is_that_of_the_nearest_folder(tmp_path):
    found = probe.disk_of(tmp_path / "runs" / "first")
    assert found["folder"] == str(tmp_path)
    assert found["is_writable"]
    assert found["free"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)


def test_datasets_are_told_apart_by_file(dataset_folder, tmp_path):
    def look(folder, verify_data=False):
        found = probe.dataset_of(folder, verify_data)
        return found["files"].get(f"dataset {folder}"), "".join(found["problems"])

    copy = shutil.copytree(dataset_folder, tmp_path / "copy")
    original = look(dataset_folder)
    assert look(copy, verify_data=True) == original
    manifest = DatasetManifest.load(copy)
    shard = manifest.shards[0]
    assert {f"{shard.name}.bin", f"holdout/{shard.name}.bin"} <= set(original[0])
    tokenizer = {f"the tokenizer of dataset {copy}": manifest.tokenizer_fingerprint}
    assert probe.dataset_of(copy, verify_data=False)["versions"] == tokenizer
    path = shard.file(copy, "bin")
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    assert look(copy) == original  # only the sizes are looked at
    assert str(path) in look(copy, verify_data=True)[1]
    path.write_bytes(content[:-2])
    files, problem = look(copy)
    assert files is None
    assert problem.startswith(f"dataset {copy}: {path} has ")
    shutil.rmtree(copy)
    assert "no dataset folder" in look(copy)[1]
