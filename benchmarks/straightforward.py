"""The same training step, written as the paper describes it: the reference for the package's own step.

Content rows and query rows go through each layer separately, each with an attention call and a feed-forward pass of its own.
All content rows are computed in all layers; relative positions and visibility are tensors of the size of the scores; logits
are materialised. The formulas are those of Song et al., arXiv 2004.09297, section 2.3, for tokens in natural order. The
weights are the package's, under the same names, so that both must give the same loss and gradients (see
tests/test_straightforward.py).

Shapes: B sequences, n tokens, p predicted tokens, K = n + p content rows, H heads, d width, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.models.mpnet.model import FIRST_POSITION
from mpnet_ds.models.mpnet.relative_position import bucket


class StraightforwardMPNet(MPNetForPretraining):
    """MPNet for the objective ``mpnet`` and full sequences only."""

    def forward(self, input_ids: Tensor, predicted_positions: Tensor, predicted_inputs: Tensor) -> Tensor:
        """Compute the mean cross-entropy of predicted tokens, nats; arguments as those of ``MPNetForPretraining``."""
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        content_positions = torch.cat([positions, predicted_positions], dim=1)
        content = self._embed(torch.cat([input_ids, predicted_inputs], dim=1), content_positions)
        query = self._embed(predicted_inputs, predicted_positions)
        content_sees, query_sees = visibility(predicted_positions, input_ids.shape[1])
        content_bias = self._bias(content_positions, content_positions, content_sees)
        query_bias = self._bias(predicted_positions, content_positions, query_sees)
        for layer in self.mpnet.encoder.layer:
            content, query = (
                self._block(layer, content, content, content_bias),
                self._block(layer, query, content, query_bias),
            )
        hidden = self.lm_head.layer_norm(F.gelu(linear(self.lm_head.dense, query)))
        logits = F.linear(hidden, self.lm_head.decoder.weight, self.lm_head.bias)
        return F.cross_entropy(logits.flatten(0, 1).float(), input_ids.gather(1, predicted_positions).flatten())

    def _embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """[B, rows, d]."""
        embeddings = self.mpnet.embeddings
        tokens = embeddings.word_embeddings(ids) + embeddings.position_embeddings(positions + FIRST_POSITION)
        return self._drop(embeddings.LayerNorm(tokens))

    def _bias(self, row_positions: Tensor, key_positions: Tensor, sees: Tensor) -> Tensor:
        """[B, H, rows, K]: learned bias of the relative position, minus infinity where a row does not see a key."""
        buckets = bucket(key_positions[:, None, :] - row_positions[:, :, None])
        bias = self.mpnet.encoder.relative_attention_bias(buckets).permute(0, 3, 1, 2)
        return bias.masked_fill(~sees[:, None], -math.inf)

    def _block(self, layer, rows: Tensor, content: Tensor, bias: Tensor) -> Tensor:
        """[B, rows, d]."""
        weights, heads = layer.attention.attn, self.config.num_attention_heads
        query, key, value = (
            linear(x).unflatten(2, (heads, -1)).transpose(1, 2)
            for linear, x in ((weights.q, rows), (weights.k, content), (weights.v, content))
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias
        probabilities = F.dropout(torch.softmax(scores, dim=-1), self.config.attention_probs_dropout_prob, self.training)
        attended = weights.o((probabilities @ value).transpose(1, 2).flatten(2))
        rows = norm(layer.attention.LayerNorm, rows + self._drop(attended))
        inner = layer.output.dense(F.gelu(linear(layer.intermediate.dense, rows)))
        return norm(layer.output.LayerNorm, rows + self._drop(inner))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.config.hidden_dropout_prob, self.training)


def linear(of: nn.Linear, x: Tensor) -> Tensor:
    """A linear map with a module's weights."""
    return F.linear(x, of.weight, of.bias)


def norm(of: nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm with a module's weights."""
    return F.layer_norm(x, of.normalized_shape, of.weight, of.bias, of.eps)


def visibility(predicted_positions: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Compute which of the K keys are visible: bool [B, K, K] for content rows and [B, p, K] for query rows."""
    batch, num_predicted = predicted_positions.shape
    order = torch.zeros(batch, num_tokens, dtype=torch.int64)
    order.scatter_(1, predicted_positions, torch.arange(1, num_predicted + 1).expand(batch, -1))
    number = torch.arange(1, num_predicted + 1).expand(batch, -1)

    def sees(row_order: Tensor) -> Tensor:
        tokens = order[:, None, :] <= row_order[:, :, None]
        mask_rows = number[:, None, :] > row_order[:, :, None]
        return torch.cat([tokens, mask_rows], dim=2)

    return sees(torch.cat([order, torch.zeros_like(number)], dim=1)), sees(number - 1)
