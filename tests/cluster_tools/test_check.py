"""The whole check through an ``ssh`` that leads to this machine; tests/cluster/test_check_cluster.py has real hosts."""

import re
import runpy
from subprocess import CompletedProcess

import pytest

from mpnet_ds.cluster import check as check_module
from tests.runs import ROOT, environment, free_port

pytestmark = pytest.mark.process
CLOCK_AHEAD = "import time; real = time.time; time.time = lambda: real() + 40"


@pytest.fixture
def tool(fake_ssh, monkeypatch, capfd):
    """A function (arguments): ``tools/check_cluster.py`` to its end, in this process."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["check_cluster.py", *map(str, arguments)])
        for name, value in environment().items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "tools" / "check_cluster.py"), run_name="__main__")
        return CompletedProcess(arguments, ended.value.code, *capfd.readouterr())

    return run


@pytest.fixture
def check(tool, tmp_path):
    """A function (hostfile's text, arguments): the tool, to its end."""

    def run(text, *arguments):
        (tmp_path / "hosts").write_text(text)
        flags = ["--hostfile", tmp_path / "hosts", "--min_disk", "1MB", "--master_addr", "127.0.0.1"]
        return tool(*flags, "--master_port", free_port(), *arguments)

    return run


def test_one_host_is_in_order(check, dataset_folder):
    done = check("n1 slots=1\n", "--data", dataset_folder, "--verify_data")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("All checks passed.\n")
    assert "n1    1" in done.stdout


def test_a_clock_and_a_shell_that_are_wrong_are_named(check, fake_ssh, tmp_path, monkeypatch):
    monkeypatch.setattr(check_module, "LIBRARIES", ["mpnet_ds"])  # the others take seconds
    (tmp_path / "sitecustomize.py").write_text(CLOCK_AHEAD)
    fake_ssh("n2", f'set -- n2 "$(echo "$2" | sed "s|export PYTHONPATH=|export PYTHONPATH={tmp_path}:|")"')
    fake_ssh("n3", 'echo "n3: Permission denied (publickey)." >&2; exit 255')
    done = check("n1 slots=1\nn2 slots=1\nn3 slots=1\n", "--skip_bandwidth")
    assert done.returncode == 2, done.stdout + done.stderr
    shut, same, clock, own = [line.strip() for line in done.stderr.splitlines() if line.startswith("  ")]
    assert shut.startswith("1. n3: ssh does not let this user in without a password")
    assert same.startswith("2. n1, n2 are one machine")
    ahead = re.match(r"3\. n2: its clock is ([\d.]+) s ahead of that of n1", clock)
    assert float(ahead[1]) == pytest.approx(40, abs=0.5)
    assert own.startswith("4. n2: 127.0.0.1, where n1 is expected, is n2 itself")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("n3 ")]
    assert line.split()[1:] == ["1", *6 * ["-"]]


def test_a_broken_library_is_named_and_nothing_measured_with_it(check, fake_ssh, tmp_path, monkeypatch):
    monkeypatch.setattr(check_module, "LIBRARIES", ["mpnet_ds", "torch"])
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    fake_ssh("n2", f'set -- n2 "$(echo "$2" | sed "s|export PYTHONPATH=|export PYTHONPATH={tmp_path}:|")"')
    done = check("n1 slots=1\nn2 slots=1\n")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "n2: cannot import torch: OSError: libcudart.so.12" in done.stderr
    assert "Bandwidth was not measured: torch cannot be imported on n2." in done.stdout


@pytest.mark.parametrize("hostfile", ["nowhere", ROOT])
def test_a_missing_hostfile_is_exit_code_2(tool, hostfile):
    done = tool("--hostfile", hostfile)
    assert done.returncode == 2
    assert "hostfile" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_when_no_host_can_be_reached_the_check_still_ends_well(check, fake_ssh):
    fake_ssh("n1", 'echo "ssh: connect to host n1 port 22: Connection refused" >&2; exit 255')
    done = check("n1 slots=1\n")
    assert done.returncode == 2
    assert done.stderr.startswith("error: n1: the host is up, but refuses ssh")


def test_a_host_that_is_lost_on_the_way_is_named_and_the_others_go_on(check, fake_ssh, monkeypatch):
    monkeypatch.setattr(check_module, "LIBRARIES", ["mpnet_ds"])
    lost = 'case "$2" in *links.listen) echo "Connection closed by n2 port 22" >&2; exit 255; esac'
    fake_ssh("n2", lost)
    done = check("n1 slots=1\nn2 slots=1\n", "--skip_bandwidth")
    assert "n2: its ssh server closed the connection" in done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert rows["n1"][4] != "-"
    assert rows["n2"][2] != "-"
    assert rows["n2"][4] == "-"


def test_where_deepspeed_needs_pdsh_that_is_missing_it_is_told(check, fake_ssh, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    for host in ("n1", "n2"):
        fake_ssh(host, "exit 255")
    assert "warning: pdsh is not installed on this machine" in check("n1 slots=1\nn2 slots=1\n").stdout
    assert "pdsh" not in check("n1 slots=1\n").stdout
