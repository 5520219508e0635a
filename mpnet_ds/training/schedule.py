"""The learning rate of each step, as a pure function of its number."""


def learning_rate(step: int, peak: float, warmup_steps: int, max_steps: int) -> float:
    """Compute the rate: linear warm-up to ``peak``, then linear decay that would reach 0 one step after the last.

    Args:
        step: number of the step, counted from 1; the first one already has ``peak / warmup_steps``.
    """
    if step <= warmup_steps:
        return peak * step / warmup_steps
    return peak * max(0, max_steps + 1 - step) / max(1, max_steps + 1 - warmup_steps)
