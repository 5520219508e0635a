"""Muon for the hidden matrices and AdamW for all else, as the one optimizer that a DeepSpeed engine takes.

Muon (Jordan, 2024, kellerjordan.github.io/posts/muon) keeps one momentum instead of Adam's two moments, and moves a matrix
by the momentum made nearly orthogonal: five Newton-Schulz iterations in bf16, of 2 a² (2 b + a) operations each for a
matrix of a rows and b columns, a <= b. Times 0.2 sqrt(b) its step is as large as AdamW's (Liu et al., 2025, arXiv
2502.16982), so one learning rate and one weight decay serve both.

Both are PyTorch's. DeepSpeed has a Muon of its own, which is not used: it takes two learning rates, which a schedule
overwrites with one, silently compiles at its first step, and at ZeRO 1 and 2 its steps are clipped instead of
gradients. Only ZeRO 0 has whole matrices: other stages cut them.
"""

from collections.abc import Callable

import torch

from mpnet_ds.models.module import PretrainingModule


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer of two: groups with ``use_muon`` true are updated by ``torch.optim.Muon``, the others by fused AdamW.

    Its state has ``momentum_buffer`` for a parameter of the former; ``step``, ``exp_avg`` and ``exp_avg_sq`` for one of the
    latter.

    Args:
        groups: each with ``params``, ``weight_decay`` and ``use_muon``.
        lr: of both; momentum: Muon's; betas, eps: AdamW's.
    """

    def __init__(self, groups: list[dict], lr: float, momentum: float, betas: tuple[float, float], eps: float):
        by_adamw, by_muon = ([group for group in groups if group["use_muon"] is kind] for kind in (False, True))
        self._adamw = torch.optim.AdamW(by_adamw, lr=lr, betas=betas, eps=eps, fused=True)
        self._muon = torch.optim.Muon(by_muon, lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")
        super().__init__([*self._adamw.param_groups, *self._muon.param_groups], {})

    def step(self, closure: Callable | None = None):
        """Update all parameters that have a gradient."""
        loss = None if closure is None else closure()
        for part, kind in ((self._adamw, False), (self._muon, True)):
            # At each step: DeepSpeed puts fp32 master weights into the groups, and loading a checkpoint makes new groups.
            part.param_groups = [group for group in self.param_groups if group["use_muon"] is kind]
            part.state = self.state
            part.step()
        return loss


def make_muon(module: PretrainingModule, values: dict, groups: list[dict]) -> MuonAdamW:
    """Make the optimizer for a module's parameter groups; the hidden matrices of each become a group of their own.

    Args:
        values: ``optimizer.params`` of DeepSpeed's JSON, resolved.
    """
    hidden = {id(matrix) for matrix in module.hidden_matrices()}
    divided = [
        group | {"params": [p for p in group["params"] if (id(p) in hidden) is use_muon], "use_muon": use_muon}
        for use_muon in (False, True)
        for group in groups
    ]
    divided = [group for group in divided if group["params"]]
    return MuonAdamW(divided, values["lr"], values["momentum"], values["betas"], values["eps"])
