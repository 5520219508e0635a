"""Layouts and random inputs on which attention back-ends are compared, and the comparison."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from mpnet_ds.models.attention.backend import choose_backend
from mpnet_ds.models.initial_values import near_bias
from mpnet_ds.models.mpnet.relative_position import middle_of_buckets
from mpnet_ds.models.mpnet.visibility import Layout, plain_layout, two_stream_layout

FIRST_DISTANCES = [*range(9), 12, 16, 23, 32, 46, 64, 91]
"""Of the buckets of one side, as relative_position.py tabulates them."""


@dataclass
class Case:
    """One call of a back-end, with the gradient that comes back to it."""

    layout: Layout
    table: nn.Embedding
    query: Tensor
    key: Tensor
    value: Tensor
    grad_out: Tensor
    first_row: int
    meaningful: Tensor
    """bool [B, R]: rows that see something and are not those of unused entries."""

    def in_fp32(self) -> "Case":
        """The same numbers, as far as they were rounded, in fp32 on a CPU: for a reference."""
        table = copy.deepcopy(self.table).float().cpu()
        tensors = {name: getattr(self, name).float().cpu() for name in ("query", "key", "value", "grad_out")}
        layout = replace(self.layout, **{name: x.cpu() for name, x in vars(self.layout).items() if isinstance(x, Tensor)})
        return replace(self, layout=layout, table=table, meaningful=self.meaningful.cpu(), **tensors)

    def in_fp64(self) -> dict[str, Tensor]:
        """Output and gradients as the definition has them, for the numbers as they were rounded."""
        inputs = [x.double().cpu().requires_grad_() for x in (self.query, self.key, self.value, self.table.weight.detach())]
        query, key, value, table = inputs
        row_indices, key_indices = self.layout.row_indices[:, self.first_row :].cpu(), self.layout.key_indices.cpu()
        relative = (key_indices[:, None, :] - row_indices[:, :, None]).numpy()
        buckets = np.searchsorted(FIRST_DISTANCES, np.abs(relative), side="right") - 1 + 16 * (relative > 0)
        meaningful = self.meaningful.cpu()
        seen = self.layout.visible[:, self.first_row :].cpu() | ~meaningful[:, :, None]  # a row of nothing would be NaN
        scores = query @ key.mT / query.shape[-1] ** 0.5 + table[torch.from_numpy(buckets)].permute(0, 3, 1, 2)
        out = torch.softmax(scores.masked_fill(~seen[:, None], -torch.inf), dim=-1) @ value
        out.backward(self.grad_out.double().cpu())
        gradients = zip(("query", "key", "value", "table"), (x.grad for x in inputs), strict=True)
        return {"out": out.detach() * meaningful[:, None, :, None], **dict(gradients)}

    def run(self, attention: str, dropout: float = 0.0) -> dict[str, Tensor]:
        """Output and gradients by a back-end, with seeds 0, 1, 2 …; rows that mean nothing are 0 in the output."""
        backend = choose_backend(attention, self.query.device)
        inputs = [x.clone().requires_grad_() for x in (self.query, self.key, self.value)]
        self.table.weight.grad = None
        seeds = torch.arange(len(self.query), device=self.query.device)
        out = backend.attend(*inputs, dropout, seeds, self.first_row, *backend.prepare(self.table, self.layout))
        out.backward(self.grad_out)
        names = ("query", "key", "value", "table")
        gradients = zip(names, (*(x.grad for x in inputs), self.table.weight.grad), strict=True)
        return {"out": out.detach() * self.meaningful[:, None, :, None], **dict(gradients)}


def make_case(
    objective: str,
    batch: int = 2,
    tokens: int = 70,
    predicted: int = 20,
    heads: int = 2,
    width: int = 16,
    padding: int = 0,
    unused: int = 0,
    documents: bool = False,
    last_layer: bool = False,
    near: float = 0.0,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Random weights, predicted positions, queries, keys, values and gradients; views as the model hands them over.

    Args:
        padding: tokens of the last sequence that are padding.
        unused: predictions of the last sequence that are unused.
        documents: whether each sequence is three documents that do not see each other.
        last_layer: query rows alone.
        near: strength of a table that begins with what is near; down to -14 at 2 and to -27 at 4.
    """
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    mask[-1, tokens - padding :] = False
    positions = torch.stack([torch.randperm(tokens - padding, generator=generator)[:predicted] for _ in range(batch)])
    positions[-1, predicted - unused :] = -1
    ids = (torch.arange(tokens) * 3 // tokens).expand(batch, -1) if documents else None
    mask, positions, ids = (x if x is None else x.to(device) for x in (mask, positions, ids))
    layout = plain_layout(mask, ids) if objective == "mlm" else two_stream_layout(positions, mask, objective == "mpnet", ids)
    num_rows, num_keys = layout.row_indices.shape[1], layout.key_indices.shape[1]
    first_row = num_keys if last_layer else 0
    of_predicted = [positions >= 0] * ((num_rows - tokens) // predicted if predicted else 0)
    used = torch.cat([torch.ones_like(mask), *of_predicted], dim=1)[:, first_row:]
    meaningful = used & layout.visible.any(dim=2)[:, first_row:]

    def random(rows: int) -> Tensor:
        return torch.randn(batch, rows, heads, width, generator=generator).to(device, dtype).transpose(1, 2)

    query, key, value, grad_out = (
        random(num_rows - first_row),
        random(num_keys),
        random(num_keys),
        random(num_rows - first_row),
    )
    table = nn.Embedding(32, heads)
    table.weight.data.normal_(generator=generator)
    table.weight.data += near_bias(*middle_of_buckets(), heads, near)
    grad_out = grad_out * meaningful[:, None, :, None]
    return Case(layout, table.to(device, dtype), query, key, value, grad_out, first_row, meaningful)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """All of ``found`` to ``tolerance`` times the largest number of each (at least 1)."""
    for name, tensor in found.items():
        scale = max(1.0, expected[name].abs().max().item())
        torch.testing.assert_close(
            tensor.float(), expected[name].float(), atol=tolerance * scale, rtol=0, msg=lambda text, n=name: f"{n}: {text}"
        )
