"""Whether a run has begun to learn: its loss against that of word frequencies alone (data/samples/unigram.py).

Judged by the loss of the targets that are read as ``<mask>``, on held-out documents where there are any: the others can be
copied, which hides that nothing else is learned.
"""

from mpnet_ds.data.samples.unigram import Unigram

CLEARLY = 0.3
"""Nats below the level of word frequencies at which a model uses the context."""
LEAST_TOKENS = 1_000_000
"""Tokens before which no run is told that it has not begun to learn (benchmarks/results, initial values)."""


class Plateau:
    """Finds the step at which a run leaves the level of word frequencies, or the step at which it should have.

    Args:
        unigram: None where the level is unknown: then nothing is found.
        due_step: step from which on the run should have left it.
    """

    def __init__(self, unigram: Unigram | None, due_step: int):
        self.unigram, self.due_step = unigram, due_step
        self.was_left = self.was_warned = False

    def state(self) -> dict:
        """Return what ``restore`` takes, as JSON."""
        return {"was_left": self.was_left, "was_warned": self.was_warned}

    def restore(self, state: dict) -> None:
        """Continue from a ``state``."""
        self.was_left, self.was_warned = state["was_left"], state["was_warned"]

    def judge(self, step: int, loss: float, level: float) -> str:
        """Return ``left`` or ``stuck`` at the first step where it holds, else nothing; losses in nats, NaN says nothing."""
        if not self.was_left and loss < level - CLEARLY:
            self.was_left = True
            return "left"
        if not self.was_left and not self.was_warned and step >= self.due_step and loss >= level - CLEARLY:
            self.was_warned = True
            return "stuck"
        return ""


def due_step(max_steps: int, warmup_steps: int, tokens_per_step: float) -> int:
    """Step from which on a run should use the context: a tenth of its steps, after the warm-up and ``LEAST_TOKENS``."""
    return max(-(-max_steps // 10), warmup_steps + 1, round(LEAST_TOKENS / tokens_per_step))
