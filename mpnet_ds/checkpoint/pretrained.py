"""Starting from the weights of a Hugging Face MPNet folder. Parameters have the same names there, so this is a copy."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import MPNetConfig

from mpnet_ds.errors import UserError
from mpnet_ds.model import MPNetForPretraining
from mpnet_ds.tokenizer import PretrainingTokenizer

WEIGHTS = "model.safetensors"


def load_pretrained_weights(model: MPNetForPretraining, folder: str | Path) -> None:
    """Starts ``model`` from a folder that ``check_start`` has found good; encoder-only folders leave the head fresh."""
    weights, own = load_file(Path(folder) / WEIGHTS), model.state_dict()
    weights = {_own_name(name, weights): tensor for name, tensor in weights.items()}
    model.load_state_dict({name: tensor for name, tensor in weights.items() if name in own}, strict=False)


def check_start(folder: str | Path, config: MPNetConfig, tokenizer: PretrainingTokenizer) -> None:
    """Whether a run with this model and tokenizer can start from the weights of a Hugging Face folder.

    Reads names and shapes only. Raises ``UserError`` if the folder has no weights, or those of another model or vocabulary.
    """
    origin, file = f"--init_from {folder}", Path(folder) / WEIGHTS
    if not file.is_file():
        raise UserError(f"{origin}: {WEIGHTS} is missing; give a Hugging Face folder with an MPNet model.")
    with safe_open(file, "pt") as weights:
        shapes = {_own_name(name, weights.keys()): weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    has_tokenizer = (Path(folder) / "tokenizer.json").is_file()
    if has_tokenizer and PretrainingTokenizer.load(folder).pieces != tokenizer.pieces:
        raise UserError(
            f"{origin}: its vocabulary is not the data's ({tokenizer.vocab_size:,} pieces): build the data with its "
            f"tokenizer (tools/build_dataset.py --tokenizer {folder})."
        )
    with torch.device("meta"):
        own = {name: list(tensor.shape) for name, tensor in MPNetForPretraining(config).state_dict().items()}
    for name, shape in own.items():
        if name in shapes and shapes[name] != shape:
            cure = "take a recipe of that model's sizes, and data built with its tokenizer"
            raise UserError(f"{origin}: {name} is {shapes[name]} there, {shape} here: {cure}.")
    missing = [name for name in own if name.startswith("mpnet.") and name not in shapes]
    if missing:
        raise UserError(f"{origin}: {missing[0]} is missing; is this an MPNet model with as many layers?")


def _own_name(name: str, names: Iterable[str]) -> str:
    """Folders of the encoder alone leave the prefix out."""
    return name if any(other.startswith("mpnet.") for other in names) else f"mpnet.{name}"
