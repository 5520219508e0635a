"""Exceptions for errors that the user must fix."""

import difflib
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input. The text says what is wrong, where, and what to do; programs print it and exit with code 2.

    ``UserError(text)`` is one finding; several texts are several findings, printed as a numbered list. One without a text
    ends what would follow from a finding that has been reported already: see ``UNKNOWN``.
    """

    @property
    def findings(self) -> tuple[str, ...]:
        """One text for each problem."""
        return self.args

    def __str__(self) -> str:
        if len(self.findings) < 2:
            return "".join(self.findings)
        lines = [f"\n  {number}. {text}" for number, text in enumerate(self.findings, 1)]
        return f"{len(lines)} problems to fix:{''.join(lines)}"


class Unknown:
    """Something that could not be read, which was reported: asking it for anything raises a ``UserError`` without a text."""

    def __getattr__(self, name: str):
        """Raise; ``hasattr`` and the like do so too."""
        raise UserError


UNKNOWN = Unknown()


@contextmanager
def collecting(findings: list[str]) -> Iterator[None]:
    """End the block at a ``UserError``, and add its texts to ``findings``: what follows the block continues."""
    try:
        yield
    except UserError as error:
        findings += error.findings


def each_of(*checks: Callable[[], object]) -> list:
    """Call all checks; return their results, or raise one ``UserError`` with what all of them find."""
    findings: list[str] = []
    results = []
    for check in checks:
        with collecting(findings):
            results.append(check())
    if findings:
        raise UserError(*findings)
    return results


class AgreedError(UserError):
    """A ``UserError`` that every rank raises with the same text, so that rank 0 prints it for all."""


def fault_of_disk(error: BaseException, where: object = "") -> str | None:
    """What a disk did, in words, if an exception is its fault: ``cannot write to FILE: No space left on device``.

    Also where a library has made the system's error into another exception. ``where``: what stands for an unknown file.
    """
    found = re.search(r"\[Errno (\d+)\]|\(os error (\d+)\)", str(error))  # the latter is Rust's
    number = int(found[1] or found[2]) if found and not isinstance(error, UserError) else None
    if number not in _REFUSED | _FAULTS:
        return None
    name = getattr(error, "filename", None) or where
    return f"{'cannot write to ' if number in _REFUSED else ''}{name}: {os.strerror(number)}"


_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
"""What only writing meets."""
_FAULTS = {
    *(errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.ENOLCK, errno.EBUSY),
    *(errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.EREMOTEIO, errno.EUCLEAN, errno.EBADMSG),
}
"""What reading or writing meets."""


def printable(text: str) -> str:
    r"""Return a text that may hold paths as UTF-8 can hold it: other bytes of a path's name as ``\udce9``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(text: str) -> str:
    r"""Return a text that may hold paths in one printable line: control characters in a path's name as ``\n``, ``\x1b``."""
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: found[0].encode("unicode_escape").decode(), printable(text))


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Return the one of ``choices`` that looks most like a word, None if none does."""
    choices = {choice.lower(): choice for choice in sorted(choices)}
    near = difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.6)
    return choices[near[0]] if near else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``Did you mean 'x'?`` with the nearest of ``choices``, or list all of them if none is near."""
    choices = sorted(choices)
    near = nearest(word, choices)
    return f"Did you mean '{near}'?" if near else f"Known: {', '.join(choices) or 'none'}."
