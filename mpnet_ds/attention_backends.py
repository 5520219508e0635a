"""Names of the attention back-ends, for command lines; what they are: ``mpnet_ds.models.attention.backend``."""

from mpnet_ds.errors import UserError, did_you_mean

AUTO = "auto"
BACKENDS = (AUTO, "eager", "cpu", "sdpa", "flex", "triton")


def check_backend(name: str) -> str:
    """The name itself; ``UserError`` with the nearest one if it does not exist."""
    if name not in BACKENDS:
        raise UserError(f"unknown attention '{name}'. {did_you_mean(name, BACKENDS)}")
    return name
