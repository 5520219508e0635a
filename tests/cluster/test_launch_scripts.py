"""``launch/mpi.sh`` under a real mpirun, and ``launch/torchrun.sh``: on one host, and between two."""

import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cluster import test_faults as faults
from tests.cluster.hosts import Cluster, Host
from tests.cluster.jobs import Job
from tests.cluster.requirements import needs
from tests.runs import RECIPE, ROOT, Run, command, environment, free_port
from tests.training.faulty_runs import FAULTY

AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "PMIX_MCA_psec": "native"}
EXITS = "import os, signal, sys; os.environ['RANK'] == '1' and ({})"


@pytest.fixture
def cluster():
    """Two hosts."""
    with Cluster(2) as cluster:
        yield cluster


def arguments(output: Path, data: Path) -> list:
    """Of the run that ``undisturbed`` is, on two ranks."""
    flags = ["--deepspeed_config", ROOT / "ds_configs" / "zero2.json", "--recipe", RECIPE, "--data", data]
    return [*flags, "--output_dir", output, "--micro_batch_size", 4]


def with_fault(folder: Path, script: str, fault: str) -> Path:
    """A copy of a script of launch/ that starts tests/training/faulty.py."""
    text = (ROOT / "launch" / script).read_text()
    here = 'here=$(dirname "$(realpath "$0")")'
    assert (text.count(here), text.count('"$here/pretrain.py"')) == (1, 1)
    copy = folder / script
    copy.write_text(text.replace(here, f"here={ROOT}/launch").replace('"$here/pretrain.py"', f"{FAULTY} {fault}"))
    return copy


def start(cluster: Cluster, host: Host, name: str, output: Path, words: list, env: Mapping[str, str]) -> Job:
    """A script on a host; what it prints goes to ``<output>-<name>.out`` and ``.err``."""
    log = Path(f"{output}-{name}")
    with open(f"{log}.out", "w") as out, open(f"{log}.err", "w") as err:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
        return Job(host.popen("bash", *words, env=env, cwd=ROOT, **pipes), cluster, log)


def assert_goes_on(stopped: list[Run], output: Path, data: Path, undisturbed: Run) -> None:
    said = "\n".join(run.out + run.err for run in stopped)
    assert [run.code for run in stopped] == [75] * len(stopped), said
    assert re.search("at step [23] of 8; everything is saved", said), said  # 2 if it was asked before it came to wait
    faults.assert_goes_on(output, data, undisturbed)


@needs("mpirun")
def test_mpirun_on_two_hosts_stops_with_a_save_and_goes_on(cluster, undisturbed, dataset_folder, tmp_path):
    first, second = cluster.hosts
    output, hostfile = tmp_path / "run", cluster.hostfile({first: 1, second: 1})
    faulty = with_fault(tmp_path, "mpi.sh", "until_asked@3")
    words = [hostfile, *arguments(output, dataset_folder)]
    job = start(cluster, first, "stopped", output, [faulty, *words], AS_ROOT)
    job.wait_for_update(2, output=output)
    job.process.send_signal(signal.SIGTERM)
    stopped = job.finish(60)
    assert_goes_on([stopped], output, dataset_folder, undisturbed)


@pytest.mark.long  # mpirun above, and a run under torchrun on this machine in test_configurations.py
def test_torchrun_on_two_hosts_stops_with_a_save_and_goes_on(cluster, undisturbed, dataset_folder, tmp_path):
    """Asked on the second host; both end with the ranks' exit code."""
    output = tmp_path / "run"

    def start_on_both(name: str, script: Path | str) -> list[Job]:
        common = {"NODES": "2", "MASTER_ADDR": cluster.hosts[0].name}
        words = [script, *arguments(output, dataset_folder)]
        return [
            start(cluster, host, f"{name}-{number}", output, words, common | {"NODE_RANK": str(number)})
            for number, host in enumerate(cluster.hosts)
        ]

    jobs = start_on_both("stopped", with_fault(tmp_path, "torchrun.sh", "until_asked@3"))
    jobs[0].wait_for_update(2, output=output)
    jobs[1].process.send_signal(signal.SIGTERM)
    stopped = [job.finish(60) for job in jobs]
    assert_goes_on(stopped, output, dataset_folder, undisturbed)


@pytest.mark.long  # between two hosts above
@pytest.mark.parametrize("launcher", [pytest.param("mpi", marks=needs("mpirun")), "torchrun"])
def test_two_ranks_on_this_machine(undisturbed, dataset_folder, tmp_path, monkeypatch, launcher):
    for name, value in (AS_ROOT | {"MASTER_PORT": str(free_port()), "GPUS": "2", "DS_ACCELERATOR": "cpu"}).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "hostfile").write_text("localhost slots=2\n")
    words = [tmp_path / "hostfile"] if launcher == "mpi" else []
    done = command("bash", f"launch/{launcher}.sh", *words, *arguments(tmp_path / "run", dataset_folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert Run(0, "", "", tmp_path / "run").losses == pytest.approx(undisturbed.losses, abs=1e-5)


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ("sys.exit(75)", 75),
        pytest.param("sys.exit(2)", 2, marks=pytest.mark.long),
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", 1, marks=pytest.mark.long),
        pytest.param("0", 0, marks=pytest.mark.long),
    ],
)
def test_torchrun_hands_on_the_exit_code_of_a_rank(tmp_path, ends, code):
    (tmp_path / "rank.py").write_text(EXITS.format(ends))
    launcher = [ROOT / "launch" / "torchrun.py", "--nproc-per-node", 2, "--master-port", free_port()]
    assert command("python", *launcher, tmp_path / "rank.py").returncode == code


@pytest.mark.parametrize(
    ("variables", "words", "said"),
    [
        ({}, [], "nothing to pass"),
        ({"NODES": "two"}, ["x"], "NODES is 'two', not a number of machines"),
        ({"GPUS": "0"}, ["x"], "GPUS is '0'"),
        ({"NODES": "2", "NODE_RANK": "1"}, ["x"], "set MASTER_ADDR"),
        ({"NODES": "2", "MASTER_ADDR": "gpu1"}, ["x"], "set NODE_RANK"),
        ({"NODES": "2", "MASTER_ADDR": "gpu1", "NODE_RANK": "2"}, ["x"], "the last machine is 1"),
        ({"PATH": "/usr/bin:/bin"}, ["x"], "activate the environment"),
    ],
)
def test_torchrun_sh_refuses_what_cannot_work(variables, words, said):
    assert_refused("torchrun.sh", variables, words, said)


@needs("mpirun")
@pytest.mark.parametrize(
    ("hostfile", "said"),
    [
        (None, "no hostfile"),
        ("", "names no host"),
        ("# two hosts\nnode1 slots=1\nnode2\n", "line 3:node2: expected HOST slots=N"),
        ("localhost slots=1\nnode2 slots=1\n", "cannot reach localhost"),
    ],
)
def test_mpi_sh_refuses_what_cannot_work(tmp_path, hostfile, said):
    if hostfile is not None:
        (tmp_path / "hostfile").write_text(hostfile)
    assert_refused("mpi.sh", {}, [str(tmp_path / "hostfile"), "--deepspeed_config"], said)


def test_mpi_sh_says_how_it_is_used():
    assert_refused("mpi.sh", {}, [], "usage: bash launch/mpi.sh HOSTFILE")


def assert_refused(script: str, variables: Mapping[str, str], words: list[str], said: str) -> None:
    """Exit code 2 and one line."""
    own = environment() | dict(variables)
    bash = [shutil.which("bash"), ROOT / "launch" / script, *words]
    done = subprocess.run(bash, env=own, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
