"""Virtual environments for tests of what users have installed: packages of their own, the rest from this interpreter's."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def ended_well(*words, cwd: Path) -> str:
    """Standard output of a program that must end with code 0; it sees nothing of the checkout, and no network of the hub."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def make_environment(folder: Path, *what: str | Path) -> Path:
    """Make ``folder``, install ``what`` (arguments of ``pip install``) in it, and return the folder of its programs."""
    ended_well(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    ended_well(*PIP, "--python", python, "install", "--quiet", *what, cwd=folder.parent)
    return folder / "bin"
