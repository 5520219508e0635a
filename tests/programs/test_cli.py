"""One command for all programs: ``mpnet-ds PROGRAM``."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import mpnet_ds.programs
from mpnet_ds.errors import UserError
from mpnet_ds.programs import cli, demo

FILES = {path.stem for path in Path(mpnet_ds.programs.__file__).parent.glob("*.py")} - {"__init__", "cli"}


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["mpnet-ds", *arguments])
    return cli.main()


def test_every_program_has_a_name_and_a_line(monkeypatch, capsys):
    assert {name.replace("-", "_") for name in cli.PROGRAMS} == FILES
    assert call(monkeypatch, "--help") == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in cli.PROGRAMS)
    assert call(monkeypatch) == 0
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("name", sorted(cli.PROGRAMS))
def test_help_of_a_program_shows_how_it_was_called(name, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)  # no checkout
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, name, "--help")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: mpnet-ds {name} ")
    example = said.partition("example:\n  ")[2]
    assert example.startswith("deepspeed --module mpnet_ds.training.pretrain" if name == "pretrain" else f"mpnet-ds {name}")


def test_an_unknown_program_is_named_with_the_nearest(monkeypatch):
    with pytest.raises(UserError, match=r"unknown program 'convert-to-fh'\. Did you mean 'convert-to-hf'"):
        call(monkeypatch, "convert-to-fh", "x", "y")


def test_a_users_mistake_is_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mpnet-ds", "nothing"])
    with pytest.raises(SystemExit) as ended:
        cli.start()
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_demos_commands_have_flags_that_exist():
    steps = demo.steps_of(Path("out"), max_steps=5)
    assert [step.program for step in steps][-1] == "fill_mask"
    for step in steps:
        import_module(f"mpnet_ds.programs.{step.program}").build_parser().parse_args([*map(str, step.arguments)])


def test_the_demo_runs_what_is_still_to_do_and_stops_at_a_failure(monkeypatch, capsys, tmp_path):
    started, codes = [], iter([0, 3])

    def run(words, check):
        started.append(words)
        return subprocess.CompletedProcess(words, next(codes))

    monkeypatch.setattr(sys, "argv", ["demo", "--output_dir", str(tmp_path)])
    monkeypatch.setattr("mpnet_ds.programs.demo.subprocess.run", run)
    (tmp_path / "tokenizer").mkdir()
    assert demo.main() == 3
    assert [words[2] for words in started] == ["mpnet_ds.programs.cli", "deepspeed.launcher.runner"]
    assert started[0][3:5] == ["build-dataset", "--input"]
    assert f"{tmp_path / 'tokenizer'} is there already" in capsys.readouterr().out
