"""Facts of a host, also where things are missing or broken."""

import shutil
import subprocess

import pytest

from mpnet_ds.cluster import probe
from mpnet_ds.data.storage.manifest import DatasetManifest


@pytest.fixture
def broken_library(tmp_path, monkeypatch):
    """A function (name, code): hides a library behind a module of that code, for processes that are started."""

    def hide(name, code):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / f"{name}.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))

    return hide


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise OSError('libcudart.so.12: cannot open shared object file')", "OSError: libcudart"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "importing it ended with signal 11"),
        ("import sys; print('no licence', file=sys.stderr); sys.exit(3)", "importing it ended with exit code 3. no licence"),
    ],
)
def test_a_library_that_cannot_be_imported_is_a_fact(broken_library, code, message):
    broken_library("torch", code)
    found = probe.import_libraries()
    assert message in found["torch"]["error"]
    assert "version" in found["numpy"]


def test_libraries_are_told_with_versions():
    import deepspeed
    import torch

    found = probe.import_libraries()
    assert found["torch"]["version"] == str(torch.__version__)
    assert len(found["torch"]["gpus"]) == torch.cuda.device_count()
    assert found["deepspeed"]["version"] == deepspeed.__version__
    assert not [name for name, entry in found.items() if "error" in entry]


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), (None, 8)])
def test_cores_are_those_that_a_container_grants(tmp_path, quota, cores):
    if quota:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert probe.limited_cores(8, tmp_path) == cores


def test_cores_are_those_that_an_older_container_grants(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("300000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert probe.limited_cores(8, tmp_path) == 3


def test_git_tells_revision_and_local_changes(tmp_path):
    def git(*words):
        own = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(["git", *own, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    assert "not a git repository" in probe.git_state(tmp_path)["error"]
    git("init", "-q")
    (tmp_path / "a.py").write_text("a = 1\n")
    git("add", "a.py")
    git("commit", "-qm", "a")
    (tmp_path / "run.log").write_text("not tracked\n")
    assert probe.git_state(tmp_path) == {"revision": git("rev-parse", "HEAD").strip(), "changed": []}
    (tmp_path / "a.py").write_text("a = 2\n")
    assert probe.git_state(tmp_path)["changed"] == ["a.py"]


def test_git_that_is_not_installed_is_a_fact(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probe.git_state(tmp_path) == {"error": "git is not installed"}


def test_disk_is_that_of_the_nearest_folder(tmp_path):
    found = probe.disk_of(tmp_path / "runs" / "first")
    assert found["folder"] == str(tmp_path)
    assert found["is_writable"]
    assert found["free"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)


def test_datasets_are_told_apart_by_file(dataset_folder, tmp_path):
    copy = shutil.copytree(dataset_folder, tmp_path / "copy")
    original = probe.dataset_of(dataset_folder, verify_data=False)
    assert probe.dataset_of(copy, verify_data=True) == original
    shard = DatasetManifest.load(copy).shards[0]
    assert {f"{shard.name}.bin", f"holdout/{shard.name}.bin"} <= set(original["files"])
    path = shard.file(copy, "bin")
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    assert probe.dataset_of(copy, verify_data=False) == original  # only the sizes are looked at
    assert str(path) in probe.dataset_of(copy, verify_data=True)["error"]
    path.write_bytes(content[:-2])
    assert str(path) in probe.dataset_of(copy, verify_data=False)["error"]
    shutil.rmtree(copy)
    assert "no dataset folder" in probe.dataset_of(copy, verify_data=False)["error"]


def test_the_way_to_oneself_is_told():
    found = probe.route("127.0.0.1")
    assert found["is_own"]
    assert found["leads_to"] == "127.0.0.1"
    assert found["interface"] in found["interfaces"]
