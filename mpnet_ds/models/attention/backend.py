"""Attention back-ends. Each computes ``softmax(q k^T / sqrt(D) + bias) v`` with dropout on the probabilities.

| name      | what it is | picked by ``auto`` |
|---|---|---|
| eager     | two matrix products and a softmax, on any device: what the others are compared with | |
| cpu | the same for a few heads at a time, without further passes over memory | on CPUs |
| sdpa      | ``torch.nn.functional.scaled_dot_product_attention`` with the same bias | on GPUs |
| flex      | FlexAttention: a kernel that PyTorch compiles for GPUs; without dropout | |
| triton    | kernels of our own for GPUs: no bias, scores or dropout mask in memory | |

``flex`` and ``triton`` were not yet measured on a GPU; that is why ``auto`` does not pick them.

A back-end prepares once a step what all layers share (they share one table of relative positions), and each layer hands
that back to it.

Shapes: B rows of a batch, n tokens, H heads, R rows of the network, K keys, D width of a head.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import MPNetConfig

from mpnet_ds.attention_backends import AUTO
from mpnet_ds.models.attention.cpu import ProcessorAttention
from mpnet_ds.models.attention.eager_and_sdpa import EagerAttention, SdpaAttention
from mpnet_ds.models.attention.flex import FlexAttention
from mpnet_ds.models.attention.triton import TritonAttention
from mpnet_ds.models.mpnet.visibility import Layout


class Backend(Protocol):
    """One way to compute attention; without state, so that it may be shared by all models."""

    name: str

    def check(self, device: torch.device, config: MPNetConfig) -> None:
        """Raises ``UserError`` where a model of these sizes could not be trained on the device."""

    def prepare(self, table: nn.Embedding, layout: Layout) -> tuple[Tensor, ...]:
        """What depends on the batch and the table alone, once a step.

        Tensors only, each of them an argument of every layer: that is how gradients find their way to the table where a
        layer is computed again in backward.

        Args:
            table: [32, H], the learned biases of the buckets.
            layout: of the batch.
        """

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float, first_row: int, *prepared: Tensor) -> Tensor:
        """[B, H, R, D], differentiable in query, key, value and what was prepared.

        Rows that see no key (padding) are finite, and mean nothing.

        Args:
            query: [B, H, R, D] of the layout's rows from ``first_row`` on.
            key: [B, H, K, D].
            value: [B, H, K, D].
            dropout: probability that one of the probabilities is left out.
            first_row: of the layout's rows.
            prepared: by ``prepare``.
        """


_BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (EagerAttention(), ProcessorAttention(), SdpaAttention(), FlexAttention(), TritonAttention())
}


def choose_backend(name: str, device: torch.device) -> Backend:
    """The back-end of that name; of ``auto``, the one for the device."""
    if name == AUTO:
        name = "sdpa" if device.type == "cuda" else "cpu"
    return _BACKENDS[name]
