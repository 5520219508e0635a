"""Universal checkpoints, which DeepSpeed's ``ds_to_universal.py`` makes of others.

    zero/NAME/fp32.pt, exp_avg.pt …   one trained parameter's fp32 weight, and moments: from ZeRO 1 and 2 as
                                      {"param": tensor, …}, from ZeRO 3 as a flat tensor
    *_model_states.pt                 copies of the model's files: shapes, tied names, frozen weights, buffers

(From ZeRO 1 and 2 there are files of frozen weights and buffers as well, the latter always as fp32; the model's file has
them as they are.)
"""

import math
from pathlib import Path

from mpnet_ds.errors import UserError
from mpnet_ds.zero.lazy_weights import StoredWeights
from mpnet_ds.zero.shard_set import open_model_states
from mpnet_ds.zero.torch_file import StoredTensor, TensorFile

PARAMETERS = "zero"


def is_universal(folder: Path) -> bool:
    """Whether a folder holds a universal checkpoint."""
    return (folder / PARAMETERS).is_dir() and any(folder.glob("*_model_states.pt"))


def open_universal(folder: Path) -> StoredWeights:
    """Open a universal checkpoint; raise ``UserError``, naming the file, if one is missing, damaged or of a wrong shape."""
    model = open_model_states(folder)
    files: dict[str, TensorFile] = {}
    tensors: dict[str, StoredTensor] = {}
    for name, shape in (item for group in model.shapes for item in group.items()):
        files[name] = _open_parameter(folder / PARAMETERS, name)
        content = files[name].content
        stored = files[name].tensor(content.get("param") if isinstance(content, dict) else content)
        if stored.numel != math.prod(shape):
            raise UserError(f"{files[name].path} holds {stored.numel:,} elements; {name} has the shape {list(shape)}.")
        tensors[name] = StoredTensor(shape, stored.dtype, stored.spans)
    tensors |= model.untrained(tensors)
    lacks = model.describe_left_out(3) if model.is_divided else ""
    return StoredWeights(tensors, model.tied, [*model.files, *files.values()], lacks)


def _open_parameter(folder: Path, name: str) -> TensorFile:
    path = folder / name / "fp32.pt"
    if not path.is_file():
        raise UserError(f"{path} is missing: the conversion to a universal checkpoint was interrupted, or files were lost.")
    return TensorFile(path)
