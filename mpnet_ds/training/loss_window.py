"""Follows the losses of a run: mean over a log interval, updates that were left out, sudden jumps.

Sums of an update travel to the host's memory without anybody waiting for them: a GPU copies them when it gets there, and
they are looked at when they have arrived, at the latest when a line is logged.
"""

import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 100
"""Updates over which the running mean of the loss reaches back."""
SETTLED = 20
"""Updates before the running mean means anything."""


@dataclass(frozen=True)
class Spike:
    """An update whose loss jumped."""

    step: int
    loss: float
    running_mean: float


class LossWindow:
    """Mean loss and accuracy since the last ``close``, and spikes on the way.

    Args:
        spike_factor: a loss above this multiple of the running mean is a spike; 0: there are none.
    """

    def __init__(self, spike_factor: float = 0.0):
        self.spike_factor = spike_factor
        self._arriving: deque = deque()
        self._sums = [0.0, 0, 0]
        self._mean, self._seen = 0.0, 0
        self._found: list[Spike] = []

    def state(self) -> dict:
        """What ``restore`` needs, as JSON. Waits for the device; the next ``arrived`` has the spikes."""
        self._found += self._drain()
        return {"sums": self._sums, "mean": self._mean, "seen": self._seen}

    def restore(self, state: dict) -> None:
        """Goes on from a ``state``."""
        self._sums, self._mean, self._seen = list(state["sums"]), state["mean"], state["seen"]

    def add(self, step: int, sums: Tensor, num_targets: int) -> None:
        """``sums``: loss (nats) and correct predictions over all slots of all ranks, [2]; does not wait for them."""
        arrived = None
        if sums.is_cuda:
            host = torch.empty(2, dtype=sums.dtype, pin_memory=True)
            host.copy_(sums, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            sums = host
        self._arriving.append((step, sums, num_targets, arrived))

    def arrived(self) -> list[Spike]:
        """Takes in what is there; returns the spikes among it."""
        spikes, self._found = self._found, []
        while self._arriving and (self._arriving[0][3] is None or self._arriving[0][3].query()):
            spikes += self._take(*self._arriving.popleft()[:3])
        return spikes

    def close(self) -> tuple[float, float, list[Spike]]:
        """Mean loss (nats; NaN if nothing was predicted), accuracy, the last spikes; begins anew. Waits for the device."""
        spikes, self._found = self._found + self._drain(), []
        total, correct, targets = self._sums
        self._sums = [0.0, 0, 0]
        return (total / targets, correct / targets, spikes) if targets else (math.nan, math.nan, spikes)

    def _drain(self) -> list[Spike]:
        spikes = []
        while self._arriving:
            step, sums, num_targets, arrived = self._arriving.popleft()
            if arrived is not None:
                arrived.synchronize()
            spikes += self._take(step, sums, num_targets)
        return spikes

    def _take(self, step: int, sums: Tensor, num_targets: int) -> list[Spike]:
        total, correct = sums.tolist()
        for place, value in enumerate((total, correct, num_targets)):
            self._sums[place] += value
        loss = total / max(num_targets, 1)
        is_spike = self.spike_factor and self._seen >= SETTLED and loss > self.spike_factor * self._mean
        spikes = [Spike(step, loss, self._mean)] if is_spike else []
        self._seen += 1
        self._mean += (loss - self._mean) / min(self._seen, MEMORY)
        return spikes
