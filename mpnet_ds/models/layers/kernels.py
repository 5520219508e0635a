"""Whether this folder's Triton kernels compute a tensor's results."""

from importlib.util import find_spec

from torch import Tensor

HAS_TRITON = find_spec("triton") is not None


def run_on(tensor: Tensor) -> bool:
    """Whether the tensor is on a GPU and Triton is installed."""
    return tensor.is_cuda and HAS_TRITON
