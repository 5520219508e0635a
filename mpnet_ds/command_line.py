"""Command-line programs: argument parsing with one-line errors, and exit codes.

Exit codes: 0 done, 2 the user must change something (one or two lines on standard error), 1 a fault (a traceback).
"""

import argparse
import atexit
import difflib
import gc
import os
import re
import shlex
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from mpnet_ds import start_up
from mpnet_ds.errors import AgreedError, UserError, fault_of_disk
from mpnet_ds.last_word import leave_in_order
from mpnet_ds.lasting_output import outlive_readers

UNITS = {"": 1, "B": 1}
UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)}
UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", 1)}


def size(text: str) -> int:
    """Parse an argument such as ``64MB``, ``1.5GiB`` or ``1000`` as bytes."""
    found = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in UNITS or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 64MB or 2GiB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def words_of(program: str) -> list[str]:
    """Return the beginning of a command that starts a program of ``mpnet_ds/programs`` from where the user stands.

    It is the program's script in a checkout, but ``mpnet-ds`` where that was used, or where there is no checkout.
    """
    script = Path(__file__).parents[1] / ("launch" if program == "pretrain" else "tools") / f"{program}.py"
    is_checkout = script.is_file() and not sys.argv[0].startswith("mpnet-ds")
    place = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script
    if program == "pretrain":
        return [_on_path("deepspeed"), *([str(place)] if is_checkout else ["--module", "mpnet_ds.training.pretrain"])]
    return [_on_path("python"), str(place)] if is_checkout else [_on_path("mpnet-ds"), program.replace("_", "-")]


def invocation(program: str, *arguments: object) -> str:
    """Return a command that can be pasted into a shell where the user stands; beginning as in ``words_of``."""
    return shlex.join([*words_of(program), *map(str, arguments)])


def _on_path(name: str) -> str:
    """Name of a command beside this Python; its path where the shell would find another one, or none."""
    here, found = Path(sys.executable).parent, shutil.which(name)
    is_found = found is not None and Path(found).parent.samefile(here)
    return name if is_found or not (here / name).exists() else str(here / name)


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` with an example in ``--help`` that finds all mistakes, each told in one line.

    Args:
        example: a complete command.
        explain: returns what to use instead of an unknown flag with the words that follow it, or None.
        intermixed: whether flags may be between positional arguments.
    """

    def __init__(
        self,
        description: str,
        example: str,
        explain: Callable[..., str | None] = lambda flag, *words: None,
        intermixed: bool = False,
    ):
        super().__init__(
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            exit_on_error=False,
        )
        self.explain, self.intermixed = explain, intermixed

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:
        """Parse; exit with code 2 and a line for each mistake."""
        given, findings = self.examine(args)
        if findings:
            self.exit_for(findings)
        return given

    def exit_for(self, findings: Sequence[str]) -> NoReturn:
        """Exit with code 2 and a line for each mistake."""
        _say_error(f"{UserError(*findings)} (see {self.prog} --help)")
        raise SystemExit(2)

    def examine(self, args: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
        """Parse what is valid, and say what is wrong; a flag that is wrong has its default.

        argparse ends at the first mistake: each is taken out of the words, and the rest is parsed again.
        """
        words, findings = list(sys.argv[1:] if args is None else args), []
        required, wrong = [action for action in self._actions if action.required], []
        try:
            while True:
                try:
                    given, unknown = (self.parse_known_intermixed_args if self.intermixed else self.parse_known_args)(words)
                    break
                except argparse.ArgumentError as error:
                    action = next((one for one in self._actions if _name(one) == error.argument_name), None)
                    if action is None and any(one.required for one in required):
                        for one in required:
                            one.required = False
                        continue
                    findings.append(str(error))
                    rest = _without(words, action) if action is not None else words
                    if rest == words:
                        return argparse.Namespace(), findings
                    words = rest
                    wrong.append(action)
        finally:
            for one in required:
                one.required = True
        unrecognized = list(map(self._explain_unknown, _split_at_flags(unknown)))
        if wants_help := [text for text in unrecognized if text.endswith("Did you mean --help?")]:
            self.exit_for(wants_help)
        missing = [_name(one) for one in required if getattr(given, one.dest) is None and one not in wrong]
        missing = [name for name in missing if not any(name in text.partition(". ")[2] for text in unrecognized)]
        if missing:
            findings.append(f"the following arguments are required: {', '.join(missing)}")
        return given, findings + unrecognized

    def error(self, message: str):
        """Raise instead of exiting, for ``examine``."""
        raise argparse.ArgumentError(None, message)

    def _explain_unknown(self, words: list[str]) -> str:
        """Name words that no flag takes, with the nearest flag if one was misspelt."""
        flag, _, value = words[0].partition("=")
        known = [name for action in self._actions if action.help != argparse.SUPPRESS for name in action.option_strings]
        near = difflib.get_close_matches(flag, known, n=1)
        advice = self.explain(flag, *filter(None, [value]), *words[1:]) if flag.startswith("--") else ""
        text = f"unrecognized arguments: {' '.join(words)}"
        return f"{text}. {advice}" if advice else f"{text}. Did you mean {near[0]}?" if near else text


def _name(action: argparse.Action) -> str | None:
    """Name an argument as ``ArgumentError.argument_name`` does."""
    return "/".join(action.option_strings) or action.metavar or action.dest


def _split_at_flags(words: list[str]) -> list[list[str]]:
    """Split words into those of each flag."""
    parts: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not parts:
            parts.append([])
        parts[-1].append(word)
    return parts


def _without(words: list[str], action: argparse.Action) -> list[str]:
    """Take a flag out of the words of a command line, with its values."""
    rest = []
    for own in _split_at_flags(words):
        flag, equals, _ = own[0].partition("=")
        if flag not in action.option_strings:
            rest += own
        elif action.nargs in (None, 0):
            rest += own[1 if equals or action.nargs == 0 else 2 :]
    return rest


def run(main: Callable[[], int | None]) -> None:
    """Call ``main`` and exit with its code; for a ``UserError``, print its text and exit with code 2."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    outlive_readers()
    sys.stdout.reconfigure(errors="backslashreplace")  # a path or a piece may have characters that the terminal lacks
    start_up.begin("loading what it needs", start_up.AFTER, sys.stderr)
    try:
        try:
            code = main() or 0
        finally:
            start_up.end()
    except UserError as error:
        _say_error(str(error), is_agreed=isinstance(error, AgreedError))
        code = 2
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
    atexit.register(gc.freeze)  # else the interpreter searches all that libraries have created for garbage, for a second
    sys.exit(code)


def _say_error(text: str, is_agreed: bool = False) -> None:
    """Print what the ranks have agreed on on rank 0 alone, anything else on the first rank of each host first.

    All ranks may have found the same mistake: then the others, which come later, are ended before they repeat it.
    """
    is_speaker = os.environ.get("RANK" if is_agreed else "LOCAL_RANK", "0") == "0"
    leave_in_order(is_speaker)
    if is_speaker or not is_agreed:
        print(f"error: {text}", file=sys.stderr, flush=True)
