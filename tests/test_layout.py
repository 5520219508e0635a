"""The layout of the package: imports run downward between its rooms, in no circle, and torch is imported late."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "mpnet_ds"
ROOMS = (
    ("programs",),
    ("training", "evaluation"),
    ("run",),
    ("preflight",),
    ("hub",),
    ("config",),
    ("data.samples", "checkpoint"),
    ("objectives", "zero", "cluster"),
    ("models", "data.builder"),
    ("ranks", "data.text", "data.storage"),
    ("ground",),
)
"""From the top to the ground; rooms of one line do not import each other."""
HANDED_OUT = ("data", "checkpoint")
"""Packages whose ``__init__`` hands out names of rooms above them, on request."""
FOREIGN = dict.fromkeys(("zero", "ranks"), ("models", "objectives", "data.text", "data.builder", "data.storage"))
"""Rooms below another of which it knows nothing all the same."""
LATE = {("objectives", "models")}
"""Rooms that import another only inside functions: objectives must be usable without torch."""


def module_of(path: Path, root: Path) -> str:
    """Dotted name of a file below ``root``, without the package's own name; ``""`` for its ``__init__``."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, modules: set[str], only_at_import: bool = False) -> Iterator[str]:
    """Modules of the package that a file imports, functions' own imports among them unless ``only_at_import``."""
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), only_at_import):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            base = node.module.removeprefix(PACKAGE).removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                yield inner if inner in modules else base
        elif isinstance(node, ast.Import):
            yield from (
                a.name.removeprefix(PACKAGE).removeprefix(".") for a in node.names if a.name.startswith(PACKAGE + ".")
            )


def _nodes(node: ast.AST, only_at_import: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if only_at_import and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _nodes(child, only_at_import)


def room_of(module: str) -> str:
    """Room of a module; files at the top of the package are the ground."""
    rooms = [room for line in ROOMS for room in line if module == room or module.startswith(room + ".")]
    if rooms:
        return rooms[0]
    assert "." not in module, f"{module} is in no room"
    return "ground"


def level_of(room: str) -> int:
    """Line of a room, from the top."""
    return next(number for number, line in enumerate(ROOMS) if room in line)


def find_faults(root: Path) -> list[str]:
    """What is wrong with the imports of a package in ``root``, one line each."""
    paths = {module_of(path, root): path for path in sorted(root.rglob("*.py"))}
    graph = {
        name: set(imports_of(path, set(paths))) - {"", name} for name, path in paths.items() if name not in ("", "model")
    }
    faults = []
    for name in graph.keys() - set(HANDED_OUT):
        for other in sorted(graph[name] - set(HANDED_OUT)):
            above, below = room_of(name), room_of(other)
            if above != below and level_of(below) <= level_of(above):
                faults.append(f"{name} imports {other}: {below} is not below {above}")
            if below in FOREIGN.get(above, ()):
                faults.append(f"{name} imports {other}: {above} knows nothing of {below}")
    for above, below in LATE:
        for name in (name for name in graph if room_of(name) == above):
            early = set(imports_of(paths[name], set(paths), only_at_import=True)) - {""}
            faults += [f"{name} imports {other} outside of a function" for other in early if room_of(other) == below]
    return faults + [f"circle: {' → '.join(circle)}" for circle in _circles(graph)]


def _circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Import circles between files, functions' own imports among them."""
    circles, done = [], set()

    def walk(name: str, way: list[str]) -> None:
        if name in way:
            circles.append([*way[way.index(name) :], name])
        elif name not in done:
            for other in sorted(graph.get(name, ())):
                walk(other, [*way, name])
            done.add(name)

    for name in sorted(graph.keys() - set(HANDED_OUT)):
        walk(name, [])
    return circles


def test_imports_run_downward_and_in_no_circle():
    assert find_faults(ROOT / PACKAGE) == []


CIRCLE = {"files": "from mpnet_ds.errors import A", "errors": "def f():\n    from mpnet_ds import files"}


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        (CIRCLE, "circle: errors → files → errors"),
        ({"config/recipe": "from mpnet_ds.hub.export import A", "hub/export": ""}, "hub is not below config"),
        (
            {"data/samples/a": "from mpnet_ds.checkpoint import b", "checkpoint/b": ""},
            "checkpoint is not below data.samples",
        ),
        ({"zero/a": "import mpnet_ds.data.storage.manifest", "data/storage/manifest": ""}, "zero knows nothing of data"),
        ({"errors": "from mpnet_ds.ranks.disks import A", "ranks/disks": ""}, "ranks is not below ground"),
        ({"objectives/mlm": "from mpnet_ds.models.module import A", "models/module": ""}, "outside of a function"),
    ],
)
def test_a_planted_fault_is_found(tmp_path, files, fault):
    for name, text in files.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert any(fault in found for found in find_faults(tmp_path))


def needs_no_torch(module: str) -> bool:
    """Whether a module belongs to what ``--help``, data and drawing of samples are made of."""
    rooms = {room.split(".")[0] for line in ROOMS for room in line}
    is_ground = "." not in module and module not in ("", "model", *rooms)
    return is_ground or module == "config.arguments" or module.split(".")[0] in ("programs", "data", "objectives")


def test_parsers_load_no_large_library_and_data_and_objectives_no_torch():
    modules = [module_of(path, ROOT / PACKAGE) for path in sorted((ROOT / PACKAGE).rglob("*.py"))]
    program = """
import importlib, sys
for name in sorted(sys.argv[1:], key=lambda name: "programs" not in name):
    module = importlib.import_module(name)
    if hasattr(module, "build_parser"):
        module.build_parser().format_help()
        loaded = {"torch", "transformers", "datasets", "deepspeed", "pyarrow", "pandas"} & set(sys.modules)
        assert not loaded, (name, loaded)
    assert "torch" not in sys.modules, name
"""
    dry = [f"{PACKAGE}.{module}" for module in modules if needs_no_torch(module)]
    assert sum("programs" in name for name in dry) > 10
    ended = subprocess.run([sys.executable, "-c", program, *dry], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
