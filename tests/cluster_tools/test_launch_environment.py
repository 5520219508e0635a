"""The agents get the environment, folder and interpreter that DeepSpeed's own launcher gives to ranks."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mpnet_ds.cluster.launch_environment import check_pdsh, exported_variables, read_environment_file
from mpnet_ds.cluster.remote import Route


@pytest.fixture
def launched(tmp_path):
    """A function (environment): what ``deepspeed`` has pdsh run on hosts, and where it was started."""

    def launch(variables):
        fake = tmp_path / "bin"
        fake.mkdir()
        (fake / "pdsh").write_text(f'#!/bin/sh\nfor word in "$@"; do echo "$word"; done > {tmp_path}/words\n')
        (fake / "pdsh").chmod(0o755)
        (tmp_path / "hosts").write_text("node-a slots=1\nnode-b slots=1\n")
        environ = {"PATH": f"{fake}:{os.environ['PATH']}", "DS_ACCELERATOR": "cpu"} | variables
        flags = ["--hostfile", tmp_path / "hosts", "--no_ssh_check", "--master_addr", "10.0.0.1", "--force_multi"]
        launcher = [sys.executable, "-m", "deepspeed.launcher.runner", *flags, "train.py"]
        done = subprocess.run(launcher, env=os.environ | environ, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        return done, (tmp_path / "words").read_text() if (tmp_path / "words").exists() else ""

    return launch


def test_hosts_get_what_deepspeed_exports(launched, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / ".deepspeed_env").write_text("OWN_SETTING=of=mine\nUCX_OTHER=1\n")
    variables = {"HOME": str(home), "UCX_TLS": "tcp", "PYTHONUNBUFFERED": "1", "OTHER": "x", "PYTHONPATH": "/some/where"}
    done, words = launched(variables)
    assert words, done.stderr
    exported = dict(re.findall(r"export (\w+)=(.*?); ", words))
    folder = re.search(r"cd (.*?);", words)[1]
    ours, findings = exported_variables(os.environ | variables, Path(folder))
    assert findings == []
    ours = {name: value for name, value in ours.items() if not name.startswith("NCCL")}  # only where there is a GPU
    assert ours == exported
    assert {"OWN_SETTING", "UCX_TLS", "UCX_OTHER", "PYTHONUNBUFFERED", "PYTHONPATH"} <= set(ours)
    assert "OTHER" not in ours
    script = Route(sys.executable, folder, ours).command("node-a")[-1]
    assert f"cd {folder} " in script
    assert shlex.split(script)[-5:] == ["exec", sys.executable, "-u", "-m", "mpnet_ds.cluster.agent"]
    assert words.splitlines()[words.splitlines().index("-u") - 1] == sys.executable


@pytest.mark.parametrize("line", ["", "# a comment"])
def test_lines_on_which_the_launcher_breaks_are_named(launched, tmp_path, line):
    (tmp_path / ".deepspeed_env").write_text(f"A=1\n{line}\nB=2\n")
    done, _ = launched({"HOME": str(tmp_path)})
    assert done.returncode != 0  # so it is worth a finding
    variables, (finding,) = read_environment_file(tmp_path / ".deepspeed_env")
    assert finding.is_fatal
    assert f"{tmp_path / '.deepspeed_env'}, line 2: " in finding.text
    assert variables == {"A": "1", "B": "2"}


def test_a_machine_without_pdsh_is_told(monkeypatch, tmp_path):
    (tmp_path / "pdsh").write_text("#!/bin/sh\n")
    (tmp_path / "pdsh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check_pdsh() == []
    monkeypatch.setenv("PATH", "/nowhere")
    (finding,) = check_pdsh()
    assert not finding.is_fatal
    assert "apt install pdsh" in finding.text
