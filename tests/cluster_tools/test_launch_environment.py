"""Processes of a check get the environment, folder and interpreter that DeepSpeed's own launcher gives to ranks."""

import os
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest
from deepspeed.launcher import runner

from mpnet_ds.cluster import shell_line
from mpnet_ds.cluster.launcher_files import exported_variables
from mpnet_ds.cluster.shell_line import words_given
from mpnet_ds.cluster.ssh import Launch


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """A function (environment): what ``deepspeed``, started in ``tmp_path``, has pdsh run on hosts."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(variables, *words):
        fake = tmp_path / "bin"
        fake.mkdir()
        (fake / "pdsh").write_text(f'#!/bin/sh\nfor word in "$@"; do echo "$word"; done > {tmp_path}/words\n')
        (fake / "pdsh").chmod(0o755)
        (tmp_path / "hosts").write_text("node-a slots=1\nnode-b slots=1\n")
        for name, value in ({"PATH": f"{fake}:{os.environ['PATH']}"} | variables).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(runner, "DEEPSPEED_ENVIRONMENT_PATHS", [os.path.expanduser("~"), "."])  # as at its import
        monkeypatch.chdir(tmp_path)
        flags = ["--hostfile", str(tmp_path / "hosts"), "--no_ssh_check", "--master_addr", "10.0.0.1", "--force_multi"]
        runner.main([*flags, "train.py", *words])
        return (tmp_path / "words").read_text()

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_hosts_get_what_deepspeed_exports(launch, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / ".deepspeed_env").write_text("OWN_SETTING=of=mine\nUCX_OTHER=1\n")
    variables = {"HOME": str(home), "UCX_TLS": "tcp", "PYTHONUNBUFFERED": "1", "OTHER": "x", "PYTHONPATH": "/some/where"}
    words = launch(variables)
    exported = dict(re.findall(r"export (\w+)=(.*?); ", words))
    folder = re.search(r"cd (.*?);", words)[1]
    ours, findings = exported_variables(os.environ | variables, Path(folder))
    assert findings == []
    ours = {name: value for name, value in ours.items() if not name.startswith("NCCL")}  # only where there is a GPU
    assert ours == exported
    assert {"OWN_SETTING", "UCX_TLS", "UCX_OTHER", "PYTHONUNBUFFERED", "PYTHONPATH"} <= set(ours)
    assert "OTHER" not in ours
    script = Launch(sys.executable, folder, ours).command("node-a", "title")[-1]
    assert f"cd {folder} " in script
    assert shlex.split(script)[-6:-2] == ["exec", sys.executable, "-u", "-c"]
    assert words.splitlines()[words.splitlines().index("-u") - 1] == sys.executable


@pytest.mark.parametrize("line", ["", "# a comment"])
def test_lines_on_which_the_launcher_breaks_are_named(launch, tmp_path, line):
    (tmp_path / ".deepspeed_env").write_text(f"A=1\n{line}\nB=2\n")
    with pytest.raises(ValueError, match="not enough values to unpack"):  # so it is worth a finding
        launch({"HOME": str(tmp_path)})
    variables, findings = exported_variables({"HOME": "/nowhere"}, tmp_path)
    (finding,) = findings
    assert finding.is_fatal
    assert f"{tmp_path / '.deepspeed_env'}, line 2: " in finding.text
    assert variables == {"PYTHONPATH": str(tmp_path), "A": "1", "B": "2"}


WORDS = ["--set", 'objective={"name": "mlm"}', "--data", "a b", "it's", "$HOME", "plain", 'say "hi" there', "end"]


def test_the_words_of_the_user_are_found_in_what_pdsh_is_given(launch):
    line = launch({}, *WORDS).splitlines()
    assert words_given(["pdsh", *line]) == WORDS


def test_words_that_a_shell_changed_are_named(monkeypatch):
    monkeypatch.setattr(shell_line, "_words_given", lambda launch: [["--data", "a", "$HOME/b"]])
    begin = ["python", "-u", "my.py", "--local_rank=0"]
    (finding,) = shell_line.check_arrival([], [*begin, "--data", "a", "/root/b"], {})
    assert "made /root/b of the argument '$HOME/b'" in finding.text
    assert not list(shell_line.check_arrival([], [*begin, "--data", "a", "$HOME/b"], {}))
    (finding,) = shell_line.check_arrival([], [*begin, "--data", "a"], {})
    assert "made '' of the argument '$HOME/b'" in finding.text


def test_a_rank_that_runs_in_the_login_folder_says_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (finding,) = shell_line.check_arrival([], [], {"PYTHONPATH": f"{tmp_path}/my:/other"})
    assert f"PYTHONPATH begins with {tmp_path}/my" in finding.text
    assert not list(shell_line.check_arrival([], [], {"PYTHONPATH": str(tmp_path)}))
    monkeypatch.setenv("HOME", "/")
    assert not list(shell_line.check_arrival([], [], {"PYTHONPATH": f"{tmp_path}/my"}))


@pytest.mark.parametrize("folder", ["/my work", "/it's", "/a$b", "/a;b", "/a&b", "/(a)", "/a*"])
def test_a_folder_that_a_shell_would_change_is_refused_before_a_run(folder):
    (finding,) = shell_line.check_start("/usr/bin/python", Path(folder), {"A": "/plain:x=1", "NCCL_SOCKET_IFNAME": "^lo"})
    assert finding.is_fatal
    assert folder.replace("'", "") in finding.text.replace("'", "").replace('"', "")
    (python, variable) = shell_line.check_start(f"{folder}/python", Path("/plain/folder-1"), {"A": "x y"})
    assert python.is_fatal
    assert not variable.is_fatal
