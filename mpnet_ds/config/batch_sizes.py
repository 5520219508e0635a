"""Batch arithmetic: global batch = micro batch × accumulation steps × ranks."""

from dataclasses import dataclass

from mpnet_ds.errors import UserError


@dataclass(frozen=True)
class BatchSizes:
    """Sequences of a step: global = micro × accumulation steps × ranks."""

    micro_batch_size: int
    accumulation_steps: int
    global_batch_size: int


def fit(total: int, micro: int, world_size: int, exact: bool) -> BatchSizes:
    """Sizes that multiply to the global batch.

    Args:
        total: sequences of a step.
        micro: sequences that a rank takes at once.
        world_size: ranks.
        exact: take ``micro`` as it is; otherwise the largest that fits and is not larger.
    Raises:
        UserError: they do not divide; it names the nearest sizes that do.
    """
    if not exact:
        per_rank, remainder = divmod(total, world_size)
        micro = 1 if remainder else max(size for size in range(1, min(micro, per_rank) + 1) if per_rank % size == 0)
    if total % (micro * world_size):
        raise UserError(_explain_remainder(total, micro, world_size))
    return BatchSizes(micro, total // (micro * world_size), total)


def _explain_remainder(total: int, micro: int, world_size: int) -> str:
    """What does not divide, and the nearest sizes that would."""
    at_once = micro * world_size
    below = total // at_once * at_once
    cures = [f"take {_either(below, below + at_once)}"]
    if total % world_size == 0:
        divisors = [size for size in range(1, total // world_size + 1) if total // world_size % size == 0]
        smaller, larger = [size for size in divisors if size < micro], [size for size in divisors if size > micro]
        cures.append(f"or micro_batch_size {_either(*smaller[-1:], *larger[:1])}")
    else:
        cures.append("or another number of ranks")
    product = f"micro_batch_size {micro} × {world_size} ranks = {at_once}"
    return f"global_batch_size {total} is not a multiple of {product}: {', '.join(cures)}."


def _either(*sizes: int) -> str:
    return " or ".join(str(size) for size in sizes if size)
