"""Whether this folder's Triton kernels compute a tensor's results."""

import torch
from torch import Tensor

from mpnet_ds.deepspeed_workarounds import has_triton


def run_on(tensor: Tensor) -> bool:
    """Whether the tensor is on a GPU that Triton, if installed, can compile for."""
    return tensor.is_cuda and _has_triton()


@torch.compiler.assume_constant_result
def _has_triton() -> bool:
    return has_triton()
