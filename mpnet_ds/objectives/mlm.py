"""``mlm``: masked language modelling (BERT: Devlin et al., arXiv 1810.04805), by any family of transformers.

On the two-stream MPNet it is the ablation of MPNet without permutation.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic.dataclasses import dataclass

from mpnet_ds.findings import Finding
from mpnet_ds.objectives.families import begun, family_sizes, find_family_faults
from mpnet_ds.objectives.model_section import FamilySection
from mpnet_ds.objectives.mpnet import MPNet
from mpnet_ds.validation import SECTION

if TYPE_CHECKING:
    from mpnet_ds.models.module import ComputeSetting, ModulePlan, PretrainingModule
    from mpnet_ds.objectives.model_section import ModelSection
    from mpnet_ds.tokenizer import PretrainingTokenizer


PLAIN, EMD, DEBERTA = "plain", "emd", "deberta-v2"


@dataclass(frozen=True, config=SECTION)
class MLM(MPNet):
    """Predict all masked tokens at once from the corrupted sequence."""

    name: ClassVar[str] = "mlm"

    head: Literal["plain", "emd"] = PLAIN
    """What tokens are predicted from. ``plain``: the last layer's states. ``emd``: those of DeBERTa's enhanced mask decoder,
    for model_type deberta-v2 only ([models](models.md#deberta))."""

    def section(self) -> dict:
        """The section of the recipe, without a plain head: runs of versions that had no other are continued."""
        return {key: value for key, value in super().section().items() if key != "head" or value != PLAIN}

    def findings(self, model: "ModelSection", tokenizer: "PretrainingTokenizer", data) -> list[Finding]:
        """Report what cannot be built."""
        why_not = _why_no_decoder(model) if self.head == EMD else ""
        own = [Finding(f"objective.head is '{EMD}', {why_not}, or take objective.head '{PLAIN}'.")] if why_not else []
        if not isinstance(model, FamilySection):
            return [*super().findings(model, tokenizer, data), *own]
        faults = find_family_faults(model, tokenizer, data, is_causal=False)
        if tokenizer.mask_id is None:
            faults.append(f"objective mlm needs a tokenizer with a mask token, which {tokenizer.origin} has not.")
        return [*map(Finding, faults), *own]

    def sizes(
        self,
        model: "ModelSection",
        tokenizer: "PretrainingTokenizer",
        seq_length: int,
        micro_batch_size: int,
        setting: "ComputeSetting | None" = None,
    ) -> "ModulePlan":
        """Compute sizes: MPNet's by formulas, others by counting on fake tensors."""
        if not isinstance(model, FamilySection):
            return super().sizes(model, tokenizer, seq_length, micro_batch_size, setting)
        targets = int(self.masking.num_predicted(seq_length))
        return family_sizes(self, model, tokenizer, seq_length, micro_batch_size, targets, setting)

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
        from mpnet_ds.models.enhanced_mask_decoder import EnhancedMaskDecoder
        from mpnet_ds.models.transformers_model import MaskedLanguageModel

        kind = EnhancedMaskDecoder if self.head == EMD else MaskedLanguageModel
        config = model.config(tokenizer, seq_length, is_causal=False)
        return begun(kind(model.family, config, tokenizer.mask_id, attention), model)


def _why_no_decoder(model: "ModelSection") -> str:
    """Say why a model has no enhanced mask decoder, and what would give it one; empty if it has."""
    if model.model_type != DEBERTA:
        return f"which model_type {model.model_type} does not have: set model.model_type to '{DEBERTA}'"
    if model.position_biased_input:
        return "but absolute positions are in the input already: set model.position_biased_input to false"
    if model.num_hidden_layers < 2:
        return f"but model.num_hidden_layers is {model.num_hidden_layers}: give it 2 or more"
    return ""
