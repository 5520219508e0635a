"""What tests on several hosts need from the machine, and a clear word where they cannot run.

``python -m tests.cluster.requirements`` prints what is missing, exit code 2. tests/conftest.py loads this file as a plugin
of pytest: the tests in this folder are skipped with the reasons, which are said once more at the very end.
"""

import functools
import os
import sys
from pathlib import Path

import pytest

from tests.cluster.namespaces import Namespace
from tests.cluster.packages import CLUSTER, missing_programs

TRIAL = "ip link add switch type bridge\nip link add port type veth peer name eth0\nmount -t tmpfs none /run"
HERE = Path(__file__).parent


@functools.cache
def reasons() -> tuple[str, ...]:
    """Why clusters cannot be made here; empty where they can."""
    if not sys.platform.startswith("linux"):
        return ("they are made of Linux network namespaces",)
    if os.geteuid() != 0:
        return ("only root may make network namespaces",)
    missing = missing_programs(CLUSTER)
    if missing:
        return tuple(missing)
    try:
        Namespace(TRIAL).close()
    except RuntimeError as error:
        return (f"this machine does not permit network namespaces with a bridge: {error}",)
    return ()


def needs(*programs: str) -> pytest.MarkDecorator:
    """A mark for tests that need these programs beyond what all clusters need: skipped where one is missing."""
    missing = missing_programs(programs)
    return pytest.mark.skipif(bool(missing), reason="; ".join(missing))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    if ours and reasons():
        for item in ours:
            item.add_marker(pytest.mark.skip(reason="; ".join(reasons())))


def pytest_terminal_summary(terminalreporter) -> None:
    skipped = [each for each in terminalreporter.stats.get("skipped", []) if each.nodeid.startswith("tests/cluster/")]
    if skipped:
        why = {each.longrepr[2].removeprefix("Skipped: ") for each in skipped}
        terminalreporter.section(f"{len(skipped)} tests on several hosts (tests/cluster) did NOT run", red=True)
        for reason in sorted(why):
            terminalreporter.line(f"  {reason}")
        terminalreporter.line("  As root on Debian or Ubuntu, 'make test-cluster' installs what they need and runs them.")


if __name__ == "__main__":
    for reason in reasons():
        print(f"tests on several hosts cannot run here: {reason}", file=sys.stderr)
    sys.exit(2 if reasons() else 0)
