"""The toy twice: a module with two parts, of which one has a sum, other names and a file beside it."""

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForTokenClassification, BertModel

from mpnet_ds.models.module import Part, PretrainingModule, Scores
from mpnet_ds.objectives import register
from tests.toy import Spot

TABLE = "bert.embeddings.word_embeddings.weight"
RENAMED = {f"answer.{kind}": f"classifier.{kind}" for kind in ("weight", "bias")}


class Second(nn.Module):
    """A BERT whose token table is added to that of another, and a head."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.bert = BertModel(config, add_pooling_layer=False)
        self.answer = nn.Linear(config.hidden_size, config.num_labels)


class TwoParts(PretrainingModule):
    """The second's token table is the first's plus a difference of its own, as in DeBERTa-v3."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config, self.first, self.second = config, BertForTokenClassification(config), Second(config)
        self.temperature = nn.Parameter(torch.ones(3))

    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Of both parts, each [B, n, 2]."""
        table = self.first.get_parameter(TABLE).detach() + self.second.get_parameter(TABLE)
        embedded = F.embedding(input_ids, table)
        hidden = self.second.bert(inputs_embeds=embedded, attention_mask=attention_mask).last_hidden_state
        return self.first(input_ids, attention_mask=attention_mask).logits, self.second.answer(hidden)

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor, is_replaced: Tensor, **_) -> Scores:
        logits = sum(self.logits(input_ids, attention_mask)) * self.temperature.mean()
        loss = F.cross_entropy(logits.float().flatten(0, 1), is_replaced.flatten(), ignore_index=-1, reduction="sum")
        return Scores(sums=loss[None], correct=(logits.argmax(-1) == is_replaced).sum()[None])

    def parts(self) -> dict[str, Part]:
        table = {TABLE: (f"first.{TABLE}", f"second.{TABLE}")}
        beside = {"temperature.safetensors": {"temperature": "t"}}
        second = Part("second.", BertForTokenClassification, self.config, RENAMED, table, beside)
        return {"first": Part("first.", BertForTokenClassification, self.config), "second": second}

    def layers(self) -> list[nn.Module]:
        return [*self.first.bert.encoder.layer, *self.second.bert.encoder.layer]


@register
@dataclass(frozen=True, config={"extra": "forbid"})
class SpotTwice(Spot):
    """Let two models tell together which tokens were replaced."""

    name = "spot-twice"

    def build(self, model, tokenizer, seq_length, attention="auto", parts=None) -> TwoParts:
        return TwoParts(BertConfig(vocab_size=tokenizer.vocab_size, pad_token_id=1, num_labels=2, **model.configuration()))
