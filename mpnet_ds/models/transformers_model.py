"""Masked and causal language modelling of any family of transformers.

The hidden states come from the family's own modules; only the rows of targets pass the head, and the map to the vocabulary
and the cross-entropy are one (layers/cross_entropy.py). What differs between families is in the table of families.py.

Documents are kept apart by additive masks [B, 1, n, n] and positions that begin anew: a mask of another type or shape is
accepted by some families, and leaks. Without documents a mask [B, 1, 1, n] hides padding; no mask at all lets SDPA choose
its fastest way. Padding is on the right, so what is causal never sees it.

Shapes: B sequences, n tokens, p predicted tokens, d width, V vocabulary.
"""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from mpnet_ds.errors import UserError
from mpnet_ds.models.documents import causal_tokens, positions_in_documents, visible_tokens
from mpnet_ds.models.families import Family
from mpnet_ds.models.layers.cross_entropy import Decoder
from mpnet_ds.models.module import Part, PretrainingModule, Scores
from mpnet_ds.models.targets import corrupt, count_masked, labels_at, rows_at

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

ATTENTIONS = ("auto", "eager", "sdpa")


class TransformersModule(PretrainingModule):
    """A model of transformers with its head, of which only the rows of targets are computed.

    Args:
        family: says where its parts are.
        config: from ``families.build_config``.
        attention: ``sdpa``, ``eager``, or ``auto``: the former where the family has it.
    """

    is_causal = False

    def __init__(self, family: Family, config: "PreTrainedConfig", attention: str = "auto"):
        super().__init__()
        model_class = getattr(transformers, family.class_name(self.is_causal))
        config = copy.deepcopy(config)
        config._attn_implementation = attention_of(family, model_class, attention)
        self.family, self.model = family, model_class(config)
        self.model.get_submodule(family.output).__class__ = Decoder  # a linear map as before, that can be given labels

    def parts(self) -> dict[str, Part]:
        """The only part: the family's class, whose names the parameters have."""
        return {"": Part("model.", type(self.model), self.model.config)}

    def layers(self) -> list[nn.Module]:
        """Return the family's blocks, in order."""
        lists = [found for path in self.family.layers for found in modules_at(self.model.base_model, path)]
        return [layer for found in lists for layer in found]

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the weights of linear maps below the head.

        Those of a ``Conv1D`` are [in, out]. Muon's step does not depend on it: that of a transposed matrix is the step
        transposed.
        """
        body = self.model.base_model
        tables = {id(module.weight) for module in self.modules() if isinstance(module, nn.Embedding)}
        maps = [module.weight for module in body.modules() if isinstance(module, nn.Linear | Conv1D)]
        return [weight for weight in maps if weight.requires_grad and id(weight) not in tables]

    def hidden_states(self, ids: Tensor, attention_mask: Tensor | None, document_ids: Tensor | None) -> Tensor:
        """Compute the last hidden states [B, n, d] of ids int64 [B, n], what may be seen as in ``forward``."""
        if document_ids is not None and self.family.not_isolated:
            raise UserError(f"{self.family.model_type} cannot keep documents apart: {self.family.not_isolated}.")
        return BODIES[self.family.body](self, ids, attention_mask, document_ids)

    def score(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``linear_cross_entropy`` of hidden [B, k, d] at labels int64 [B, k]; losses and hits are [B, k]."""
        for step in self.family.head:
            hidden = F.gelu(hidden) if step == "gelu" else self.model.get_submodule(step)(hidden)
        return self.model.get_submodule(self.family.output)(hidden, labels)


class MaskedLanguageModel(TransformersModule):
    """Predicts tokens from what is left of the sequence; ``mask_id`` tells targets that are read as ``<mask>`` apart."""

    def __init__(self, family: Family, config: "PreTrainedConfig", mask_id: int | None = None, attention: str = "auto"):
        super().__init__(family, config, attention)
        self.mask_id = mask_id

    def forward(
        self,
        *,
        input_ids: Tensor,
        predicted_positions: Tensor,
        predicted_inputs: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        sequence_numbers: Tensor | None = None,
        step: Tensor | None = None,
        carried: tuple[Tensor, ...] | None = None,
    ) -> Scores:
        """Compute the losses of one batch.

        Args:
            input_ids: int64 [B, n], the true tokens.
            predicted_positions: int64 [B, p], in any order; -1 in unused entries.
            predicted_inputs: int64 [B, p], what is read instead of each of them.
            attention_mask: bool [B, n], False on padding; all True by default.
            document_ids: int64 [B, n], 0, 1, 2 … along each sequence: attention and positions do not leave a document. By
                default a sequence is one text.
            sequence_numbers, step, carried: as every module gets them; not used.
        """
        ids = corrupt(input_ids, predicted_positions, predicted_inputs)
        hidden = rows_at(self.hidden_states(ids, attention_mask, document_ids), predicted_positions)
        labels = labels_at(input_ids, predicted_positions)
        total, losses, hits = self.score(hidden, labels)
        counts = count_masked(labels, predicted_inputs, losses, hits, self.mask_id)
        return Scores(sums=total[None], correct=hits.sum()[None], counts=counts)


class CausalLanguageModel(TransformersModule):
    """Predicts each token from those before it."""

    is_causal = True

    def forward(
        self,
        *,
        input_ids: Tensor,
        next_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        sequence_numbers: Tensor | None = None,
        step: Tensor | None = None,
        carried: tuple[Tensor, ...] | None = None,
    ) -> Scores:
        """Compute the losses of one batch.

        Args:
            input_ids: int64 [B, n].
            next_ids: int64 [B, n], what follows each token; -1 where nothing is predicted.
            attention_mask, document_ids, sequence_numbers, step, carried: as in ``MaskedLanguageModel.forward``.
        """
        total, _, hits = self.score(self.hidden_states(input_ids, attention_mask, document_ids), next_ids)
        return Scores(sums=total[None], correct=hits.sum()[None])


def attention_of(family: Family, model_class: type["PreTrainedModel"], attention: str) -> str:
    """Name the implementation of attention for a back-end's name."""
    if attention not in ATTENTIONS:
        raise UserError(f"run.attention '{attention}' is MPNet's own; {family.model_type} has {', '.join(ATTENTIONS)}.")
    if attention == "sdpa" and not model_class._supports_sdpa:
        raise UserError(
            f"{family.model_type} of transformers has no attention 'sdpa': set run.attention to 'eager' or 'auto'."
        )
    return "sdpa" if attention != "eager" and model_class._supports_sdpa else "eager"


def modules_at(root: nn.Module, path: str) -> list[nn.Module]:
    """Find the modules at a dotted path, in which ``*`` stands for every number."""
    found = [root]
    for name in path.split("."):
        found = [child for module in found for child in (module if name == "*" else [getattr(module, name)])]
    return found


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn what each token sees, bool [B, 1 or n, n], into a mask to add to attention scores, [B, 1, 1 or n, n]."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None]


def _plain(module: TransformersModule, ids: Tensor, attention_mask: Tensor | None, document_ids: Tensor | None) -> Tensor:
    """Run a model whose ``forward`` takes additive masks and positions."""
    body, options = module.model.base_model, {}
    visible = visible_tokens(None if module.is_causal else attention_mask, document_ids)
    if visible is not None:
        options["attention_mask"] = additive(visible & causal_tokens(ids) if module.is_causal else visible, body.dtype)
    if document_ids is not None:
        first = body.config.pad_token_id + 1 if module.family.positions_after_padding else 0
        options["position_ids"] = positions_in_documents(document_ids) + first
    return body(input_ids=ids, **options)[0]


BODIES: dict[str, Callable[[TransformersModule, Tensor, Tensor | None, Tensor | None], Tensor]] = {"plain": _plain}
"""By name: compute hidden states [B, n, d] from ids, attention_mask and document_ids, all [B, n], the latter may be None."""
