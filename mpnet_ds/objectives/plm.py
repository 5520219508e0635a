"""``plm``: permuted language modelling, the ablation of MPNet without masked tokens in the context (XLNet's objective)."""

from dataclasses import replace
from typing import ClassVar

from pydantic.dataclasses import dataclass

from mpnet_ds.objectives.mpnet import MPNet
from mpnet_ds.validation import SECTION


@dataclass(frozen=True, config=SECTION)
class PLM(MPNet):
    """Predict tokens one after another without knowing the positions of those that are still to come.

    Each prediction starts from ``<mask>``: the shares of true and random tokens in ``masking`` are ignored.
    """

    name: ClassVar[str] = "plm"

    def __post_init__(self):
        always = replace(self.masking, mask_probability=1.0, keep_probability=0.0, random_probability=0.0)
        object.__setattr__(self, "masking", always)
