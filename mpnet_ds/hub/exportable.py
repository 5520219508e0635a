"""The model of a checkpoint, rebuilt from the checkpoint's own records, and whether its weights can be exported."""

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from mpnet_ds.checkpoint.consolidate import load_consolidated, open_weights
from mpnet_ds.checkpoint.store import CheckpointInfo, read_info
from mpnet_ds.config.recipe import Recipe, recipe_from_dict
from mpnet_ds.errors import UserError
from mpnet_ds.hub.part_weights import first_names
from mpnet_ds.models.module import Part, PretrainingModule
from mpnet_ds.objectives import OBJECTIVES
from mpnet_ds.tokenizer import PretrainingTokenizer
from mpnet_ds.zero.lazy_weights import StoredWeights
from mpnet_ds.zero.torch_file import StoredTensor


@dataclass(frozen=True)
class TrainedModel:
    """What a checkpoint says about its model."""

    checkpoint: Path
    info: CheckpointInfo
    recipe: Recipe
    """Its objective, model and sequence length; everything else has default values."""
    tokenizer: PretrainingTokenizer

    @classmethod
    def of(cls, checkpoint: Path) -> "TrainedModel":
        """Read a checkpoint's records; raise ``UserError`` if they describe no model that this program knows."""
        info, tokenizer = read_info(checkpoint), PretrainingTokenizer.load(checkpoint / "tokenizer")
        sections = {"objective": info.objective, "model": info.model, "data": {"seq_length": info.seq_length}}
        if info.objective["name"] not in OBJECTIVES:
            name = info.objective["name"]
            raise UserError(f"{checkpoint}: unknown objective '{name}': name the module that registers it with --plugins.")
        recipe = recipe_from_dict({"name": checkpoint.name, **sections}, str(checkpoint))
        if info.vocab_size < tokenizer.vocab_size:
            raise UserError(
                f"{checkpoint}: the model has {info.vocab_size:,} rows for the tokenizer's {tokenizer.vocab_size:,} pieces, "
                "so it was trained with another tokenizer: export a checkpoint whose tokenizer/ is its own."
            )
        return cls(checkpoint, info, recipe, tokenizer)

    @property
    def padding_rows(self) -> int:
        """Rows of the vocabulary without a piece of the tokenizer."""
        return self.info.vocab_size - self.tokenizer.vocab_size

    @cached_property
    def module(self) -> PretrainingModule:
        """The module without its weights (on the meta device), padding rows included."""
        return self._build(self.info.vocab_size, "meta")

    @cached_property
    def exported(self) -> PretrainingModule:
        """The module without its weights and without padding rows: its parts are what an export writes."""
        return self._build(self.tokenizer.vocab_size, "meta") if self.padding_rows else self.module

    @property
    def parts(self) -> dict[str, Part]:
        """Parts of an export by folder name."""
        return self.exported.parts()

    def _build(self, vocab_size: int, device: str) -> PretrainingModule:
        tokenizer = copy.copy(self.tokenizer)
        tokenizer.vocab_size = vocab_size
        recipe = self.recipe
        with torch.device(device):
            return recipe.objective.build(recipe.model, tokenizer, recipe.data.seq_length)

    def open_weights(self) -> StoredWeights:
        """Open the weights without reading them; raise ``UserError`` unless they are exactly those of the module."""
        weights = open_weights(self.checkpoint)
        check_weights(weights.tensors, self.module, self.checkpoint)
        return weights

    def load(self) -> PretrainingModule:
        """Load the module with its weights, in memory once, ready to evaluate."""
        names = first_names(self.module)
        unsaved = {name for name, _ in self.module.named_buffers()} - names.keys()
        # Buffers outside the state dict have values only if the module was really built.
        module = self._build(self.info.vocab_size, "cpu" if unsaved else "meta")
        weights = {names[name]: tensor for name, tensor in load_consolidated(self.checkpoint).items()}
        module.load_state_dict({name: weights[first] for name, first in names.items()}, assign=True)
        return module.eval()


def check_weights(weights: dict[str, StoredTensor], module: PretrainingModule, origin: object) -> None:
    """Raise ``UserError`` unless these are all weights of a module, and tied ones equal where both are present."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    names = first_names(module)
    there = {names[name] for name in weights if name in names}
    findings = [f"{origin}: the weight {name} is missing." for name in dict.fromkeys(names.values()) if name not in there]
    findings += [
        f"{origin}: {name} is not a weight of {type(module).__name__} as the checkpoint describes it; it cannot be exported."
        for name in sorted(set(weights) - set(shapes))
    ]
    findings += [
        f"{origin}: {name} is {list(weights[name].shape)}, its configuration says {list(shape)}."
        for name, shape in shapes.items()
        if name in weights and weights[name].shape != shape
    ]
    findings += [
        f"{origin}: {name} is not {first}, to which the model ties it; it cannot be exported."
        for name, first in names.items()
        if not findings and name != first and {name, first} <= weights.keys() and not _are_equal(weights, name, first)
    ]
    if findings:
        raise UserError(*findings)


def _are_equal(weights: dict[str, StoredTensor], name: str, other: str) -> bool:
    return torch.equal(weights[name].read(), weights[other].read())


def check_finite(name: str, tensor: Tensor, origin: object, cure: str) -> None:
    """Raise ``UserError`` if a number of a weight is NaN or infinite."""
    if not torch.isfinite(tensor).all():
        raise UserError(f"{origin}: {name} has values that are NaN or infinite; {cure}.")
