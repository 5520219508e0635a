"""How the machine computes a run: choices of the command line that change neither what is trained nor a checkpoint.

They are not part of a run's identity: a run may resume with others. Its losses then agree to rounding; on a GPU, back-ends
of attention drop other probabilities.
"""

import argparse
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mpnet_ds.attention_backends import AUTO, check_backend
from mpnet_ds.deepspeed_workarounds import has_triton
from mpnet_ds.errors import UserError
from mpnet_ds.findings import Finding
from mpnet_ds.objectives.model_section import ModelSection


@dataclass(frozen=True)
class Execution:
    """The choices, checked as far as their names go."""

    attention: str = AUTO
    """``auto``, or a back-end by name (see ``mpnet_ds.models.attention.backend``)."""
    compile: bool = False
    """torch.compile of the layers (see ``compilation.py``)."""
    profile: int | None = None
    """Step that is profiled, from 1 (see ``profile.py``); None: no step."""

    def __post_init__(self):
        check_backend(self.attention)

    def on(self, device: torch.device, model: ModelSection) -> "Execution":
        """The same with nothing left to choose: what ``auto`` is on the device; ``UserError`` if it cannot compute so."""
        if self.compile:
            check_compiler(device)
        return self.on_assumed(device, model)

    def on_assumed(self, device: torch.device, model: ModelSection) -> "Execution":
        """The same for a device that is not here, and about which there is nothing to find out."""
        return replace(self, attention=model.choose_attention(self.attention, device))

    def check_steps(self, max_steps: int, done: int = 0) -> list[Finding]:
        """Findings where there is no such step to profile: of ``max_steps``, ``done`` are behind the run's checkpoint."""
        if self.profile is None:
            return []
        if not 1 <= self.profile <= max_steps:
            return [Finding(f"--profile is {self.profile}; this run's steps are 1 to {max_steps} (max_steps).")]
        if self.profile <= done:
            text = f"--profile {self.profile}: that step is done, the run resumes after step {done}. None is profiled"
            return [Finding(f"{text}; name a later one.", is_fatal=False)]
        return []

    def describe(self, done: int) -> list[str]:
        """Lines for a person, beside what computes attention; ``done`` steps are behind the run."""
        lines = []
        if self.compile:
            lines.append("The layers are compiled at their first use (torch.compile), which may take minutes")
        if (self.profile or 0) > done:
            lines.append(f"Step {self.profile} is going to be profiled")
        return lines


def execution_of(arguments: argparse.Namespace) -> Execution:
    """What the command line chooses; ``UserError`` for names that do not exist."""
    return Execution(**{name: getattr(arguments, name) for name in Execution.__dataclass_fields__})


def check_compiler(device: torch.device) -> None:
    """Raises ``UserError`` where torch.compile lacks something that it would find out in the first step only."""
    if device.type == "cuda":
        if not has_triton():
            raise UserError(
                "--compile needs Triton on a GPU, and it is not installed or does not serve this one: leave it out."
            )
        names = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    else:
        names = [os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")]
    missing = []
    if not any(shutil.which(name) for name in names):
        missing.append(f"a compiler ({' or '.join(names)})")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        missing.append(f"Python's headers ({header})")
    if missing:
        cure = "install them (Debian, Ubuntu: apt install g++ python3-dev), or leave --compile out"
        raise UserError(f"--compile needs {' and '.join(missing)}, not found here: {cure}.")
