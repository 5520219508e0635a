"""The shell line by which DeepSpeed's launcher starts ranks on other hosts, and what it cannot carry.

Over pdsh the shell of each host gets ``export NAME=VALUE; cd FOLDER; PYTHON -u -m deepspeed.launcher.launch … SCRIPT WORDS``
without quotes, except for double ones around words with a blank. What the shell makes of the rest, the ranks get; where
``cd`` fails they run in the login folder.
"""

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import psutil

from mpnet_ds.findings import Finding

SPECIAL = re.compile(r"[\s;&|<>()$`\"'\\]")
CURE = "put the value into the recipe or another file, or use mpirun, srun or torchrun"


def check_start(python: str, folder: Path, variables: Mapping[str, str]) -> Iterator[Finding]:
    """What of interpreter, working folder and environment the line cannot carry to other hosts."""
    for what, path in (("the working folder", str(folder)), ("the Python interpreter", python)):
        if shlex.quote(path) != path:
            text = f"{what} is {shlex.quote(path)}, and deepspeed's launcher passes it to the hosts' shells without quotes"
            yield Finding(f"{text}: use a path of letters, digits and /._-+, or mpirun, srun or torchrun.")
    for name, value in variables.items():
        if SPECIAL.search(value):
            text = f"{name} is {shlex.quote(value)}, and deepspeed's launcher passes it to the hosts' shells without quotes"
            yield Finding(f"{text}: unset it, if the run does not need it.", is_fatal=False)


def check_arrival(launch: Sequence[str], words: Sequence[str], environment: Mapping[str, str]) -> Iterator[Finding]:
    """What the line has made of folder and arguments of this rank.

    Args:
        launch: command line of DeepSpeed's ``launch.py``, this process's parent, in a run on several hosts.
        words: this process's command line as it was started; a script may have changed ``sys.argv`` since.
    """
    started_in = environment.get("PYTHONPATH", "").partition(":")[0]
    if started_in and not os.path.isdir(started_in) and os.getcwd() == os.path.expanduser("~"):
        text = f"this rank runs in {os.getcwd()}: the folder in which deepspeed was started is not here, or its path has"
        yield Finding(f"{text} a blank or another special character of the shell (PYTHONPATH begins with {started_in}).")
    begin = next((place for place, word in enumerate(words, 1) if re.match(r"--local[_-]rank=", word)), None)
    came = list(words[begin:])
    for sent in _words_given(launch) if begin else ():
        if sent != came:
            before, after = next(pair for pair in zip_longest(sent, came, fillvalue="") if pair[0] != pair[1])
            text = f"the shell of this host made {shlex.quote(after)} of the argument {shlex.quote(before)}"
            yield Finding(f"{text}, since deepspeed's launcher does not quote it: {CURE}.")


def _words_given(launch: Sequence[str]) -> Iterator[list[str]]:
    """The arguments of the script in the pdsh command that started ``launch``, if pdsh runs on this machine."""
    info = next((word for word in launch if word.startswith("--world_info=")), None)
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if info in line and Path(line[0]).name == "pdsh":
            yield words_given(line)


def words_given(line: Sequence[str]) -> list[str]:
    """The arguments of the script, as the user wrote them, in a pdsh command of DeepSpeed's."""
    words = list(line[next(i for i, word in enumerate(line) if word.startswith("--world_info=")) :])
    while words and words[0].startswith("--"):
        words.pop(0)
    return [word[1:-1].replace('\\"', '"') if " " in word and word[:1] == '"' else word for word in words[1:]]
