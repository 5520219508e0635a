"""``launch/slurm.sh`` under a real SLURM: warned, saved, queued again, gone on with; and everything that ends a job.

Each test edits the script's top as a user would. Where only the script's answer to exit codes and signals is looked at, a
small program stands in for ``launch/pretrain.py``.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.cluster.hosts import Cluster
from tests.cluster.requirements import needs
from tests.cluster.slurm import Slurm
from tests.runs import RECIPE, ROOT, Run
from tests.training.faulty_runs import FAULTY, saved_steps

pytestmark = needs("munged", "slurmctld", "slurmd", "srun")

SCRIPT = ROOT / "launch" / "slurm.sh"
SMALL = {"nodes": "1", "ntasks-per-node": "2", "gpus-per-node": None, "cpus-per-task": "1", "time": "10"}

STAND_IN = """
import os, signal, sys, time
from pathlib import Path

# stand_in.py --output_dir FOLDER CODE-OF-RANK-0,CODE-OF-RANK-1: leaves with these; "wait" waits to be asked,
# saves and leaves with 75, and with 0 when started again
words = sys.argv[1:]
folder, codes = Path(words[words.index("--output_dir") + 1]), words[-1].split(",")
rank, restart = os.environ["SLURM_PROCID"], os.environ.get("SLURM_RESTART_COUNT", "0")
folder.mkdir(parents=True, exist_ok=True)
asked = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: asked.append(number))
code, saved = codes[int(rank)], folder / f"saved-{rank}"
(folder / "arguments").write_text(" ".join(words))
(folder / f"started-{restart}-{rank}").touch()
if code != "wait" or saved.exists():
    sys.exit(0 if code == "wait" else int(code))
while not asked:
    time.sleep(0.1)
time.sleep(2)
saved.write_text(signal.Signals(asked[0]).name)
signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as at the end of training
time.sleep(2 * int(rank))  # one rank leaves before the other
sys.exit(75)
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A running SLURM, for all tests of this file."""
    with Slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def submit(slurm, tmp_path):
    """``submit(*arguments, options={…}, variables={…}, program=…, sbatch=[…])``: a job's number."""
    yield lambda *arguments, sbatch=(), **edits: submit_to(slurm, tmp_path, *arguments, sbatch=sbatch, **edits)
    slurm.run("scancel", "--me")


def submit_to(slurm: Slurm, folder: Path, *arguments, sbatch=(), options=None, variables=None, program=None) -> str:
    """Submits a copy of the script with other ``#SBATCH`` lines (None: left out), variables, and program to be run."""
    script = SCRIPT.read_text()
    if program:
        script = script.replace("python launch/pretrain.py", f"python {program}")
    for name, value in (SMALL | {"output": folder / "job-%j.log"} | (options or {})).items():
        line = f"#SBATCH --{name}={value}\n" if value else ""
        script, count = re.subn(rf"^#SBATCH --{name}=.*\n", line, script, flags=re.MULTILINE)
        assert count == 1, name
    for name, value in ({"environment": "", "data": "()", "output": folder / "run"} | (variables or {})).items():
        script, count = re.subn(rf"^{name}=[^ \n]*", f"{name}={value}", script, flags=re.MULTILINE)
        assert count == 1, name
    edited = folder / "edited.sh"
    edited.write_text(script)
    return slurm.run("sbatch", "--parsable", *sbatch, edited, *arguments).strip()


@pytest.fixture
def stand_in(tmp_path) -> Path:
    path = tmp_path / "stand_in.py"
    path.write_text(STAND_IN)
    return path


def wait_for_end(slurm: Slurm, job: str, seconds: float) -> dict[str, str]:
    """What SLURM tells of a job that is over; the job's log is in the message if that takes too long."""
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    slurm.wait_until(lambda: slurm.job(job)["JobState"] in over, seconds, f"job {job} ends; {slurm.job(job)}")
    return slurm.job(job)


def wait_for_files(slurm: Slurm, folder: Path, *names: str) -> None:
    slurm.wait_until(lambda: all((folder / name).exists() for name in names), 60, f"{names} in {folder}")


def running_tasks(slurm: Slurm) -> dict[str, str]:
    """Place in the array → the task's own number."""
    listed = slurm.run("squeue", "--noheader", "--array", "--states=RUNNING", "--format=%K %A").split()
    return dict(zip(listed[::2], listed[1::2], strict=True))


def log(tmp_path: Path) -> str:
    """What the jobs of a test have printed."""
    return "\n".join(path.read_text() for path in sorted(tmp_path.glob("job-*.log")))


def end_soon(slurm: Slurm, job: str) -> None:
    """Set the time limit so that SLURM itself warns within two minutes, and take it back when the job is queued again."""
    minutes = int(slurm.run("squeue", "--noheader", "--format=%M", "--jobs", job).split(":")[-2])
    slurm.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes + 2}")
    slurm.wait_until(lambda: slurm.job(job)["Restarts"] == "1", 180, f"it is queued again; {slurm.job(job)}")
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")


WARNED = {"time": "30", "signal": "USR1@45"}  # 45 to 75 s before the end


def test_a_job_that_slurm_warns_before_its_time_limit_saves_and_is_queued_again(slurm, submit, stand_in, tmp_path):
    job = submit("wait,wait", program=stand_in, options=WARNED)
    wait_for_files(slurm, tmp_path / "run", "started-0-0", "started-0-1")
    end_soon(slurm, job)
    ended = wait_for_end(slurm, job, 90)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), log(tmp_path)
    assert [(tmp_path / "run" / f"saved-{rank}").read_text() for rank in range(2)] == ["SIGUSR1", "SIGUSR1"]
    assert f"slurm.sh: saved; queueing job {job} again." in log(tmp_path)


@pytest.mark.long  # above a stand-in is warned, and mpirun starts the same ranks in test_launch_scripts.py
def test_a_run_is_warned_saves_is_queued_again_and_ends_with_the_undisturbed_losses(
    slurm, submit, undisturbed, dataset_folder, tmp_path
):
    job = submit(
        *["--recipe", RECIPE, "--micro_batch_size", 4],
        options=WARNED,
        variables={"deepspeed_config": "ds_configs/zero2.json", "data": f"({dataset_folder})"},
        program=f"{FAULTY} until_asked@3",
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    slurm.wait_until(lambda: metrics.exists() and '"step": 2,' in metrics.read_text(), 180, "update 2")
    end_soon(slurm, job)
    ended = wait_for_end(slurm, job, 180)
    said = log(tmp_path)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), said
    assert "at step 3 of 8; everything is saved" in said
    assert f"slurm.sh: saved; queueing job {job} again." in said
    run = Run(0, said, "", tmp_path / "run")
    assert run.losses == pytest.approx(undisturbed.losses, abs=1e-5)
    assert saved_steps(run.folder)[-1] == 8
    assert json.loads((run.folder / "run.json").read_text())["world_size"] == 2


@pytest.mark.long  # tests/ranks/test_launchers.py
def test_two_nodes_give_the_losses_of_one(undisturbed, dataset_folder, tmp_path, tmp_path_factory):
    """Rank, number of ranks and the first rank's address come from srun alone."""
    with Cluster(2) as cluster, Slurm(tmp_path_factory.mktemp("two"), cluster.hosts) as slurm:
        variables = {"deepspeed_config": "ds_configs/zero2.json", "data": f"({dataset_folder})"}
        options = {"nodes": "2", "ntasks-per-node": "1"}
        arguments = ["--recipe", RECIPE, "--micro_batch_size", 4]
        job = submit_to(slurm, tmp_path, *arguments, options=options, variables=variables)
        assert wait_for_end(slurm, job, 180)["JobState"] == "COMPLETED", log(tmp_path)
    assert Run(0, "", "", tmp_path / "run").losses == pytest.approx(undisturbed.losses, abs=1e-5)


@pytest.mark.parametrize(
    ("codes", "state", "exit_code", "said"),
    [
        ("0,0", "COMPLETED", "0:0", ""),
        ("75,75", "FAILED", "75:0", "requeued 0 times already"),
        pytest.param("1,1", "FAILED", "1:0", "", marks=pytest.mark.long),
        ("2,2", "FAILED", "2:0", ""),
        ("10,138", "FAILED", "138:0", "give the job more --time"),
    ],
)
def test_what_a_job_ends_with(slurm, submit, stand_in, tmp_path, codes, state, exit_code, said):
    """srun hands on the highest exit code. No requeue is left for 75; the others must not ask for one."""
    job = submit(codes, program=stand_in, variables={"max_requeues": "0" if "75" in codes else "100"})
    ended = wait_for_end(slurm, job, 60)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == (state, exit_code, "0"), log(tmp_path)
    assert said in log(tmp_path)
    assert ("slurm.sh:" in log(tmp_path)) == bool(said)


@pytest.mark.parametrize("whom", ["ranks", pytest.param("script", marks=pytest.mark.long)])
def test_a_request_to_the_ranks_or_to_the_script_alone_saves_and_queues_again(slurm, submit, stand_in, tmp_path, whom):
    job = submit("wait,wait", program=stand_in)
    wait_for_files(slurm, tmp_path / "run", "started-0-0", "started-0-1")
    slurm.run("scancel", "--signal=USR1", *(["--batch"] if whom == "script" else []), job)
    ended = wait_for_end(slurm, job, 90)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), log(tmp_path)
    assert [(tmp_path / "run" / f"saved-{rank}").read_text() for rank in range(2)] == ["SIGUSR1", "SIGUSR1"]
    assert (tmp_path / "run" / "started-1-1").exists()


def test_a_preempted_job_saves_and_is_queued_again_once(slurm, submit, stand_in, tmp_path):
    """By SLURM itself, as scontrol requeue and PreemptMode=REQUEUE do: SIGTERM to everything, SIGKILL after KillWait."""
    job = submit("wait,wait", program=stand_in)
    wait_for_files(slurm, tmp_path / "run", "started-0-0", "started-0-1")
    slurm.run("scontrol", "requeue", job)
    ended = wait_for_end(slurm, job, 90)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), log(tmp_path)
    assert [(tmp_path / "run" / f"saved-{rank}").read_text() for rank in range(2)] == ["SIGTERM", "SIGTERM"]
    assert "SLURM has ended this job" in log(tmp_path)


def test_a_cancelled_job_saves_and_stays_cancelled(slurm, submit, stand_in, tmp_path):
    job = submit("wait,wait", program=stand_in)
    wait_for_files(slurm, tmp_path / "run", "started-0-0", "started-0-1")
    slurm.run("scancel", job)
    wait_for_files(slurm, tmp_path / "run", "saved-0", "saved-1")
    slurm.wait_until(lambda: "SLURM has ended this job" in log(tmp_path), 30, f"the script's last word: {log(tmp_path)}")
    ended = wait_for_end(slurm, job, 60)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0")


def test_tasks_of_an_array_are_runs_that_are_queued_again_one_by_one(slurm, submit, stand_in, tmp_path):
    array = submit("wait", program=stand_in, options={"ntasks-per-node": "1"}, sbatch=["--array=5-6"])
    runs = [tmp_path / "run" / number for number in ("5", "6")]
    for run in runs:
        wait_for_files(slurm, run, "started-0-0")
        assert f"--seed {run.name}" in (run / "arguments").read_text()
    numbers = running_tasks(slurm)
    first = next(task for task, number in numbers.items() if number == array)  # requeue by this number would mean both
    second = next(task for task in numbers if task != first)
    slurm.run("scancel", "--signal=USR1", numbers[first] + ".0")
    wait_for_files(slurm, tmp_path / "run" / first, "started-1-0")
    assert slurm.job(numbers[second])["Restarts"] == "0"
    assert not (tmp_path / "run" / second / "saved-0").exists()
    slurm.run("scancel", "--signal=USR1", numbers[second] + ".0")
    for number in numbers.values():
        assert wait_for_end(slurm, number, 60)["Restarts"] == "1"
        assert slurm.job(number)["JobState"] == "COMPLETED"


@pytest.mark.long
def test_tasks_of_an_array_can_be_the_links_of_one_run(slurm, submit, stand_in, tmp_path):
    variables = {"array": "chain"}
    array = submit("wait,wait", program=stand_in, variables=variables, sbatch=["--array=1-3%1", "--no-requeue"])
    wait_for_files(slurm, tmp_path / "run", "started-0-0", "started-0-1")
    slurm.run("scancel", "--signal=USR1", running_tasks(slurm)["1"] + ".0")
    slurm.wait_until(lambda: not slurm.run("squeue", "--noheader"), 60, f"the queue is empty: {log(tmp_path)}")
    ends = re.findall(r"ArrayTaskId=(\S+).*\n(?:.*\n)*?\s+JobState=(\w+)", slurm.run("scontrol", "show", "job", array))
    assert sorted(ends) == [("1", "FAILED"), ("2", "COMPLETED"), ("3", "CANCELLED")]
    assert "saved. The next task of the array resumes." in log(tmp_path)


@pytest.mark.parametrize(
    ("environment", "edit", "arguments", "said"),
    [
        ({}, None, [], "not in a SLURM job"),
        ({"SLURM_JOB_ID": "1"}, None, [], "no virtual environment"),
        ({"SLURM_JOB_ID": "1"}, ("array=runs ", "array=links "), [], "array=links at the top"),
        (
            {"SLURM_JOB_ID": "1", "SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "2"},
            ("environment=.venv", "environment="),
            ["--output_dir", "x"],
            "set output= in launch/slurm.sh",
        ),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, environment, edit, arguments, said):
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "pretrain.py").touch()
    script = tmp_path / "launch" / "slurm.sh"
    script.write_text(SCRIPT.read_text().replace(*edit) if edit else SCRIPT.read_text())
    command = ["bash", script, *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
