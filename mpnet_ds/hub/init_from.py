"""Starting a run from the weights of Hugging Face folders: ``--init_from``.

A module with one part starts from one folder; a module with several takes a folder with one subfolder for each, by the
parts' names, as an export writes them. Names, sums and files beside the model are those of ``PretrainingModule.parts()``,
read backwards. The weights must be in safetensors and complete, pre-training head included; tied copies and heads of other
tasks are allowed. tools/convert_from_hf.py makes such a folder of any MPNet.
"""

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor

from mpnet_ds.command_line import invocation
from mpnet_ds.config.recipe import Recipe
from mpnet_ds.errors import UserError
from mpnet_ds.hub.locate import locate_model
from mpnet_ds.hub.part_weights import Contents, contents_of, find_sources, first_names
from mpnet_ds.hub.read_folder import CONFIG, SAFE_FORMS, FolderWeights, model_folder, open_safetensors, read_tokenizer
from mpnet_ds.models.module import Part, PretrainingModule
from mpnet_ds.objectives.model_section import USUAL
from mpnet_ds.tokenizer import PretrainingTokenizer
from mpnet_ds.validation import read_json_object

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CONVERTED = "mpnet"
"""The model type of which tools/convert_from_hf.py makes a start."""
FREE_KEYS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "initializer_range"),
    *("vocab_size", "use_cache", "tie_word_embeddings"),
)
"""Configuration keys that may differ between the folder and the run; vocabulary and ties are checked by shapes."""


def check_start(folder: str | Path, recipe: Recipe, tokenizer: PretrainingTokenizer) -> None:
    """Check that a run of this recipe with this tokenizer can start from a folder.

    Reads names and shapes, and tied copies if any. Raises ``UserError`` with the command that converts the
    folder, or with what differs.
    """
    folder = locate_model(folder)
    if recipe.model.start != USUAL:
        cure = f"--set model.start={USUAL}"
        raise UserError(f"model.start is '{recipe.model.start}', but the weights of --init_from {folder} count: {cure}")
    with torch.device("meta"):
        module = recipe.objective.build(recipe.model, tokenizer, recipe.data.seq_length)
    for name, part in module.parts().items():
        part_folder = folder / name
        if model_folder(part_folder) != part_folder:
            raise _needs_conversion(part_folder, part, "it is a sentence-transformers folder")
        if not any((part_folder / form).is_file() for form in SAFE_FORMS):
            raise _needs_conversion(part_folder, part, f"{SAFE_FORMS[0]} is missing")
        _check_vocabulary(part_folder, part, tokenizer)
        _check_config(part_folder, part, asdict(recipe.model))
        contents, stored = contents_of(part), FolderWeights(part_folder)
        find_sources(part, module, contents)
        _check_names(part_folder, part, contents, stored)
        _check_extra_files(part_folder, part, module)


def load_pretrained_weights(module: PretrainingModule, folder: str | Path) -> None:
    """Load the weights of a folder that passed ``check_start``; all weights of ``module`` are overwritten."""
    folder = locate_model(folder)
    weights: dict[str, Tensor] = {}
    sums: list[tuple[tuple[str, str], Tensor]] = []
    for name, part in module.parts().items():
        part_folder = folder / name
        stored = FolderWeights(part_folder)
        for own, source in find_sources(part, module, contents_of(part)).items():
            if len(source) == 2:
                sums.append((source, stored[own]))
            else:
                weights[source[0]] = stored[own]
        for file, inside in part.extra_files.items():
            beside = load_file(part_folder / file)
            weights |= {own: beside[inner] for own, inner in inside.items()}
    first = first_names(module)
    weights = {first[name]: tensor for name, tensor in weights.items()}
    for pair, total in sums:
        # If another part has one of the two, the other is the rest; else the first is all of it.
        names = [first[name] for name in pair]
        known = next((name for name in names if name in weights), names[0])
        weights.setdefault(known, total)
        for name in names:
            weights.setdefault(name, total - weights[known])
    module.load_state_dict({name: weights[source] for name, source in first.items()}, strict=True)


def _needs_conversion(folder: Path, part: Part, reason: str) -> UserError:
    cure = f"Save it with save_pretrained of {part.model_class.__name__}"
    if part.config.model_type == CONVERTED:
        cure = f"Make a start of it first: {invocation('convert_from_hf', folder, 'OUT')}"
    return UserError(f"--init_from {folder}: {reason}. {cure}")


def _check_vocabulary(folder: Path, part: Part, tokenizer: PretrainingTokenizer) -> None:
    own = read_tokenizer(folder)
    if own is None or own.pieces == tokenizer.pieces:
        return
    found = f"--init_from {folder}: its vocabulary is not the data's ({tokenizer.vocab_size:,} pieces)."
    rebuild = f"build the data with its tokenizer (build_dataset {shlex.join(('--tokenizer', str(folder)))})."
    if part.config.model_type == CONVERTED:
        resize = invocation("convert_from_hf", folder, "OUT", "--resize_vocabulary", tokenizer.origin)
        raise UserError(f"{found} Give it the data's: {resize}; or {rebuild}")
    raise UserError(f"{found} So {rebuild}")


def _check_config(folder: Path, part: Part, section: Mapping) -> None:
    """Raise ``UserError`` for keys of the recipe's section ``model`` that differ in the folder."""
    family = read_json_object(folder / CONFIG)["model_type"]
    if family != part.config.model_type:
        raise UserError(f"--init_from {folder}: its model_type is '{family}', the run trains '{part.config.model_type}'.")
    theirs = _read_config(folder, type(part.config))
    keys = dict.fromkeys([*section, *type(part.config).__annotations__])
    pairs = {key: (getattr(theirs, key, None), getattr(part.config, key, None)) for key in keys if not _is_free(key)}
    findings = [
        f"--init_from {folder}: {key} is {found} there, {expected} here: "
        + ("set it in the recipe's section 'model'." if key in section else "a run cannot have another.")
        for key, (found, expected) in pairs.items()
        if found != expected
    ]
    if findings:
        raise UserError(*findings)


def _is_free(key: str) -> bool:
    """Tell whether a configuration key may differ: it does not change what weights mean, or is checked otherwise."""
    return key in FREE_KEYS or key.endswith("_token_id")


def _read_config(folder: Path, config_class: "type[PreTrainedConfig]") -> "PreTrainedConfig":
    try:
        return config_class.from_pretrained(folder)
    except Exception as error:  # values of other types: several kinds, by transformers' version
        raise UserError(f"{folder / CONFIG}: {' '.join(str(error).split())}") from error


def _check_names(folder: Path, part: Part, contents: Contents, stored: FolderWeights) -> None:
    """Raise ``UserError`` unless the folder has every weight of the part in its shape, and no unknown ones."""
    kind, base, there = part.model_class.__name__, f"{part.model_class.base_model_prefix}.", stored.shapes
    heads = [name for name in contents.shapes if not name.startswith(base)]
    if heads and not any(name in there for name in heads):
        raise _needs_conversion(folder, part, f"it has no pre-training head ({heads[0]} and others)")
    if moved := [copy for copy, source in contents.tied.items() if copy in there and source not in there]:
        raise _needs_conversion(folder, part, f"it keeps tied weights under their second names ({moved[0]})")
    findings = [f"--init_from {folder}: {name} is missing." for name in contents.shapes if name not in there]
    findings += [
        f"--init_from {folder}: {name} is {there[name]} there, {list(shape)} here."
        for name, shape in contents.shapes.items()
        if name in there and there[name] != list(shape)
    ]
    findings += [
        f"--init_from {folder}: {kind} with this configuration has no {name}."
        for name in sorted(there.keys() - contents.shapes.keys() - contents.tied.keys())
        if not _is_of_another_head(name, contents, base)
    ]
    findings += [
        f"--init_from {folder}: {copy} is not {source}; the two are one tensor in {kind}."
        for copy, source in contents.tied.items()
        if copy in there and not torch.equal(stored[copy], stored[source])
    ]
    if findings:
        raise UserError(*findings)


def _check_extra_files(folder: Path, part: Part, module: PretrainingModule) -> None:
    """Raise ``UserError`` unless the files beside the model are there, with every weight in its shape."""
    shapes = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    for file, inside in part.extra_files.items():
        if not (folder / file).is_file():
            cure = "an export of a run with this objective has it; start with another objective, or from such an export."
            raise UserError(
                f"--init_from {folder}: {file} is missing. {part.model_class.__name__} has no such weights: {cure}"
            )
        stored = open_safetensors(folder / file)
        for name, inner in inside.items():
            found = stored.get_slice(inner).get_shape() if inner in stored.keys() else "missing"  # noqa: SIM118
            if found != shapes[name]:
                raise UserError(f"--init_from {folder}: {inner} of {file} is {found} there, {shapes[name]} here.")


def _is_of_another_head(name: str, contents: Contents, base: str) -> bool:
    """Tell whether an unknown weight is of a module beside or directly in the base model, or an old version's buffer."""
    parents = {parent for known in contents.shapes for parent in _parents(known)}
    nearest = max((parent for parent in _parents(name) if parent in parents), key=len, default="")
    return nearest in ("", base) or name.endswith(".position_ids")


def _parents(name: str) -> list[str]:
    """List the prefixes of a name that are modules: ``a.``, ``a.b.`` of ``a.b.weight``."""
    return [name[: end + 1] for end, letter in enumerate(name) if letter == "."]
