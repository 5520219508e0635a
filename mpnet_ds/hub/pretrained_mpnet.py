"""Hugging Face folders of MPNet models, of any age and head (read_folder.py reads their files).

Parameters have transformers' names in training too, so reading only has to map these:

    mpnet.embeddings… mpnet.encoder… lm_head…    kept
    embeddings… encoder…                         ``MPNetModel`` alone: the same without ``mpnet.``
    lm_head.decoder.{weight,bias}                copies of the token table and of lm_head.bias; they must equal those
    …position_ids                                a buffer that old versions saved: ignored
    …pooler… and all others (classifier…)        heads that pre-training does not have: dropped and listed

``--init_from`` takes a folder with all of these names, head included, in safetensors: a *start*. import_model.py makes one
of any other.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import MPNetConfig

from mpnet_ds.errors import UserError
from mpnet_ds.hub.locate import locate_model
from mpnet_ds.hub.read_folder import CONFIG, FolderWeights, model_folder, read_tokenizer
from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.models.mpnet.model import MODEL_KEYS, TIED_WEIGHTS, VOCABULARY_TABLES, check_config
from mpnet_ds.tokenizer import PretrainingTokenizer
from mpnet_ds.validation import read_json_object

KEPT = ("mpnet.embeddings.", "mpnet.encoder.", "lm_head.dense.", "lm_head.layer_norm.", "lm_head.decoder.", "lm_head.bias")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEAD_SEED = 0


@dataclass
class Pretrained:
    """A complete model: each name of ``MPNetForPretraining`` except tied copies, as it was stored."""

    origin: str
    """Where it was read from, for errors."""
    config: MPNetConfig
    weights: dict[str, Tensor]
    """fp32, bf16 or fp16."""
    tokenizer: PretrainingTokenizer | None = None
    notes: list[str] = field(default_factory=list)
    """What was dropped or drawn, one sentence each."""

    def cut_table(self, size: int) -> None:
        """Keep the rows of the first ``size`` pieces in the token table and the head's bias."""
        surplus = self.config.vocab_size - size
        if surplus:
            self.notes.append(f"{surplus} row(s) that pad the token table beyond {size:,} pieces were cut off.")
        for name in VOCABULARY_TABLES:
            self.weights[name] = self.weights[name][:size]
        self.config.vocab_size = size


def read_pretrained(folder: str | Path) -> Pretrained:
    """Read a Hugging Face folder, or a name of the hub, with an MPNet model of any head or a sentence encoder around one.

    Raises ``UserError`` for everything else, and for what this project's model does not compute.
    """
    found = model_folder(locate_model(folder))
    config, stored = read_config(found), FolderWeights(found)
    tensors = {name: stored[name] for name in stored.shapes}
    return assemble(str(folder), config, tensors, read_tokenizer(found))


def assemble(
    origin: str, config: MPNetConfig, tensors: dict[str, Tensor], tokenizer: PretrainingTokenizer | None
) -> Pretrained:
    """Make a model of ``tensors``, under any of the names above; a head that is missing is drawn, and noted.

    Raises ``UserError`` unless they are exactly those of a model with this config.
    """
    names, dropped = own_names(tensors, origin)
    weights = {own: tensors[name] for own, name in names.items()}
    _remove_copies(weights, origin)
    missing = check_shapes({name: list(tensor.shape) for name, tensor in weights.items()}, config, origin)
    _check_values(weights, origin)
    notes = [f"Dropped, pre-training has no such head: {', '.join(dropped)}."] if dropped else []
    if missing:
        weights |= fresh_head(config)
        drawn = f"N(0, {config.initializer_range}), seed {HEAD_SEED}"
        notes.append(f"There is no language modelling head: a fresh one was drawn ({drawn}); it must be trained.")
    return Pretrained(origin, config, weights, tokenizer, notes)


def read_config(folder: Path) -> MPNetConfig:
    """Read what config.json says about the model; keys that it leaves out have transformers' defaults."""
    path = folder / CONFIG
    content = read_json_object(path)
    if content.get("model_type") != "mpnet":
        raise UserError(f"{path}: model_type is '{content.get('model_type')}', only 'mpnet' can be used here.")
    try:
        values = {name: content[name] for name in MODEL_KEYS if name in content}
        config = MPNetConfig(**values | {"tie_word_embeddings": True})  # a head that is not tied is found by its weights
        check_config(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # values of other types: several kinds, by transformers' version
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    return config


def own_names(names: Iterable[str], origin: str) -> tuple[dict[str, str], list[str]]:
    """Map names of ``MPNetForPretraining`` to stored names; also return the names of heads that are dropped."""
    names = [name for name in names if not name.endswith("position_ids")]
    if not any(name.startswith(("mpnet.", "embeddings.", "encoder.")) for name in names):
        raise UserError(f"{origin}: the weights are not an MPNet's; the first is {min(names, default='(none)')}.")
    prefix = "" if any(name.startswith("mpnet.") for name in names) else "mpnet."
    own = {prefix + name: name for name in names}
    kept = {name: stored for name, stored in own.items() if name.startswith(KEPT)}
    return kept, sorted(stored for name, stored in own.items() if name not in kept)


def check_shapes(shapes: dict[str, list[int]], config: MPNetConfig, origin: str) -> list[str]:
    """Return the head's names if all of them are missing, else none.

    Args:
        shapes: by name, without tied copies.
    Raises:
        UserError: any other difference from the model of this config.
    """
    expected = _own_shapes(config)
    missing = [name for name in expected if name not in shapes]
    strange = sorted(name for name in shapes if name not in expected)
    if strange:
        raise UserError(f"{origin}: {strange[0]} is not a weight of an MPNet with {config.num_hidden_layers} layers.")
    for name, shape in shapes.items():
        if shape != expected[name]:
            raise UserError(f"{origin}: {name} is {shape}; by the config it should be {expected[name]}.")
    head = [name for name in expected if name.startswith("lm_head.")]
    if missing and missing != head:
        raise UserError(f"{origin}: {missing[0]} is missing.")
    return missing


def fresh_head(config: MPNetConfig) -> dict[str, Tensor]:
    """Draw an initial head: matrix N(0, initializer_range), LayerNorm 1 and 0, biases 0; always the same."""
    d, generator = config.hidden_size, torch.Generator().manual_seed(HEAD_SEED)
    return {
        "lm_head.dense.weight": torch.empty(d, d).normal_(0.0, config.initializer_range, generator=generator),
        "lm_head.dense.bias": torch.zeros(d),
        "lm_head.layer_norm.weight": torch.ones(d),
        "lm_head.layer_norm.bias": torch.zeros(d),
        "lm_head.bias": torch.zeros(config.vocab_size),
    }


def _own_shapes(config: MPNetConfig) -> dict[str, list[int]]:
    with torch.device("meta"):
        own = MPNetForPretraining(config).state_dict()
    return {name: list(tensor.shape) for name, tensor in own.items() if name not in TIED_WEIGHTS}


def _check_values(weights: dict[str, Tensor], origin: str) -> None:
    for name, tensor in weights.items():
        if tensor.dtype not in DTYPES:
            raise UserError(f"{origin}: {name} is {tensor.dtype}; weights must be fp32, bf16 or fp16.")
        if not tensor.isfinite().all():
            raise UserError(f"{origin}: {name} has values that are NaN or infinite: take another checkpoint of that model.")


def _remove_copies(weights: dict[str, Tensor], origin: str) -> None:
    """Take tied copies out of ``weights``, in place of a missing source; raise ``UserError`` if they differ."""
    for copy, source in TIED_WEIGHTS.items():
        tensor = weights.pop(copy, None)
        if tensor is not None and not torch.equal(weights.setdefault(source, tensor), tensor):
            raise UserError(f"{origin}: {copy} is not {source}; the two are one tensor in MPNet's head here.")
