"""``mlm``: masked language modelling (BERT: Devlin et al., arXiv 1810.04805), by any family of transformers.

On the two-stream MPNet it is the ablation of MPNet without permutation.
"""

from typing import TYPE_CHECKING, ClassVar

from pydantic.dataclasses import dataclass

from mpnet_ds.findings import Finding
from mpnet_ds.objectives.base import Objective
from mpnet_ds.objectives.families import find_family_faults
from mpnet_ds.objectives.model_section import FamilySection
from mpnet_ds.objectives.mpnet import MPNet
from mpnet_ds.validation import SECTION

if TYPE_CHECKING:
    from mpnet_ds.models.module import ComputeSetting, ModulePlan, PretrainingModule
    from mpnet_ds.objectives.model_section import ModelSection
    from mpnet_ds.tokenizer import PretrainingTokenizer


@dataclass(frozen=True, config=SECTION)
class MLM(MPNet):
    """Predict all masked tokens at once from the corrupted sequence."""

    name: ClassVar[str] = "mlm"

    def findings(self, model: "ModelSection", tokenizer: "PretrainingTokenizer", data) -> list[Finding]:
        """Report what cannot be built."""
        if not isinstance(model, FamilySection):
            return super().findings(model, tokenizer, data)
        faults = find_family_faults(model, tokenizer, data, is_causal=False)
        if tokenizer.mask_id is None:
            faults.append(f"objective mlm needs a tokenizer with a mask token, which {tokenizer.origin} has not.")
        return list(map(Finding, faults))

    def sizes(
        self,
        model: "ModelSection",
        tokenizer: "PretrainingTokenizer",
        seq_length: int,
        micro_batch_size: int,
        setting: "ComputeSetting | None" = None,
    ) -> "ModulePlan":
        """Compute sizes: MPNet's by formulas, others by counting on fake tensors."""
        compute = Objective.sizes if isinstance(model, FamilySection) else MPNet.sizes
        return compute(self, model, tokenizer, seq_length, micro_batch_size, setting)

    def build(
        self,
        model: "ModelSection",
        tokenizer: "PretrainingTokenizer",
        seq_length: int,
        attention: str = "auto",
        parts: dict | None = None,
    ) -> "PretrainingModule":
        """Build the model of the section's family."""
        if not isinstance(model, FamilySection):
            return super().build(model, tokenizer, seq_length, attention, parts)
        from mpnet_ds.models.transformers_model import MaskedLanguageModel

        return MaskedLanguageModel(
            model.family, model.config(tokenizer, seq_length, is_causal=False), tokenizer.mask_id, attention
        )
