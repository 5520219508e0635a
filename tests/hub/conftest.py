"""The checkpoints and exports that tests of this folder read, and programs run in this process."""

import sys
from importlib import import_module

import pytest

from tests.checkpoint.fixtures import copied, encoder_folder, exported, foreign, saved, with_manifest  # noqa: F401


@pytest.fixture
def program(monkeypatch, capsys):
    """``program(name, *arguments)``: runs one of ``mpnet_ds.programs`` in this process; what it printed."""

    def run(name: str, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        import_module(f"mpnet_ds.programs.{name}").main()
        return capsys.readouterr()

    return run
