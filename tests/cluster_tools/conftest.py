"""Hosts that are this machine: an ``ssh`` that runs the command here, or fails as the real one does."""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mpnet_ds.cluster.ssh import Launch, RemoteCall
from tests.runs import ROOT

SSH = """#!/bin/sh
# The last word is the command, the one before it the host.
while [ $# -gt 2 ]; do echo "$1" >> {folder}/options; shift; done
if [ -f {folder}/"$1".sh ]; then . {folder}/"$1".sh; fi
exec sh -c "$2"
"""
LAUNCH = Launch(sys.executable, str(ROOT), {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


@pytest.fixture
def fake_ssh(tmp_path, monkeypatch) -> Callable[[str, str], None]:
    """A function (host, script): what ssh to that host does first, in ``sh``; other hosts simply run the command."""
    folder = tmp_path / "ssh"
    folder.mkdir()
    (folder / "ssh").write_text(SSH.format(folder=folder))
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}")

    def behave(host: str, script: str) -> None:
        (folder / f"{host}.sh").write_text(script + "\n")

    return behave


async def result_of(call: RemoteCall) -> dict:
    """The result of a call, which is closed then."""
    try:
        return await call.result()
    finally:
        await call.close()


def call_all(function, *arguments: dict, seconds: float = 60, launch: Launch = LAUNCH) -> list[dict]:
    """Calls a function on n1 with each of these arguments at the same time."""

    async def run() -> list[dict]:
        return await asyncio.gather(*(result_of(RemoteCall("n1", launch, function, seconds, each)) for each in arguments))

    return asyncio.run(run())
