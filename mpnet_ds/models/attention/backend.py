"""Attention back-ends. Each computes ``softmax(q k^T / sqrt(D) + bias) v`` with dropout on the probabilities.

| name      | what it is | picked by ``auto`` |
|---|---|---|
| eager     | two matrix products and a softmax, on any device: what the others are compared with | |
| cpu       | the same for a few heads at a time, without further passes over memory | on CPUs |
| sdpa      | ``torch.nn.functional.scaled_dot_product_attention`` with the same bias | on GPUs |
| flex      | FlexAttention: a kernel that PyTorch compiles for GPUs; without dropout | |
| triton    | kernels of our own for GPUs: no bias, scores or dropout mask in memory | |

``flex`` and ``triton`` have not been measured on a GPU yet; that is why ``auto`` does not pick them.

Once a step a back-end prepares what all layers share (they share one table of relative positions), and each layer passes
that back to it.

Shapes: B sequences, n tokens, H heads, R rows of the network, K keys, D width of a head.
"""

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from mpnet_ds.attention_backends import AUTO
from mpnet_ds.models.attention.cpu import CpuAttention
from mpnet_ds.models.attention.eager_and_sdpa import EagerAttention, SdpaAttention
from mpnet_ds.models.attention.flex import FlexAttention
from mpnet_ds.models.attention.triton import TritonAttention
from mpnet_ds.models.mpnet.visibility import Layout

if TYPE_CHECKING:
    from transformers import MPNetConfig


class Backend(Protocol):
    """One way to compute attention; stateless, so that all models may share it."""

    name: str

    def check(self, device: torch.device, config: "MPNetConfig") -> None:
        """Raise ``UserError`` if a model of these sizes could not be trained on the device."""

    def prepare(self, table: nn.Embedding, layout: Layout) -> tuple[Tensor, ...]:
        """Compute what depends on the batch and the table alone, once a step.

        Tensors only, each of them an argument of every layer: that is how gradients reach the table where a layer is
        recomputed in backward.

        Args:
            table: [32, H], the learned biases of the buckets.
            layout: of the batch.
        """

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, dropout: float, seeds: Tensor | None, first_row: int,
        *prepared: Tensor,
    ) -> Tensor:  # fmt: skip
        """Compute attention [B, H, R, D], differentiable in query, key, value and what was prepared.

        Rows that see no key (padding) are finite but meaningless.

        Args:
            query: [B, H, R, D] of the layout's rows from ``first_row`` on.
            key: [B, H, K, D].
            value: [B, H, K, D].
            dropout: probability that an attention probability is dropped.
            seeds: int64 [B], of dropout's draws (see layers/dropout_seeds.py); None without dropout.
            first_row: of the layout's rows.
            prepared: by ``prepare``.
        """


_BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (EagerAttention(), CpuAttention(), SdpaAttention(), FlexAttention(), TritonAttention())
}


def choose_backend(name: str, device: torch.device) -> Backend:
    """Look up a back-end by name; ``auto`` is the one for the device."""
    if name == AUTO:
        name = "sdpa" if device.type == "cuda" else "cpu"
    return _BACKENDS[name]
