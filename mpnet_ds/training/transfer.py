"""A batch on its way from the loader to the device: packed by the thread that draws it, unpacked where it is used.

Whole numbers travel as int32, half as wide as the model takes them, from memory that a GPU fetches by itself, and nobody
waits for it. Where there is no padding, the mask that would say so stays behind.
"""

import numpy as np
import torch
from torch import Tensor


def pack(batch: dict[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """Tensors in the host's memory of what ``PretrainingDataset.batch`` returns: int64 as int32, bool as it is."""
    arrays = {name: array.astype(np.int32) if array.dtype == np.int64 else array for name, array in batch.items()}
    if arrays["attention_mask"].all():
        del arrays["attention_mask"]
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {name: tensor.pin_memory() for name, tensor in tensors.items()} if device.type == "cuda" else tensors


def unpack(packed: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Arguments of ``MPNetForPretraining`` on the device."""
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in packed.items()}
    return {name: tensor.long() if tensor.dtype == torch.int32 else tensor for name, tensor in moved.items()}
