"""How the machine computes a run: choices of the command line that change neither what is trained nor a checkpoint.

They are no part of a run's identity: a run may go on with others. Its losses then agree to rounding; where there is dropout,
the masks may be others.
"""

import argparse
from dataclasses import dataclass

import torch

from mpnet_ds.model.attention import AUTO, BACKENDS, check_backend, choose_backend


@dataclass(frozen=True)
class Execution:
    """The choices, checked as far as their names go."""

    attention: str = AUTO
    """``auto``, or a back-end by name (see ``mpnet_ds.model.attention``)."""

    def __post_init__(self):
        check_backend(self.attention)

    def on(self, device: torch.device) -> "Execution":
        """The same with nothing left to choose: what ``auto`` is on the device.

        Raises:
            UserError: the device cannot compute so.
        """
        return Execution(choose_backend(self.attention, device).name)


def add_execution_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags; ``execution_of`` reads them."""
    parser.add_argument("--attention", default=AUTO, metavar="|".join(BACKENDS), help="what computes attention (auto)")


def execution_of(arguments: argparse.Namespace) -> Execution:
    """What the command line chooses; ``UserError`` for names that do not exist."""
    return Execution(**{name: getattr(arguments, name) for name in Execution.__dataclass_fields__})
