"""What the README names is there, and its commands have the flags that it shows."""

import re
import sys
from functools import cache

import pytest

from tests.runs import ROOT, command

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(?:python|deepspeed.*?) ((?:tools|launch)/\w+\.py)(.*)$", README, re.MULTILINE)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


def test_files_in_commands_exist():
    named = re.findall(r"(?:launch|tools|ds_configs|benchmarks)/[\w./-]+\.(?:py|json|sh)", README)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    ("program", "arguments"), COMMANDS, ids=[f"{program}-{i}" for i, (program, _) in enumerate(COMMANDS)]
)
def test_flags_in_commands_exist(program, arguments):
    shown = set(re.findall(r"--\w+", arguments))
    assert shown <= known_flags(program)


@cache
def known_flags(program: str) -> set[str]:
    return set(re.findall(r"--\w+", command(sys.executable, program, "--help").stdout))


def test_there_are_commands_to_check():
    assert {program for program, _ in COMMANDS} >= {"tools/build_dataset.py", "launch/pretrain.py", "tools/convert_to_hf.py"}


@pytest.mark.parametrize("target", ["setup", "demo", "test"])
def test_make_has_the_readmes_targets(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
