"""The built-in sample corpus: the docstrings of this interpreter's standard library, about 2 MB of English.

The docstring of each module, class and function is a document; each of its paragraphs is a sequence.
"""

import ast
import inspect
import itertools
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from mpnet_ds.errors import UserError

NAME = "builtin-sample"
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def files() -> list[Path]:
    """List the modules of the standard library, sorted."""
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(file for file in root.rglob("*.py") if not _LEFT_OUT & set(file.relative_to(root).parts))


def iterate() -> Iterator[list[str]]:
    """Yield the documents as lists of sequences, module by module."""
    return itertools.chain.from_iterable(map(_documents_of, files()))


@cache
def documents() -> list[list[str]]:
    """Return all documents as lists of sequences."""
    found = list(iterate())
    if not found:
        where = sysconfig.get_path("stdlib")
        raise UserError(f"the standard library in {where} has no readable docstrings: pass text with --input.")
    return found


def beginning(num_characters: int) -> list[str]:
    """Return the first sequences, ``num_characters`` or a little more in all; fewer where the library has fewer."""
    sequences, length = [], 0
    for paragraphs in iterate():
        sequences += paragraphs
        length += sum(map(len, paragraphs))
        if length >= num_characters:
            break
    return sequences


def _documents_of(path: Path) -> Iterator[list[str]]:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # a few files of the library are broken on purpose, or are templates
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            paragraphs = _paragraphs(ast.get_docstring(node, clean=False) or "")
            if paragraphs:
                yield paragraphs


def _paragraphs(docstring: str) -> list[str]:
    """Split a docstring into paragraphs, with line breaks and indentation folded into single spaces."""
    paragraphs, lines = [], []
    for line in [*inspect.cleandoc(docstring).splitlines(), ""]:
        if line.strip():
            lines.append(line)
        elif lines:
            paragraphs.append(" ".join(" ".join(lines).split()))
            lines = []
    return paragraphs
