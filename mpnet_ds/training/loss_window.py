"""Losses of a run: means over a log interval, and sudden jumps.

A step's totals are copied to host memory asynchronously: a GPU copies them when it gets there, and they are read once they
have arrived, at the latest when a line is logged.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mpnet_ds.models.module import Scores
from mpnet_ds.objectives.base import Objective, Term

MEMORY = 100
"""Steps that the running mean of the loss covers."""
SETTLED = 20
"""Steps before the running mean is meaningful."""


@dataclass(frozen=True)
class Spike:
    """A step whose loss jumped."""

    step: int
    loss: float
    running_mean: float


def totals_of(scores: Scores) -> Tensor:
    """Collect losses and hits of each term, then the module's counts, of one micro-batch: float64 [numbers]."""
    hits = torch.zeros_like(scores.sums) if scores.correct is None else scores.correct
    parts = [scores.sums.detach(), hits, *(scores.counts or {}).values()]
    return torch.cat([part.detach().double().flatten() for part in parts])


class LossWindow:
    """Means of the losses since the last ``close``, and spikes among them.

    Args:
        objective: names and weights the terms, and turns counts into metrics; weights that change during training are
            those of each step for spikes, and of the window's last step for its mean.
        spike_factor: a loss above this multiple of the running mean is a spike; 0 finds none.
    """

    def __init__(self, objective: Objective, spike_factor: float = 0.0):
        self.objective, self.spike_factor = objective, spike_factor
        self._arriving: deque = deque()
        self._last_step = 0
        self._shapes: dict[str, list[int]] = {}
        self._mean, self._seen = 0.0, 0
        self._found: list[Spike] = []
        self._begin()

    def _begin(self) -> None:
        self._totals: list[float] = []
        self._targets = [0] * len(self.objective.terms)

    def state(self) -> dict:
        """Return the state for ``restore``, as JSON. Waits for the device; the next ``arrived`` has the spikes."""
        self._found += self._drain()
        window = {"totals": self._totals, "targets": self._targets, "shapes": self._shapes}
        return window | {"mean": self._mean, "seen": self._seen}

    def restore(self, state: dict) -> None:
        """Continue from a ``state``."""
        self._totals, self._targets = list(state["totals"]), list(state["targets"])
        self._shapes = dict(state["shapes"])
        self._mean, self._seen = state["mean"], state["seen"]

    def add(self, step: int, totals: Tensor, num_targets: list[int], counts: dict[str, Tensor] | None = None) -> None:
        """Add a step, without waiting for the device.

        Args:
            totals: of all ranks, see ``totals_of``.
            num_targets: of each term, on all ranks.
            counts: of any micro-batch; names and shapes of what follows the terms in ``totals``.
        """
        self._shapes = {name: list(tensor.shape) for name, tensor in (counts or {}).items()}
        arrived = None
        if totals.is_cuda:
            host = torch.empty(totals.shape, dtype=totals.dtype, pin_memory=True)
            host.copy_(totals, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            totals = host
        self._arriving.append((step, totals, num_targets, arrived))

    def arrived(self) -> list[Spike]:
        """Process the steps that have arrived; return the spikes among them."""
        spikes, self._found = self._found, []
        while self._arriving and (self._arriving[0][3] is None or self._arriving[0][3].query()):
            spikes += self._take(*self._arriving.popleft()[:3])
        return spikes

    def close(self) -> tuple[dict[str, float], list[Spike]]:
        """Return the window's metrics and the last spikes, and begin a new window. Waits for the device.

        ``loss`` (nats) is the weighted sum of the terms' means, NaN if nothing was predicted; ``accuracy`` is the first
        term's. ``loss/TERM`` and ``accuracy/TERM`` are each term's own, omitted if it had no targets.
        """
        spikes, self._found = self._found + self._drain(), []
        totals, targets = self._totals or [math.nan] * 2 * len(self._targets), self._targets
        metrics = self._means(totals, targets, self.objective.at(self._last_step).terms)
        counts, first = {}, 2 * len(targets)
        for name, shape in self._shapes.items() if self._totals else ():
            size = math.prod(shape)
            counts[name] = np.array(totals[first : first + size]).reshape(shape)
            first += size
        self._begin()
        return metrics | (self.objective.metrics(counts) if counts else {}), spikes

    def _means(self, totals: list[float], targets: list[int], terms: Sequence[Term]) -> dict[str, float]:
        metrics = {"loss": self._loss(totals, targets, terms), "accuracy": math.nan}
        for number, (term, count) in enumerate(zip(terms, targets, strict=True)):
            if count:
                metrics[f"loss/{term.name}"] = totals[number] / count
                metrics[f"accuracy/{term.name}"] = totals[len(targets) + number] / count
        metrics["accuracy"] = metrics.get(f"accuracy/{terms[0].name}", math.nan)
        return metrics

    def _loss(self, totals: list[float], targets: list[int], terms: Sequence[Term]) -> float:
        summands = zip(terms, totals, targets, strict=False)
        return sum(term.weight * total / count for term, total, count in summands if count) if any(targets) else math.nan

    def _drain(self) -> list[Spike]:
        spikes = []
        while self._arriving:
            step, totals, num_targets, arrived = self._arriving.popleft()
            if arrived is not None:
                arrived.synchronize()
            spikes += self._take(step, totals, num_targets)
        return spikes

    def _take(self, step: int, totals: Tensor, num_targets: list[int]) -> list[Spike]:
        values = totals.tolist()
        before = self._totals + [0.0] * (len(values) - len(self._totals))  # older versions' windows have no counts
        self._totals = [before + value for before, value in zip(before, values, strict=True)]
        self._targets = [before + count for before, count in zip(self._targets, num_targets, strict=True)]
        self._last_step = step
        loss = self._loss(values, num_targets, self.objective.at(step).terms)
        is_spike = self.spike_factor and self._seen >= SETTLED and loss > self.spike_factor * self._mean
        spikes = [Spike(step, loss, self._mean)] if is_spike else []
        self._seen += 1
        self._mean += (loss - self._mean) / min(self._seen, MEMORY)
        return spikes
