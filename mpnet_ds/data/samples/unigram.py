"""The loss of word frequencies alone: what a model reaches that knows how often each token is a target, and no context.

Training begins with that: the loss falls to this level within some hundred steps, and stays there until the model uses the
context. So the level tells whether a run has begun to learn (docs/training.md, "Does it learn?").

    loss of target v  =  −ln((count(v) + 1) / sum over tokens w that may be targets of (count(w) + 1))

Counts are those of the training data, from the manifests; one is added to each, so that held-out documents may have tokens
that the training data do not have.
"""

from dataclasses import dataclass

import numpy as np

from mpnet_ds.data.samples.dataset import PretrainingDataset
from mpnet_ds.data.samples.mixture import MixtureDataset
from mpnet_ds.objectives.base import Objective, Vocabulary


@dataclass(frozen=True, eq=False)
class Unigram:
    """Loss of word frequencies alone, by token."""

    losses: np.ndarray
    """float64 [V], nats; infinite for what is never a target."""
    expected: float
    """Mean over the targets of the training data, nats: their entropy."""

    @classmethod
    def of(cls, data: PretrainingDataset | MixtureDataset, objective: Objective) -> "Unigram | None":
        """The level of an objective's targets; None where a dataset has no counts, or the targets are not tokens."""
        shares, vocabulary = data.piece_shares(), Vocabulary.of(data.tokenizer)
        may_be_target = objective.may_be_target(vocabulary)
        if shares is None or may_be_target is None:
            return None
        tokens = sum(part.manifest.tokens for part in getattr(data, "datasets", [data]))
        counts = shares * tokens
        if data.tokenizer.begin_id is not None:
            counts[data.tokenizer.begin_id] += tokens / data.tokens_per_sequence  # the stored documents are without it
        counts[~may_be_target] = 0
        smoothed = np.where(may_be_target, counts + 1, 0.0)
        with np.errstate(divide="ignore"):
            losses = -np.log(smoothed / smoothed.sum())
        occurring = counts > 0
        return cls(losses, float(counts[occurring] @ losses[occurring] / counts.sum()))

    def sum_of(self, targets: np.ndarray) -> tuple[float, int]:
        """Sum the losses of targets (int64), and count them."""
        return float(self.losses[targets].sum()), targets.size
