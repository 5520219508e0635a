"""What a run says until its first step, and what it does not load for it."""

import gc
import io
import queue
import subprocess
import sys

import pytest

from mpnet_ds import start_up
from mpnet_ds.lasting_output import LastingStream
from mpnet_ds.programs import pretrain
from mpnet_ds.progress import Progress
from tests.runs import ROOT, environment

ALONE = """
import sys, torch
import mpnet_ds.training.pretrain
from mpnet_ds.config.recipe import load_recipe
from mpnet_ds.deepspeed_workarounds import leave_out_compiler, leave_out_triton
from mpnet_ds.models import MPNetForPretraining
model = MPNetForPretraining(load_recipe("mpnet-tiny").model.sizes(50))
leave_out_compiler()
leave_out_triton()
import deepspeed.runtime.engine, deepspeed.module_inject.auto_ep_layer
optimizer = torch.optim.AdamW(model.parameters())
optimizer.zero_grad()
optimizer.step()
for name in ("transformers", "torch._dynamo.eval_frame", "triton"):
    assert name not in sys.modules, name
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)) == 2
assert "torch._dynamo.eval_frame" in sys.modules and torch._dynamo is sys.modules["torch._dynamo"]
model.config.to_dict()
assert "transformers" in sys.modules
"""


@pytest.fixture
def said(monkeypatch):
    """A queue of the lines that are said, on rank 0 with the arguments of a run."""
    lines = queue.Queue()
    monkeypatch.setattr(start_up, "print", lambda text, file, flush: lines.put(text), raising=False)
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--data", "d"])
    for name in start_up.RANKS:
        monkeypatch.delenv(name, raising=False)
    yield lines
    start_up.end()


def test_each_part_is_said_and_again_while_it_takes_long(said, monkeypatch):
    monkeypatch.setattr(start_up, "PATIENCE", 0.01)
    start_up.begin("starting")
    assert said.get(timeout=10).endswith("s] starting")
    assert "s] still starting, for 0 s" in said.get(timeout=10)
    monkeypatch.setattr(start_up, "PATIENCE", 1000.0)
    start_up.enter("loading")
    while not (line := said.get(timeout=10)).endswith("s] loading"):
        assert "still starting" in line
    start_up.end()
    start_up.enter("training")
    assert said.empty()


def test_other_programs_speak_only_if_they_take_long_and_not_beside_a_progress_bar(said, monkeypatch):
    monkeypatch.setattr(start_up, "PATIENCE", 0.01)
    start_up.begin("loading", after=1000.0, file=sys.stderr)
    start_up.begin("loading", after=0.01, file=sys.stderr)
    assert said.get(timeout=10).endswith("s] loading")
    Progress("Working", 1).close()
    while not said.empty():
        assert "loading" in said.get()
    start_up.enter("comparing")
    while not (line := said.get(timeout=10)).endswith("s] comparing"):
        assert "still loading" in line
    LastingStream(io.StringIO(), speaks=True).write("the result")
    while not said.empty():
        assert "comparing" in said.get()
    with pytest.raises(queue.Empty):
        said.get(timeout=0.1)


@pytest.mark.parametrize("variable", start_up.RANKS)
def test_other_ranks_say_nothing(said, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    start_up.begin("starting")
    start_up.enter("loading")
    assert said.empty()


def test_help_begins_with_the_help(said, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--help"])
    start_up.begin("starting")
    assert said.empty()


def test_a_run_tells_what_it_waits_for(trained):
    parts = ["starting", "loading PyTorch", "loading DeepSpeed", "reading the settings", "connecting 1 rank", "checking"]
    parts += ["building the model", "building DeepSpeed's engine", "evaluating before", "the first step"]
    text = trained().out
    found = [text.index(f" s] {part}") for part in parts]
    assert found == sorted(found)
    assert text.index("step 1/") > found[-1]


def test_the_first_line_comes_before_anything_is_loaded():
    program = "import sys; import mpnet_ds.command_line, mpnet_ds.programs.pretrain as p; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert "mpnet_ds.start_up" in loaded.stdout.split()
    assert not {"torch", "numpy", "pydantic", "transformers", "deepspeed"}.intersection(loaded.stdout.split())


def test_training_loads_what_it_needs_and_the_rest_when_it_is_used():
    done = subprocess.run([sys.executable, "-c", ALONE], env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_wrong_command_line_leaves_garbage_collection_on(monkeypatch):
    monkeypatch.setattr("sys.argv", ["pretrain", "--hlep"])
    with pytest.raises(SystemExit):
        pretrain.main()
    start_up.end()
    assert gc.isenabled()
