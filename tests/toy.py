"""An objective and a model of a user's own: importing this file is all that the package needs to train and export them.

Some tokens are replaced by random ones; a BERT with two labels tells which. B sequences of n tokens.
"""

import numpy as np
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForTokenClassification

from mpnet_ds.counter_rng import below, draw, make_key, unit_interval
from mpnet_ds.models.module import Part, PretrainingModule, Scores
from mpnet_ds.objectives import Objective, register
from mpnet_ds.objectives.base import Term


class ToyModule(PretrainingModule):
    """The model that is exported, and the sum of the losses of what it computes."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.model = BertForTokenClassification(config)

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor, is_replaced: Tensor, **_) -> Scores:
        logits = self.model(input_ids, attention_mask=attention_mask).logits  # (B, n, 2)
        loss = F.cross_entropy(logits.float().flatten(0, 1), is_replaced.flatten(), ignore_index=-1, reduction="sum")
        return Scores(sums=loss[None], correct=(logits.argmax(-1) == is_replaced).sum()[None])

    def parts(self) -> dict[str, Part]:
        return {"": Part("model.", BertForTokenClassification, self.model.config)}

    def layers(self) -> list[nn.Module]:
        return list(self.model.bert.encoder.layer)


@register
@dataclass(frozen=True, config={"extra": "forbid"})
class Spot(Objective):
    """Tell which tokens were replaced by random ones."""

    name = "spot"
    share: float = 0.15

    @property
    def terms(self) -> tuple[Term, ...]:
        return (Term("spot", "is_replaced"),)

    def draw(self, sequences, vocabulary) -> dict[str, np.ndarray]:
        chance, other = (draw(make_key(i, sequences.keys)[:, None], np.arange(sequences.ids.shape[1])) for i in range(2))
        is_target = sequences.real & ~vocabulary.is_special[sequences.ids]
        ids = np.where(is_target & (unit_interval(chance) < self.share), below(other, vocabulary.size), sequences.ids)
        answers = np.where(is_target, ids != sequences.ids, -1)
        return {"input_ids": ids, "attention_mask": sequences.real, "is_replaced": answers}

    def build(self, model, tokenizer, seq_length, attention="auto", parts=None) -> ToyModule:
        return ToyModule(BertConfig(vocab_size=tokenizer.vocab_size, pad_token_id=1, num_labels=2, **model.configuration()))
