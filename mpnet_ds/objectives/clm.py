"""``clm``: causal language modelling: predict each token from those before it (GPT: Radford et al., 2018)."""

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic.dataclasses import dataclass

from mpnet_ds.findings import Finding
from mpnet_ds.objectives.base import Objective, Sequences, Term, Vocabulary
from mpnet_ds.objectives.families import begun, family_sizes, find_family_faults
from mpnet_ds.objectives.model_section import FamilySection
from mpnet_ds.validation import SECTION

if TYPE_CHECKING:
    from mpnet_ds.models.module import ComputeSetting, ModulePlan
    from mpnet_ds.models.transformers_model import CausalLanguageModel
    from mpnet_ds.objectives.model_section import ModelSection
    from mpnet_ds.tokenizer import PretrainingTokenizer


@dataclass(frozen=True, config=SECTION)
class CLM(Objective):
    """Predict each token from those before it."""

    name: ClassVar[str] = "clm"
    omitted_if_true: ClassVar[tuple[str, ...]] = ("attention_mask",)

    control: bool = False
    """Begin every sequence with a control code (CTRL: Keskar et al., arXiv 1909.05858): the name of its dataset
    (``build_dataset --name``), which must be one token."""

    @property
    def terms(self) -> tuple[Term, ...]:
        """The only term: the cross-entropy of the next tokens."""
        return (Term(self.name, "next_ids"),)

    def tokens_needed(self, seq_length: int, vocabulary: Vocabulary) -> int:
        """Raw tokens of a sequence: one less than ``seq_length`` where it begins with a control code."""
        return seq_length - self.control

    def draw(self, sequences: Sequences, vocabulary: Vocabulary) -> dict[str, np.ndarray]:
        """Shift the tokens by one; nothing is random.

        Returns:
            ``input_ids`` int64 [B, n]; ``next_ids`` int64 [B, n], the token after each, -1 at the end of a sequence, before
            padding and between isolated documents; ``attention_mask`` bool [B, n]; where documents are isolated also
            ``document_ids`` int64 [B, n], from 0 in each sequence.
        """
        ids, real, documents = sequences.ids, sequences.real, sequences.documents
        if self.control:
            ids = np.insert(ids, 0, vocabulary.control_id, axis=1)
            real = np.insert(real, 0, True, axis=1)
            documents = None if documents is None else np.insert(documents, 0, documents[:, 0], axis=1)
        is_target = real[:, 1:].copy()
        if documents is not None:
            is_target &= documents[:, 1:] == documents[:, :-1]
        next_ids = np.full(ids.shape, -1, dtype=np.int64)
        np.copyto(next_ids[:, :-1], ids[:, 1:], where=is_target)
        isolated = {} if documents is None else {"document_ids": documents}
        return {"input_ids": ids, "next_ids": next_ids, "attention_mask": real, **isolated}

    def target_ids(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """Return the next tokens, int64 [targets]."""
        return batch["next_ids"][batch["next_ids"] >= 0]

    def may_be_target(self, vocabulary: Vocabulary) -> np.ndarray:
        """Tell which tokens are predicted, bool [V]: all."""
        return np.ones(vocabulary.size, dtype=bool)

    def findings(self, model: "ModelSection", tokenizer: "PretrainingTokenizer", data) -> list[Finding]:
        """Report what cannot be built."""
        if not isinstance(model, FamilySection):
            return [Finding("objective clm needs a causal family, and the two-stream MPNet is none: set model.model_type.")]
        faults = find_family_faults(model, tokenizer, data, is_causal=True)
        parts = getattr(data, "datasets", [data]) if self.control else []
        for part in parts:
            if part.vocabulary.control_id is None:
                names = ", ".join(part.manifest.provenance.names) or "none"
                needed = f"objective.control needs a name of one token for {part.folder}, which has {names}"
                faults.append(f"{needed}: state one with build_dataset --name.")
        return list(map(Finding, faults))

    def sizes(
        self,
        model: "ModelSection",
        tokenizer: "PretrainingTokenizer",
        seq_length: int,
        micro_batch_size: int,
        setting: "ComputeSetting | None" = None,
    ) -> "ModulePlan":
        """Count the sizes on fake tensors."""
        return family_sizes(self, model, tokenizer, seq_length, micro_batch_size, seq_length, setting)

    def build(
        self,
        model: "ModelSection",
        tokenizer: "PretrainingTokenizer",
        seq_length: int,
        attention: str = "auto",
        parts: dict | None = None,
    ) -> "CausalLanguageModel":
        """Build the model of the section's family."""
        from mpnet_ds.models.transformers_model import CausalLanguageModel

        config = model.config(tokenizer, seq_length, is_causal=True)
        return begun(CausalLanguageModel(model.family, config, attention), model)
