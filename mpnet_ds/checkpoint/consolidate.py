"""From ZeRO shards to one set of weights."""

import json
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from mpnet_ds.checkpoint.store import MANIFEST, find_checkpoint, verify
from mpnet_ds.checkpoint.zero_shards import ZeroCheckpoint
from mpnet_ds.errors import UserError
from mpnet_ds.files import new_folder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_consolidated(folder: str | Path) -> dict[str, Tensor]:
    """Name → fp32 tensor of a checkpoint folder, or of a run's newest checkpoint.

    The names are those of the module's state dict: a tied parameter appears under each of its names, as one tensor.
    """
    checkpoint = _open(folder)
    weights = {name: tensor.clone() for name, tensor in checkpoint.named_tensors()}
    return weights | {name: weights[source] for name, source in checkpoint.tied.items() if source in weights}


def consolidate(
    source: str | Path, output: str | Path, dtype: str = "fp32", max_shard_size: int | str = "5GB"
) -> list[Path]:
    """Writes ``model.safetensors``, or several files and their index above ``max_shard_size``, to a new folder.

    A tied parameter is written once, under its first name. The folder appears when all is whole. Returns the files in it.
    """
    checkpoint = _open(source)
    with new_folder(output) as folder:
        weights = {name: tensor.to(DTYPES[dtype], copy=True).contiguous() for name, tensor in checkpoint.named_tensors()}
        plan = split_torch_state_dict_into_shards(weights, max_shard_size=max_shard_size)
        for name, tensors in plan.filename_to_tensors.items():
            save_file({tensor: weights[tensor] for tensor in tensors}, folder / name, metadata={"format": "pt"})
        if plan.is_sharded:
            index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return sorted(Path(output).iterdir())


def _open(folder: str | Path) -> ZeroCheckpoint:
    """``folder`` if it holds shards itself (any program's), else the newest checkpoint of the run in it.

    Checksums are compared where there is a manifest, as in checkpoints of this project.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"no checkpoint folder {folder}.")
    if not any(path.glob("*_states.pt")):
        path = find_checkpoint(path)
    if (path / MANIFEST).is_file():
        verify(path)
    return ZeroCheckpoint(path)
