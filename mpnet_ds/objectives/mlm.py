"""``mlm``: masked language modelling, the ablation of MPNet without permutation (BERT's objective)."""

from typing import ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from mpnet_ds.objectives.mpnet import MPNet


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class MLM(MPNet):
    """Predict all masked tokens at once from the corrupted sequence."""

    name: ClassVar[str] = "mlm"
