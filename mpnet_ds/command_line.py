"""Command-line programs: argument parsing with one-line errors, and exit codes.

Exit codes: 0 done, 2 the user must change something (one or two lines on standard error), 1 a fault (a traceback).
"""

import argparse
import difflib
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable

from mpnet_ds import start_up
from mpnet_ds.errors import AgreedError, UserError, fault_of_disk
from mpnet_ds.last_word import leave_in_order

UNITS = {"": 1, "B": 1}
UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)}
UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", 1)}


def size(text: str) -> int:
    """Parse an argument such as ``64MB``, ``1.5GiB`` or ``1000`` as bytes."""
    found = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in UNITS or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 64MB or 2GiB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def invocation(program: str) -> str:
    """Return the command that starts a program of ``mpnet_ds/programs``: its script in a checkout, else ``mpnet-ds``."""
    if program == "pretrain":
        script = "launch/pretrain.py"
        return f"deepspeed {script if os.path.exists(script) else '--module mpnet_ds.training.pretrain'}"
    script = f"tools/{program}.py"
    return f"python {script}" if os.path.exists(script) else f"mpnet-ds {program.replace('_', '-')}"


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` with an example in ``--help`` and errors of one line.

    Args:
        example: a complete command.
        explain: returns what to use instead of an unknown flag, or None.
    """

    def __init__(self, description: str, example: str, explain: Callable[[str], str | None] = lambda flag: None):
        super().__init__(
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.explain = explain

    def error(self, message: str):
        """Exit with code 2 and one line, with the nearest flag if one was misspelt."""
        known = [flag for action in self._actions for flag in action.option_strings]
        flags = [word.split("=")[0] for word in message.split() if word.startswith("--")]
        for flag in flags if message.startswith("unrecognized") else ():
            near = difflib.get_close_matches(flag, known, n=1)
            if advice := self.explain(flag) or (f"Did you mean {near[0]}?" if near else ""):
                message = f"{message.rstrip('.')}. {advice}"
        _say_error(f"{message} (see {self.prog} --help)")
        raise SystemExit(2)


def run(main: Callable[[], int | None]) -> None:
    """Call ``main`` and exit with its code; for a ``UserError``, print its text and exit with code 2."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    sys.stdout.reconfigure(errors="backslashreplace")  # a path or a piece may have characters that the terminal lacks
    try:
        try:
            code = main() or 0
        finally:
            start_up.end()
    except UserError as error:
        _say_error(str(error), is_agreed=isinstance(error, AgreedError))
        code = 2
    except BrokenPipeError:  # the reader of the output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt as interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # already exiting
        print(": ".join(filter(None, ("interrupted", str(interrupt)))), file=sys.stderr)
        code = 130
    except Exception as error:
        fault = fault_of_disk(error, "a file")
        if fault is None:
            raise
        what, _, reason = fault.rpartition(": ")
        _say_error(f"{what}: {reason.lower()}.")
        code = 2
    sys.exit(code)


def _say_error(text: str, is_agreed: bool = False) -> None:
    """Print what the ranks have agreed on on rank 0 alone, anything else on the first rank of each host first.

    All ranks may have found the same mistake: then the others, which come later, are ended before they repeat it.
    """
    is_speaker = os.environ.get("RANK" if is_agreed else "LOCAL_RANK", "0") == "0"
    leave_in_order(is_speaker)
    if is_speaker or not is_agreed:
        print(f"error: {text}", file=sys.stderr, flush=True)
