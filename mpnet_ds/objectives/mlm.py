"""``mlm``: masked language modelling, the ablation of MPNet without permutation (BERT's objective)."""

from typing import ClassVar

from pydantic.dataclasses import dataclass

from mpnet_ds.objectives.mpnet import MPNet
from mpnet_ds.validation import SECTION


@dataclass(frozen=True, config=SECTION)
class MLM(MPNet):
    """Predict all masked tokens at once from the corrupted sequence."""

    name: ClassVar[str] = "mlm"
