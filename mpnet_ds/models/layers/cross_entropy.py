"""Fused projection to the vocabulary and cross-entropy, for some rows at a time: the logits are never materialised.

With 64 sequences, 77 predicted tokens in each and 30,527 pieces the logits are 150 million numbers, and autograd would keep
them in fp32 too. But the gradient of a sum of cross-entropies is known as soon as the logits are: ``softmax(logits) -
one_hot(label)``. So each chunk of rows is projected, scored and turned into gradients at once; backward only scales them.

Gradients are those of the sum over the rows, not of their mean: in fp16 a mean's would underflow to 0.

Shapes: M rows, d width, V vocabulary.
"""

import torch
from torch import Tensor, library, nn
from torch.nn import functional as F

from mpnet_ds.models.layers import kernels

LOGITS_AT_ONCE = 2**25
"""Numbers: 128 MiB in fp32, 1,099 rows of 30,527."""
LOGITS_AT_ONCE_IN_A_KERNEL = 2**27
"""256 MiB in 16 bits, and no copy in fp32; fewer chunks read and sum the table and its gradient less often."""
MULTIPLE_ON_GPUS = 64
"""Tensor cores want aligned rows of logits: the vocabulary is padded to a multiple of this."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the cross-entropies of ``hidden @ weight.T + bias``, and find the rows that are highest at their label.

    Args:
        hidden: [M, d].
        weight: [V, d].
        bias: [V], or None.
        labels: int64 [M], -1 for rows that do not count.
    Returns:
        The sum (nats, fp32 scalar, differentiable in hidden, weight and bias), each row's summand (fp32 [M], not
        differentiable) and whether it is highest at its label (bool [M]).
    """
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    is_recorded = torch.is_grad_enabled() and any(x.requires_grad for x in (hidden, weight, bias))
    multiple = MULTIPLE_ON_GPUS if hidden.is_cuda else 1
    at_once = LOGITS_AT_ONCE_IN_A_KERNEL if kernels.run_on(hidden) else LOGITS_AT_ONCE
    total, losses, hits, *_ = score(hidden, weight, bias, labels, at_once, multiple, is_recorded)
    return total, losses, hits


class Decoder(nn.Linear):
    """A map to the vocabulary, often with the token table as its weight; called as a module, so that ZeRO 3 gathers it."""

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Logits [..., V] from hidden [..., d]; with labels int64 [...], ``linear_cross_entropy`` instead of them."""
        if labels is None:
            return super().forward(hidden)
        total, losses, hits = linear_cross_entropy(hidden.flatten(0, -2), self.weight, self.bias, labels.flatten())
        return total, losses.view_as(labels), hits.view_as(labels)


@library.custom_op("mpnet_ds::score", mutates_args=())
def score(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, logits_at_once: int, multiple: int, is_recorded: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute ``linear_cross_entropy``, and its gradients of hidden, weight and bias (empty unless ``is_recorded``).

    Args:
        logits_at_once: numbers of a chunk at most, but at least a row.
        multiple: the vocabulary is padded to a multiple of it with pieces that are never predicted.
    """
    size = weight.shape[0]
    padding = -size % multiple
    if padding:
        weight = F.pad(weight, (0, 0, 0, padding))
        bias = F.pad(bias, (0, padding), value=torch.finfo(bias.dtype).min)
    total = hidden.new_zeros((), dtype=torch.float32)
    losses, hits = hidden.new_empty(len(hidden), dtype=torch.float32), labels.new_empty(len(hidden), dtype=torch.bool)
    of_hidden, of_weight, of_bias = (torch.zeros_like(x) if is_recorded else x.new_empty(0) for x in (hidden, weight, bias))
    for part in _chunks(len(hidden), max(1, logits_at_once // len(weight))):
        rows, label = hidden[part], labels[part]
        logits = torch.addmm(bias, rows, weight.t())
        losses[part], hits[part] = score_logits(logits, label, is_recorded)
        total += losses[part].sum()
        if is_recorded:
            gradient = logits
            torch.mm(gradient, weight, out=of_hidden[part])
            of_weight.addmm_(gradient.t(), rows)
            of_bias += gradient.sum(dim=0)
    return total, losses, hits, of_hidden, of_weight[:size], of_bias[:size]


def score_logits(logits: Tensor, labels: Tensor, is_recorded: bool) -> tuple[Tensor, Tensor]:
    """Compute the losses, fp32 [M], and hits of logits [M, V]; where ``is_recorded`` their gradient replaces the logits.

    Rows whose label is -1 have no loss, no hit and a gradient of 0.
    """
    if kernels.run_on(logits):
        return score_logits_on_gpu(logits, labels, is_recorded)
    used, exact = labels >= 0, logits.float()
    hits = (exact.argmax(dim=1) == labels) & used  # five times as fast as of 16 bits, on CPUs
    log_sum = exact.logsumexp(dim=1)
    column = labels.clamp(min=0)[:, None]
    losses = torch.where(used, log_sum - exact.gather(1, column)[:, 0], 0)
    if is_recorded:
        # A row that does not count gets an infinite sum, and thereby a gradient of 0.
        gradient = exact.sub_(torch.where(used, log_sum, torch.inf)[:, None]).exp_()
        gradient.scatter_add_(1, column, -used.float()[:, None])
        logits.copy_(gradient)
    return losses, hits


@library.custom_op("mpnet_ds::score_logits", mutates_args=("logits",))
def score_logits_on_gpu(logits: Tensor, labels: Tensor, is_recorded: bool) -> tuple[Tensor, Tensor]:
    """Compute ``score_logits`` in one kernel."""
    from mpnet_ds.models.layers import cross_entropy_kernel  # imports triton

    return cross_entropy_kernel.score_logits(logits, labels, is_recorded)


@score_logits_on_gpu.register_fake
def _(logits, labels, is_recorded):
    rows = logits.shape[0]
    return logits.new_empty(rows, dtype=torch.float32), logits.new_empty(rows, dtype=torch.int32)


@score.register_fake
def _(hidden, weight, bias, labels, logits_at_once, multiple, is_recorded):
    total, losses = (hidden.new_empty(shape, dtype=torch.float32) for shape in ((), len(hidden)))
    gradients = [torch.empty_like(x) if is_recorded else x.new_empty(0) for x in (hidden, weight, bias)]
    return total, losses, labels.new_empty(len(hidden), dtype=torch.bool), *gradients


def _keep_gradients(ctx, inputs, output) -> None:
    _, losses, hits, *gradients = output
    ctx.save_for_backward(*gradients)
    ctx.mark_non_differentiable(losses, hits, *gradients)
    ctx.set_materialize_grads(False)  # else zeros would be made for those


def _scale_gradients(ctx, factor: Tensor, *_) -> tuple:
    return *(gradient * factor.to(gradient.dtype) for gradient in ctx.saved_tensors), None, None, None, None


score.register_autograd(_scale_gradients, setup_context=_keep_gradients)


def _chunks(count: int, most: int) -> list[slice]:
    """Divide ``count`` rows into chunks of at most ``most`` rows, whose sizes differ by at most one."""
    parts = -(-count // most)
    return [slice(i * count // parts, (i + 1) * count // parts) for i in range(parts)]
