"""Runs a function in several ranks that are forks of this process: what it has imported, all of them have."""

import os
import signal
import sys
import traceback
from collections.abc import Callable

from tests.runs import free_port


def run_ranks(num_ranks: int, function: Callable, *arguments) -> None:
    """Call a function in each rank, each with the environment of a launcher; if one fails, end the others and exit."""
    os.environ |= {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    children = {_fork(rank, function, arguments) for rank in range(num_ranks)}
    while children:
        child, status = os.wait()
        children.discard(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
            sys.exit(1)


def _fork(rank: int, function: Callable, arguments: tuple) -> int:
    child = os.fork()
    if child:
        return child
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    try:
        function(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)
