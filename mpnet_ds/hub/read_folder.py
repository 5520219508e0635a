"""Hugging Face folders of any model: configuration, named tensors, tokenizer.

A folder holds config.json and its weights, in the first of these forms that exists:

    model.safetensors      model.safetensors.index.json and the files that its ``weight_map`` names
    pytorch_model.bin      pytorch_model.bin.index.json and the files that its ``weight_map`` names

A ``.bin`` is a pickle, which may hold a program. It is read with ``weights_only=True``: whatever is not a tensor, a number,
text or a container is refused by name, and none of its code runs.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mpnet_ds.errors import UserError
from mpnet_ds.tokenizer import JSON_FILE, VOCABULARY_FILE, PretrainingTokenizer
from mpnet_ds.validation import read_json_object
from mpnet_ds.zero.torch_file import load_torch_file

CONFIG = "config.json"
SAFE_FORMS = ("model.safetensors", "model.safetensors.index.json")
PICKLED_FORMS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
SENTENCE_TRANSFORMERS = "0_Transformer"
"""Where old folders of sentence-transformers keep the model."""


class FolderWeights:
    """The tensors of a folder by their names there; a tensor's bytes are read on access.

    Raises ``UserError`` for a folder without weights, missing or damaged files, and files that hold more than tensors.
    """

    def __init__(self, folder: Path):
        self.shapes: dict[str, list[int]] = {}
        self._files: dict[str, object] = {}
        for path in _weight_files(folder):
            file = open_safetensors(path) if path.suffix == ".safetensors" else load_torch_file(path, mmap=True)
            self._add(path, file)

    def __getitem__(self, name: str) -> Tensor:
        file = self._files[name]
        return file[name] if isinstance(file, dict) else file.get_tensor(name)

    def _add(self, path: Path, file) -> None:
        if isinstance(file, dict):
            if not all(isinstance(name, str) and torch.is_tensor(value) for name, value in file.items()):
                raise UserError(f"{path} holds more than named tensors: it is not a file of weights.")
            shapes = {name: list(tensor.shape) for name, tensor in file.items()}
        else:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        self.shapes |= shapes
        self._files |= dict.fromkeys(shapes, file)


def model_folder(folder: Path) -> Path:
    """Return ``folder``, or the folder in it where sentence-transformers keeps the model."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}.")
    for candidate in (folder, folder / SENTENCE_TRANSFORMERS):
        if (candidate / CONFIG).is_file() and "model_type" in read_json_object(candidate / CONFIG):
            return candidate
    raise UserError(f"{folder} is not a Hugging Face folder: it has no {CONFIG} with a model_type.")


def read_tokenizer(folder: Path) -> PretrainingTokenizer | None:
    """Read the tokenizer of a folder; None if it has none."""
    has_one = any((folder / name).is_file() for name in (JSON_FILE, VOCABULARY_FILE))
    return PretrainingTokenizer.load(folder) if has_one else None


def _weight_files(folder: Path) -> list[Path]:
    for form in SAFE_FORMS + PICKLED_FORMS:
        path = folder / form
        if path.is_file():
            return _shards(path) if path.suffix == ".json" else [path]
    raise UserError(f"{folder} has no weights: it has none of {', '.join(SAFE_FORMS + PICKLED_FORMS)}.")


def _shards(index: Path) -> list[Path]:
    weight_map = read_json_object(index).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise UserError(f"{index} is damaged: 'weight_map' must give the file of each weight.")
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        raise UserError(f"{index.parent / missing[0]} is missing; {index.name} names it.")
    return [index.parent / name for name in sorted(names)]


def open_safetensors(path: Path):
    """Open a file whose tensors are read on access; ``UserError`` if it is damaged."""
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged, or not a safetensors file: {error}") from error
