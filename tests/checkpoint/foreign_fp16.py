"""What a run in fp16 would have saved, from the same checkpoint in bf16: CPUs cannot train in fp16.

The optimizer's fp32 weights and states stay, and buffers. Parameters of the module, frozen ones too, become fp16; where
DeepSpeed keeps loss scales (``loss_scaler`` at ZeRO 1 to 3, numbers at ZeRO 0) there are those of a dynamic scale; files
lose the prefix ``bf16_``. The classes and keys are those of DeepSpeed 0.19.8's runtime/fp16 and runtime/zero.
"""

from pathlib import Path

import torch
from torch import Tensor

from mpnet_ds.zero.torch_file import TensorFile, load_shard

SCALE = {"dynamic_loss_scale": True, "cur_scale": 4096.0, "cur_iter": 3, "last_overflow_iter": -1}
SCALE |= {"scale_factor": 2.0, "scale_window": 1000}


def to_fp16(folder: Path, truth: dict[str, Tensor], frozen: set[str]) -> dict[str, Tensor]:
    """Rewrites the files of a checkpoint folder; returns the truth about the new one.

    Args:
        frozen: names of parameters of which 16 bits are all there is.
    """
    halves = {id(tensor): tensor.half() for tensor in truth.values()}
    halves = {name: halves[id(tensor)] for name, tensor in truth.items()}
    for path in sorted(folder.glob("*_states.pt")):
        content = load_shard(path)
        if "module" in content:
            _rewrite_model(content, halves)
            _share_empty(content["module"], TensorFile(path))
        else:
            _set_scaler(content["optimizer_state_dict"])
        content["ds_config"] = content["ds_config"] | {"bf16": {"enabled": False}, "fp16": {"enabled": True}}
        path.unlink()
        torch.save(content, path.with_name(path.name.removeprefix("bf16_")))
    return {name: halves[name].float() if name in frozen else tensor for name, tensor in truth.items()}


def _rewrite_model(content: dict, halves: dict[str, Tensor]) -> None:
    for name, tensor in content["module"].items():
        if tensor.dtype == torch.bfloat16 and tensor.numel():  # at ZeRO 3 parameters are empty
            content["module"][name] = halves[name]
    if content["frozen_param_fragments"]:
        content["frozen_param_fragments"] = {name: part.half() for name, part in content["frozen_param_fragments"].items()}
    if content["optimizer"]:
        content["optimizer"] |= SCALE


def _share_empty(module: dict, file: TensorFile) -> None:
    """Let names of one empty tensor share it again: ``torch.load`` makes one for each."""
    firsts: dict[tuple, Tensor] = {}
    for name, tensor in module.items():
        if not tensor.numel():
            module[name] = firsts.setdefault(file.tensor(file.content["module"][name]).location, tensor)


def _set_scaler(content: dict) -> None:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    content["loss_scaler"] = DynamicLossScaler(4096.0, 1000, 1.0, 2, False)
    content["dynamic_loss_scale"] = True
