"""Where the tests on several hosts cannot run, they say why."""

import os
import subprocess
import sys

import pytest

from tests.cluster import packages, requirements
from tests.runs import ROOT


@pytest.fixture
def nothing_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))


def reasons() -> str:
    return "; ".join(requirements.reasons.__wrapped__())


def test_missing_programs_are_named_with_their_packages(nothing_installed, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "sshd is missing (Debian package openssh-server); pdsh is missing (Debian package pdsh)" in reasons()
    mark = requirements.needs("mpirun", "srun")
    assert mark.args == (True,)
    assert "mpirun is missing (Debian package openmpi-bin); srun" in mark.kwargs["reason"]


def test_an_ordinary_user_is_told_that_it_takes_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert reasons() == "only root may make network namespaces"


def test_a_machine_that_forbids_namespaces_is_told_so(monkeypatch, tmp_path):
    for name in packages.CLUSTER:
        (tmp_path / name).write_text("#!/bin/sh\necho unshare failed: Operation not permitted >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "does not permit network namespaces" in reasons()
    assert "Operation not permitted" in reasons()


def test_the_end_of_a_test_session_says_why_they_did_not_run(tmp_path):
    command = [sys.executable, "-m", "pytest", "-n", "1", "-p", "no:cacheprovider", "tests/cluster/test_hosts.py"]
    bare = os.environ | {"PATH": str(tmp_path)}
    blocked = "import os; os.geteuid = lambda: 1000\n"
    (tmp_path / "sitecustomize.py").write_text(blocked)  # an ordinary user, whoever runs this
    done = subprocess.run(
        command, cwd=ROOT, env=bare | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    end = done.stdout.partition("(tests/cluster) did NOT run")[2]
    assert "\n  only root may make network namespaces\n" in end
    assert "make test-cluster" in end
    assert "passed" not in end


def test_packages_are_not_installed_by_an_ordinary_user(nothing_installed, monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    packages.main()
    assert "openssh-server pdsh" in capsys.readouterr().out
    packages.main()
    assert "not installed: only root may install them" in capsys.readouterr().out


def test_a_failed_installation_says_what_apt_said(nothing_installed, monkeypatch, capsys, tmp_path):
    (tmp_path / "apt-get").write_text("#!/bin/sh\n[ $2 = update ] || { echo E: no such package >&2; exit 100; }\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    packages.main()
    assert "not installed: apt-get install failed: E: no such package" in capsys.readouterr().out
