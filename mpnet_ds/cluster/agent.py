"""What runs on each host while a cluster is checked: ``python -m mpnet_ds.cluster.agent``, started over ssh.

It reads requests from standard input, one line of JSON each, and answers them one after another on standard output. It
leaves, with everything that it has started, as soon as standard input ends: that is the one sign that always comes,
whether the check is done, interrupted, killed, or its machine gone. Nothing but the standard library is needed to speak.
"""

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

MARK = "@mpnet_ds "
"""Begins each line that is an answer."""
SECONDS_IDLE = 900  # without a request: the connection is broken, and nobody said so


def main() -> None:
    """Answers requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")  # libraries and children may print what they like: it goes to standard error
    os.dup2(2, 1)
    requests: queue.Queue = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    _say(answers, {"number": 0, "result": "here"})
    while True:
        try:
            request = requests.get(timeout=SECONDS_IDLE)
        except queue.Empty:
            leave()
        _say(answers, {"number": request["number"]} | _answer(request["what"], request["arguments"]))


def leave() -> None:
    """Ends this process at once, whatever its threads are doing, and its children first."""
    from mpnet_ds.cluster import children

    children.end_all()
    os._exit(0)


def _listen(requests: queue.Queue) -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    leave()


def _say(answers, answer: dict) -> None:
    try:
        print(MARK + json.dumps(answer), file=answers, flush=True)
    except BrokenPipeError:
        leave()


def _answer(what: str, arguments: dict) -> dict:
    """``{"result": …}``, ``{"findings": […]}`` of a UserError or, where the check itself fails, ``{"fault": …}``."""
    from mpnet_ds.errors import UserError

    try:
        return {"result": _functions()[what](**arguments)}
    except UserError as error:
        return {"findings": error.findings}
    except Exception as error:
        traceback.print_exc()
        return {"fault": f"{type(error).__name__}: {error}"}


def _functions() -> dict[str, Callable[..., Any]]:
    from mpnet_ds.cluster import bandwidth, links, probe

    return {
        "time": time.time,
        "look": probe.look,
        "addresses": probe.addresses,
        "route": probe.route,
        "listen": links.listen,
        "hush": links.hush,
        "connect": links.connect_to_all,
        "measure": bandwidth.measure_here,
    }


if __name__ == "__main__":
    main()
