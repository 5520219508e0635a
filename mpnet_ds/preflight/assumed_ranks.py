"""Ranks that are not there: ``--dry_run --assume 2x8xH100`` plans a run for machines that one has not got yet.

The time is that of the arithmetic, at the share of the GPU's peak (MFU) that was measured and at the one that is aimed at;
docs/scaling.md says which, and what a network adds.
"""

import re
from dataclasses import dataclass

import torch

from mpnet_ds.accelerators import ACCELERATORS, Accelerator, accelerator_of
from mpnet_ds.errors import UserError, did_you_mean
from mpnet_ds.machine import GIB, Capacity
from mpnet_ds.preflight.plan import RunPlan
from mpnet_ds.progress import show_duration
from mpnet_ds.ranks.process_group import Ranks

MEASURED_MFU, TARGET_MFU = 0.115, 0.39


@dataclass(frozen=True)
class AssumedRanks(Ranks):
    """Ranks by their number and kind alone; they cannot talk to each other."""

    kind: Accelerator
    name: str

    @property
    def capacity(self) -> Capacity:
        """Memory of a rank's GPU."""
        return Capacity(self.kind.gib * GIB, None, is_same=False)

    @property
    def precisions(self) -> set[str]:
        """See ``process_group.supported_precisions``."""
        return {"fp32", "fp16", "bf16"} | ({"fast-bf16"} if self.kind.has_bf16 else set())

    def describe_time(self, plan: RunPlan) -> str:
        """Say how long the run takes, and how many tokens a second that is."""
        if plan.engine.precision == "fp32":
            return "Time unknown: the peak rates of GPUs are known in 16 bit"
        batch, steps = plan.engine.batch.global_batch_size, plan.recipe.optimization.max_steps
        peak = self.kind.tflops * 1e12 * self.world_size / (batch * plan.sizes.flops_per_sequence)  # steps a second
        seconds = [show_duration(steps / (peak * mfu)) for mfu in (TARGET_MFU, MEASURED_MFU)]
        rates = [peak * mfu * batch * plan.data.tokens_per_sequence for mfu in (TARGET_MFU, MEASURED_MFU)]
        return (
            f"About {seconds[0]} to {seconds[1]}, {rates[0]:,.0f} to {rates[1]:,.0f} tokens/s, at {TARGET_MFU:.0%} of the "
            f"GPUs' peak (the aim) or {MEASURED_MFU:.1%} (measured on one H200), where the network takes no time"
        )


def assumed_ranks(text: str) -> AssumedRanks:
    """Read ``HOSTSxGPUSxKIND``, such as ``2x8xH100``, or ``8xA100-40GB`` for one host."""
    found = re.fullmatch(r"(?:([0-9]{1,5})[x×*])?([0-9]{1,3})[x×*]([a-z][\w -]*)", text.strip(), re.IGNORECASE)
    hosts, gpus = (int(found[1] or 1), int(found[2])) if found else (0, 0)
    if not hosts * gpus:
        raise UserError(f"--assume {text}: write hosts × GPUs × kind, such as 2x8xH100, or 8xA100-40GB for one host.")
    kind = accelerator_of(found[3])
    if kind is None:
        near = did_you_mean(found[3], list(ACCELERATORS))
        raise UserError(f"--assume {text}: unknown GPU '{found[3]}'. {near}")
    names = tuple(f"host {host}" for host in range(hosts) for _ in range(gpus))
    return AssumedRanks(0, 0, hosts * gpus, torch.device("cuda"), names, kind, f"{hosts} × {gpus} × {found[3]}")
