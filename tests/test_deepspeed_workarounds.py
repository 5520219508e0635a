"""Private parts of DeepSpeed and torch are touched in one file, each for a reason that can be checked again."""

import ast
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed

from mpnet_ds import deepspeed_workarounds

ROOT = Path(__file__).parent.parent
FILE = Path(deepspeed_workarounds.__file__)
LIBRARIES = ("deepspeed", "torch")
OBJECTS = ("engine", "deepspeed", "optimizer")
"""What objects of these libraries are called in the package."""
WORKAROUNDS = [
    node for node in ast.parse(FILE.read_text()).body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
]


@pytest.mark.parametrize("function", WORKAROUNDS, ids=lambda node: node.name)
def test_each_workaround_says_why_since_which_version_and_which_test_tells_when_it_can_go(function):
    text = ast.get_docstring(function)
    assert re.search(r"^Seen in (DeepSpeed|torch) \d+\.\d+\.\d+.*: .{20}", text, re.MULTILINE), text
    path, name = re.search(r"^Test: (tests/\S+\.py)::(test_\w+)$", text, re.MULTILINE).groups()
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"no {name} in {path}"


def find_private_parts(text: str) -> Iterator[str]:
    """Lines of a program that touch private parts of the libraries, as far as names tell.

    These are: modules and names with a leading underscore that are imported from them; attributes with one that are reached
    from a name imported from them or from something called engine, deepspeed or optimizer; and assignments to any attribute
    of either. ``self.engine`` is the trainer's, of this package. An object that goes by another name is not noticed.
    """
    tree = ast.parse(text)
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            for alias in node.names:
                path = f"{module}.{alias.name}" if module else alias.name
                if path.split(".")[0] in LIBRARIES:
                    imported.add(alias.asname or (alias.name if module else path.split(".")[0]))
                    if any(map(_is_private, path.split("."))):
                        yield ast.unparse(node)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            *owner, attribute = _names(node)
            is_theirs = bool(owner) and (owner[0] in imported or owner[-1] in OBJECTS) and owner != ["self", "engine"]
            if is_theirs and (_is_private(attribute) or isinstance(node.ctx, ast.Store)):
                yield ast.unparse(node)


def _names(node: ast.expr) -> list[str]:
    """``a.b().c`` → a, b, c."""
    names = []
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        if isinstance(node, ast.Attribute):
            names.append(node.attr)
        node = node.func if isinstance(node, ast.Call) else node.value
    return [node.id if isinstance(node, ast.Name) else "", *reversed(names)]


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("path", sorted(set(FILE.parent.rglob("*.py")) - {FILE}), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_other_file_touches_private_parts(path):
    assert list(find_private_parts(path.read_text())) == []


@pytest.mark.parametrize(
    "program",
    [
        "import torch\ntorch._dynamo.reset()",
        "def f():\n    from torch.utils._triton import has_triton",
        "from torch import _C",
        "import torch.distributed as dist\ndist.distributed_c10d._set_pg_timeout(1)",
        "import torch\ntorch.distributed.distributed_c10d.default_pg_timeout = 1",
        "self.deepspeed._copy_recovery_script = None",
        "engine.checkpoint_engine = files",
        "ties = engine._get_shared_params()",
        "self.deepspeed.optimizer.step = step",
        "import torch\ntorch.ops.aten._softmax_backward_data.out(1)",
    ],
)
def test_a_planted_touch_is_found(program):
    assert list(find_private_parts(program))


def test_timeout_of_process_groups_is_set():
    store = torch.distributed.HashStore()
    c10d = torch.distributed.distributed_c10d
    defaults = c10d.default_pg_timeout, c10d.default_pg_nccl_timeout
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timedelta(seconds=7))
    try:
        deepspeed_workarounds.set_collective_timeout(11)
        for group in (torch.distributed.group.WORLD, torch.distributed.new_group([0])):
            assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=11)
    finally:
        torch.distributed.destroy_process_group()
        c10d.default_pg_timeout, c10d.default_pg_nccl_timeout = defaults


def test_a_tensor_is_kept_through_checkpointing():
    from deepspeed.runtime.activation_checkpointing.checkpointing import is_activation_to_checkpoint

    kept, emptied = torch.ones(2, requires_grad=True) * 1, torch.ones(2, requires_grad=True) * 1
    deepspeed_workarounds.keep_through_checkpointing(kept)
    assert [is_activation_to_checkpoint(tensor) for tensor in (kept, emptied)] == [False, True]


def test_torch_still_tells_whether_there_is_triton():
    assert deepspeed_workarounds.has_triton() is (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (7, 0))
