"""Runs one function of the check on a host. ssh.py sends the source of this file and of the function's to standard input.

So every host runs the same code, whatever version of mpnet_ds it has, or none. Standard input then stays open as long as
somebody waits; this process ends with it, whatever the reason.
"""

import json
import os
import select
import signal
import sys
import threading
import time
import traceback

MARK = "@mpnet_ds "  # begins each line of output that is an answer: a login shell may print others


def run(source: str, function: str, arguments: dict, seconds: float) -> None:
    """Prints two answers with this host's clock, at once and when the function has returned; ends after ``seconds``."""
    signal.alarm(int(seconds))  # should nobody notice that the connection is broken
    connection = threading.Thread(target=_end_with_connection, daemon=True)
    connection.start()
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error
    print(MARK + json.dumps({"clock": time.time()}), file=output, flush=True)
    print(MARK + json.dumps(_call(source, function, arguments) | {"clock": time.time()}), file=output, flush=True)
    connection.join()


def _end_with_connection() -> None:
    select.select([0], [], [])  # nothing more is sent: it becomes readable when it ends
    os._exit(0)


def _call(source: str, function: str, arguments: dict) -> dict:
    program = {"__name__": "program"}
    try:
        exec(source, program)
        return {"result": program[function](**arguments)}
    except Exception as error:
        traceback.print_exc()
        fault = f"the check itself failed there ({function}): {type(error).__name__}: {error}"
        return {"findings": getattr(error, "findings", [fault])}  # of a UserError of the host's mpnet_ds


if __name__ == "__main__":
    run(**json.loads(sys.stdin.readline()))
