"""``mpnet``: masked and permuted language modelling (Song et al., 2020, arXiv 2004.09297) on the two-stream network."""

from dataclasses import field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic.dataclasses import dataclass

from mpnet_ds import tokenizer_layouts
from mpnet_ds.findings import Finding
from mpnet_ds.objectives.base import Objective, Sequences, Term, Vocabulary
from mpnet_ds.objectives.masking import MaskingConfig, drop_predictions_without_context, mask_sequences
from mpnet_ds.objectives.model_section import NEAR, MPNetSection
from mpnet_ds.validation import SECTION

if TYPE_CHECKING:
    from mpnet_ds.models.module import ComputeSetting, ModulePlan
    from mpnet_ds.models.mpnet.model import MPNetForPretraining
    from mpnet_ds.objectives.model_section import ModelSection
    from mpnet_ds.tokenizer import PretrainingTokenizer


@dataclass(frozen=True, config=SECTION)
class MPNet(Objective):
    """Predict masked tokens one after another, each from the context, the tokens predicted before it and all positions.

    ``plm`` and ``mlm`` of the two-stream network draw and build alike: they are subclasses.
    """

    name: ClassVar[str] = "mpnet"
    omitted_if_true: ClassVar[tuple[str, ...]] = ("attention_mask",)

    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """Which tokens are predicted, and what the model reads instead of them."""

    @property
    def terms(self) -> tuple[Term, ...]:
        """The only term: the cross-entropy of the predicted tokens."""
        return (Term(self.name, "predicted_positions"),)

    def draw(self, sequences: Sequences, vocabulary: Vocabulary) -> dict[str, np.ndarray]:
        """Draw the predicted tokens, p in a sequence without padding.

        Returns:
            ``input_ids`` int64 [B, n], the true tokens; ``predicted_positions`` int64 [B, p], -1 where unused;
            ``predicted_inputs`` int64 [B, p]; ``attention_mask`` bool [B, n]; where documents are isolated also
            ``document_ids`` int64 [B, n], from 0 in each sequence.
        """
        positions, inputs = mask_sequences(sequences.ids, sequences.real, sequences.keys, vocabulary, self.masking)
        documents = {}
        if sequences.documents is not None:
            documents["document_ids"] = sequences.documents
            positions, inputs = drop_predictions_without_context(positions, inputs, sequences.documents, sequences.real)
        return {
            "input_ids": sequences.ids,
            "predicted_positions": positions,
            "predicted_inputs": inputs,
            "attention_mask": sequences.real,
            **documents,
        }

    def target_ids(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """Return the predicted tokens, int64 [targets]."""
        sequences, entries = np.nonzero(batch["predicted_positions"] >= 0)
        return batch["input_ids"][sequences, batch["predicted_positions"][sequences, entries]]

    def may_be_target(self, vocabulary: Vocabulary) -> np.ndarray:
        """Tell which tokens are predicted, bool [V]."""
        return ~vocabulary.is_special | self.masking.predict_special_tokens

    def metrics(self, counts: dict[str, np.ndarray]) -> dict[str, float]:
        """Loss (nats) and accuracy of the targets that are read as ``<mask>``, if others are not: those can be copied."""
        total, hits, number = counts["masked"]
        if self.masking.mask_probability == 1 or not number:
            return {}
        return {"masked_loss": float(total / number), "masked_accuracy": float(hits / number)}

    def findings(self, model: "ModelSection", tokenizer: "PretrainingTokenizer", data) -> list[Finding]:
        """Report what cannot be built."""
        if not isinstance(model, MPNetSection):
            cure = "leave out model.model_type and model.implementation, or take objective mlm"
            return [Finding(f"objective {self.name} is for the two-stream MPNet: {cure}.")]
        from mpnet_ds.models.mpnet.model import find_undivided_heads

        misfit = tokenizer.misfit_of_mpnet
        others = [f"{misfit}: train one with --layout {tokenizer_layouts.MPNET.name}."] if misfit else []
        return [Finding(text) for text in (*find_undivided_heads(model), *others)]

    def sizes(
        self,
        model: "ModelSection",
        tokenizer: "PretrainingTokenizer",
        seq_length: int,
        micro_batch_size: int,
        setting: "ComputeSetting | None" = None,
    ) -> "ModulePlan":
        """Compute sizes by formulas, which are exact for parameters and FLOPs."""
        from mpnet_ds.models.mpnet.sizes import plan_of

        config, predicted = model.sizes(tokenizer.vocab_size), int(self.masking.num_predicted(seq_length))
        return plan_of(config, self.name, seq_length, predicted, micro_batch_size, setting)

    def build(
        self,
        model: "ModelSection",
        tokenizer: "PretrainingTokenizer",
        seq_length: int,
        attention: str = "auto",
        parts: dict | None = None,
    ) -> "MPNetForPretraining":
        """Build the two-stream model; its forward pass keeps no logits."""
        from mpnet_ds.models.mpnet.model import MPNetForPretraining

        module = MPNetForPretraining(model.sizes(tokenizer.vocab_size), self.name, attention)
        module.keep_logits, module.mask_id = False, tokenizer.mask_id
        if model.start == NEAR:
            module.begin_near(model.start_strength)
        return module
