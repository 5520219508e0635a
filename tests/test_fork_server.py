"""Programs that tests start as forks behave as if they had been started by themselves."""

import json
import os
import signal
import subprocess
import tempfile
from contextlib import suppress

import psutil
import pytest

from tests.fork_server import Fork, run
from tests.processes import starts_processes
from tests.runs import RECIPE, command, environment, pretrain

TELL = "import json, os, sys; print(json.dumps([sys.argv, os.getcwd(), os.environ.get('RANK'), __name__, sys.path[0]]))"


@pytest.fixture
def script(tmp_path):
    """``script(text)``: a file with this content."""

    def write(text: str) -> str:
        (tmp_path / "script.py").write_text(text)
        return str(tmp_path / "script.py")

    return write


def test_a_script_has_its_arguments_environment_and_folder(script, tmp_path):
    path = script(TELL)
    done = run([path, "--flag", "ä"], tmp_path, [environment() | {"RANK": "3"}], timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [[path, "--flag", "ä"], str(tmp_path), "3", "__main__", str(tmp_path)]


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("import sys; sys.exit(75)", 75, ""),
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit('what is wrong')", 1, "what is wrong\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
        ("import atexit, sys; atexit.register(print, 'last', file=sys.stderr)", 0, "last\n"),
    ],
)
def test_it_ends_as_its_interpreter_would(script, tmp_path, text, code, said):
    done = run([script(text)], tmp_path, [environment()], timeout=60)
    assert done.returncode == code
    assert done.stderr.endswith(said)
    assert bool(done.stderr) == bool(said)


def test_the_first_rank_that_fails_ends_the_others_and_its_code_is_the_runs(script, tmp_path):
    text = "import os, sys, time; sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(1000)"
    ranks = [environment() | {"RANK": str(rank)} for rank in range(3)]
    assert run([script(text)], tmp_path, ranks, timeout=60).returncode == 3


def test_a_program_that_takes_too_long_is_killed(script, tmp_path):
    path = script("import os, pathlib, time; pathlib.Path('id').write_text(str(os.getpid())); time.sleep(1000)")
    with pytest.raises(subprocess.TimeoutExpired):
        run([path], tmp_path, [environment()], timeout=2)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int((tmp_path / "id").read_text())).wait(30)  # which raises if it lives longer


def test_a_program_can_be_watched_and_told(script, tmp_path):
    text = "import signal, sys; signal.signal(10, lambda *_: sys.exit(7)); print('ready', flush=True); signal.pause()"
    with tempfile.TemporaryFile() as output:
        fork = Fork([script(text)], tmp_path, environment(), output, output)
        while not os.pread(output.fileno(), 6, 0):
            assert psutil.pid_exists(fork.pid)
        fork.send_signal(signal.SIGUSR1)
        assert fork.wait(60) == 7


def test_tests_that_start_processes_are_found():
    assert starts_processes(test_a_script_has_its_arguments_environment_and_folder)
    assert starts_processes(lambda: command("true"))
    assert starts_processes(lambda: pretrain)
    assert not starts_processes(lambda: RECIPE.read_text())
