"""What every program of the project shares: argument parsing with short errors, and the exit codes.

Exit codes: 0 done, 2 the user must change something (one or two lines on standard error), 1 a fault (a traceback).
"""

import argparse
import difflib
import os
import sys
import time
from collections.abc import Callable


class Parser(argparse.ArgumentParser):
    """``ArgumentParser`` whose ``--help`` keeps the examples as written and whose errors are one line."""

    def __init__(self, description: str, example: str):
        super().__init__(
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str):
        known = [flag for action in self._actions for flag in action.option_strings]
        for word in message.split():
            near = difflib.get_close_matches(word.split("=")[0], known, n=1) if word.startswith("--") else []
            if near and message.startswith("unrecognized"):
                message += f". Did you mean {near[0]}?"
        _say_error(f"{message} (see {self.prog} --help)")
        raise SystemExit(2)


def run(main: Callable[[], int | None]) -> None:
    """Calls ``main`` and leaves the process with its exit code; a ``UserError`` becomes its text and exit code 2."""
    from mpnet_ds.errors import UserError

    try:
        code = main() or 0
    except UserError as error:
        _say_error(str(error))
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def _say_error(text: str) -> None:
    """Prints once per host where every rank finds the same mistake: one voice is enough."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(5)  # a launcher ends all ranks as soon as one leaves: if local rank 0 found it too, it speaks first
    print(f"error: {text}", file=sys.stderr, flush=True)
