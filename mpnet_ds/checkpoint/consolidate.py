"""From ZeRO shards to one set of weights."""

import json
import os
import shutil
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from mpnet_ds.checkpoint.store import find_checkpoint
from mpnet_ds.checkpoint.zero_shards import named_tensors
from mpnet_ds.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_consolidated(folder: str | Path) -> dict[str, Tensor]:
    """Name → fp32 tensor of a checkpoint folder, or of a run's newest checkpoint. Tied parameters appear once."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"no checkpoint folder {folder}.")
    return {name: tensor.clone() for name, tensor in named_tensors(_checkpoint_in(path))}


def consolidate(source: str | Path, output: str | Path, dtype: str = "fp32", max_shard_size: str = "5GB") -> list[Path]:
    """Writes ``model.safetensors``, or several files and their index above ``max_shard_size``, into a new folder.

    Returns the files written. The folder appears only when all of them are whole.
    """
    output = Path(output)
    check_output_is_free(output)
    weights = {name: tensor.to(DTYPES[dtype]).contiguous() for name, tensor in load_consolidated(source).items()}
    plan = split_torch_state_dict_into_shards(weights, max_shard_size=max_shard_size)
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, tensors in plan.filename_to_tensors.items():
        save_file({tensor: weights[tensor] for tensor in tensors}, partial / name, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    if output.exists():
        output.rmdir()
    os.replace(partial, output)
    return sorted(output.iterdir())


def check_output_is_free(output: Path) -> None:
    """Raises ``UserError`` rather than let an output be overwritten."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists and is not empty: choose another output or remove it.")


def _checkpoint_in(path: Path) -> Path:
    """``path`` if it holds shards itself (any program's), else the newest checkpoint of the run in it."""
    return path if any(path.glob("*_states.pt")) else find_checkpoint(path)
