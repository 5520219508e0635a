"""Marks tests that start processes: ``pytest -m "not process"`` leaves them out (``make test-fast``).

A test starts processes if it, one of its fixtures, or a function of the tests that these name uses ``subprocess``,
fork_server.py or a context of ``multiprocessing``: nobody has to keep a list. Where what is tested starts them, it is marked
by hand.
"""

import functools
import subprocess
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from types import CodeType, FunctionType, ModuleType

import pytest

from tests import fork_server

STARTERS = (subprocess, fork_server)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them, and put their files first: what takes long must not be left for the end, to one worker."""
    for item in items:
        definitions = [each for fixtures in item._fixtureinfo.name2fixturedefs.values() for each in fixtures]
        functions = [item.function, *(definition.func for definition in definitions)]
        if any(starts_processes(function) for function in functions):
            item.add_marker(pytest.mark.process)
    files_first = {item.path for item in items if item.get_closest_marker("process")}
    items.sort(key=lambda item: item.path not in files_first)


def starts_processes(function: Callable) -> bool:
    """Whether a function's code, or that of a function of the tests that it names, uses one of ``STARTERS``."""
    return isinstance(function, FunctionType) and any(
        each in STARTERS or isinstance(each, BaseContext) for each in reached(function)
    )


@functools.cache
def reached(function: FunctionType) -> frozenset:
    """Return the modules and the contexts of ``multiprocessing`` that a function names, itself or by others of the tests."""
    modules, seen, waiting = set(), {function}, [function]
    while waiting:
        for value in values_named(waiting.pop()):
            if isinstance(value, ModuleType | BaseContext):
                modules.add(value)
            elif isinstance(value, FunctionType) and value.__module__.startswith("tests.") and value not in seen:
                seen.add(value)
                waiting.append(value)
    return frozenset(modules)


def values_named(function: FunctionType) -> Iterator[object]:
    """Yield the globals and the variables of enclosing functions that a function's code uses."""
    for cell in function.__closure__ or ():
        yield cell.cell_contents
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        for value in (function.__globals__[name] for name in code.co_names if name in function.__globals__):
            yield from vars(value).values() if isinstance(value, type) else [value]
