"""Reading Hugging Face folders of MPNet models, of any age and head, and starting a run from one.

A folder holds config.json and its weights in the first of these forms that is there:

    model.safetensors      model.safetensors.index.json and the files that its ``weight_map`` names
    pytorch_model.bin      pytorch_model.bin.index.json and the files that its ``weight_map`` names

Parameters have transformers' names in training too, so reading is a matter of these:

    mpnet.embeddings… mpnet.encoder… lm_head…    kept
    embeddings… encoder…                         ``MPNetModel`` alone: the same without ``mpnet.``
    lm_head.decoder.{weight,bias}                copies of the token table and of lm_head.bias; they must equal those
    …position_ids                                a buffer that old versions saved: ignored
    …pooler… and all others (classifier…)        heads that pre-training does not have: dropped, and named

A ``.bin`` is a pickle, which may hold a program. It is read with ``weights_only=True``: whatever is no tensor, number,
text or container is refused by its name, and nothing of it runs.

What ``--init_from`` takes as it is, is a *start*: all of these names, head included, in safetensors. start.py makes one of
everything else.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import MPNetConfig

from mpnet_ds.errors import UserError
from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.models.mpnet.model import MODEL_KEYS, TIED_WEIGHTS, VOCABULARY_TABLES, check_config
from mpnet_ds.tokenizer import PretrainingTokenizer
from mpnet_ds.zero.torch_file import load_torch_file

CONFIG = "config.json"
SAFE_FORMS = ("model.safetensors", "model.safetensors.index.json")
PICKLED_FORMS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
SENTENCE_TRANSFORMERS = "0_Transformer"
"""Where old folders of sentence-transformers keep the model."""
KEPT = ("mpnet.embeddings.", "mpnet.encoder.", "lm_head.dense.", "lm_head.layer_norm.", "lm_head.decoder.", "lm_head.bias")
_TIED = {*TIED_WEIGHTS, *TIED_WEIGHTS.values()}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEAD_SEED = 0


@dataclass
class Pretrained:
    """A whole model: each name of ``MPNetForPretraining`` but for the tied copies, as it was stored."""

    origin: str
    """Where it was read, for errors."""
    config: MPNetConfig
    weights: dict[str, Tensor]
    """fp32, bf16 or fp16."""
    tokenizer: PretrainingTokenizer | None = None
    notes: list[str] = field(default_factory=list)
    """What was dropped or made up, one sentence each."""

    def cut_table(self, size: int) -> None:
        """Keeps the rows of the first ``size`` pieces of the token table, and of the head's bias."""
        surplus = self.config.vocab_size - size
        if surplus:
            self.notes.append(f"{surplus} row(s) that pad the token table beyond {size:,} pieces were cut off.")
        for name in VOCABULARY_TABLES:
            self.weights[name] = self.weights[name][:size]
        self.config.vocab_size = size


class FolderWeights:
    """The tensors of a folder under the names they have there. A tensor's bytes are read when it is asked for.

    Raises ``UserError`` for a folder without weights, missing or damaged files, and files that hold more than tensors.
    """

    def __init__(self, folder: Path):
        self.shapes: dict[str, list[int]] = {}
        self._files: dict[str, object] = {}
        for path in _weight_files(folder):
            file = _open_safetensors(path) if path.suffix == ".safetensors" else load_torch_file(path, mmap=True)
            self._add(path, file)

    def __getitem__(self, name: str) -> Tensor:
        file = self._files[name]
        return file[name] if isinstance(file, dict) else file.get_tensor(name)

    def _add(self, path: Path, file) -> None:
        if isinstance(file, dict):
            if not all(isinstance(name, str) and torch.is_tensor(value) for name, value in file.items()):
                raise UserError(f"{path} holds other things than named tensors: it is no file of weights.")
            shapes = {name: list(tensor.shape) for name, tensor in file.items()}
        else:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        self.shapes |= shapes
        self._files |= dict.fromkeys(shapes, file)


def read_folder(folder: str | Path) -> Pretrained:
    """A Hugging Face folder with an MPNet model of any head, or a sentence-transformers folder around one.

    Raises ``UserError`` for everything that is not, or that this project's model does not compute.
    """
    place = model_folder(Path(folder))
    config, stored = read_config(place), FolderWeights(place)
    tensors = {name: stored[name] for name in stored.shapes}
    return assemble(str(folder), config, tensors, read_tokenizer(place))


def assemble(
    origin: str, config: MPNetConfig, tensors: dict[str, Tensor], tokenizer: PretrainingTokenizer | None
) -> Pretrained:
    """A model of ``tensors``, under any of the names above; a head that is missing is drawn, and noted.

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


def check_start(folder: str | Path, config: MPNetConfig, tokenizer: PretrainingTokenizer) -> None:
    """Whether a run with this model and tokenizer can start from a folder.

    Reads names and shapes, and tied copies where there are some. Raises ``UserError`` with the command that converts the
    folder, or with what differs.
    """
    place = Path(folder)
    if model_folder(place) != place:
        raise _needs_conversion(folder, "it is a sentence-transformers folder")
    if not any((place / name).is_file() for name in SAFE_FORMS):
        raise _needs_conversion(folder, f"{SAFE_FORMS[0]} is missing")
    _check_vocabulary(folder, tokenizer)
    stored = FolderWeights(place)
    names, _ = own_names(stored.shapes, str(folder))
    if not any(name.startswith("lm_head.") for name in names):
        raise _needs_conversion(folder, "it has no language modelling head")
    if any(copy in names and source not in names for copy, source in TIED_WEIGHTS.items()):
        raise _needs_conversion(folder, "it keeps tied weights under their second names")
    _remove_copies({own: stored[name] for own, name in names.items() if own in _TIED}, str(folder))
    shapes = {own: stored.shapes[name] for own, name in names.items() if own not in TIED_WEIGHTS}
    _check_model(shapes, read_config(place), config, f"--init_from {folder}")


def load_pretrained_weights(model: MPNetForPretraining, folder: str | Path) -> None:
    """Starts ``model`` from a folder that ``check_start`` has found good; all its weights are overwritten."""
    stored = FolderWeights(Path(folder))
    names, _ = own_names(stored.shapes, str(folder))
    model.load_state_dict({own: stored[name] for own, name in names.items() if own not in TIED_WEIGHTS}, strict=True)


def model_folder(folder: Path) -> Path:
    """``folder``, or where in it sentence-transformers keeps the model."""
    if not folder.is_dir():
        raise UserError(
            f"no folder {folder}. (A model of the hub must be downloaded first: hf download NAME --local-dir DIR)"
        )
    for place in (folder, folder / SENTENCE_TRANSFORMERS):
        if (place / CONFIG).is_file() and "model_type" in _read_json(place / CONFIG):
            return place
    raise UserError(f"{folder} is no Hugging Face folder: it has no {CONFIG} with a model_type.")


def read_config(folder: Path) -> MPNetConfig:
    """The model's part of config.json; what the file leaves out is as transformers has it."""
    path = folder / CONFIG
    content = _read_json(path)
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


def read_tokenizer(folder: Path) -> PretrainingTokenizer | None:
    """The tokenizer of a folder, of the old form with vocab.txt alone too; None where there is neither file."""
    if (folder / "tokenizer.json").is_file():
        return PretrainingTokenizer.load(folder)
    return PretrainingTokenizer.load_vocabulary(folder) if (folder / "vocab.txt").is_file() else None


def own_names(names: Iterable[str], origin: str) -> tuple[dict[str, str], list[str]]:
    """(name in ``MPNetForPretraining`` → name there, names of heads that are dropped)."""
    names = [name for name in names if not name.endswith("position_ids")]
    if not any(name.startswith(("mpnet.", "embeddings.", "encoder.")) for name in names):
        raise UserError(f"{origin}: the weights are no MPNet's; the first is {min(names, default='(none)')}.")
    prefix = "" if any(name.startswith("mpnet.") for name in names) else "mpnet."
    own = {prefix + name: name for name in names}
    kept = {name: stored for name, stored in own.items() if name.startswith(KEPT)}
    return kept, sorted(stored for name, stored in own.items() if name not in kept)


def check_shapes(shapes: dict[str, list[int]], config: MPNetConfig, origin: str) -> list[str]:
    """The head's names if all of them are missing, else none; ``shapes`` without tied copies.

    Raises ``UserError`` for every other difference to the model of this config.
    """
    expected = _own_shapes(config)
    missing = [name for name in expected if name not in shapes]
    strange = sorted(name for name in shapes if name not in expected)
    if strange:
        raise UserError(f"{origin}: {strange[0]} is nothing that an MPNet with {config.num_hidden_layers} layers has.")
    for name, shape in shapes.items():
        if shape != expected[name]:
            raise UserError(f"{origin}: {name} is {shape}, {expected[name]} would follow from the config.")
    head = [name for name in expected if name.startswith("lm_head.")]
    if missing and missing != head:
        raise UserError(f"{origin}: {missing[0]} is missing.")
    return missing


def fresh_head(config: MPNetConfig) -> dict[str, Tensor]:
    """A head as pre-training begins with: matrix N(0, initializer_range), LayerNorm 1 and 0, biases 0; always the same."""
    d, generator = config.hidden_size, torch.Generator().manual_seed(HEAD_SEED)
    return {
        "lm_head.dense.weight": torch.empty(d, d).normal_(0.0, config.initializer_range, generator=generator),
        "lm_head.dense.bias": torch.zeros(d),
        "lm_head.layer_norm.weight": torch.ones(d),
        "lm_head.layer_norm.bias": torch.zeros(d),
        "lm_head.bias": torch.zeros(config.vocab_size),
    }


def _needs_conversion(folder: str | Path, reason: str) -> UserError:
    cure = f"Make a start of it first: python tools/convert_from_hf.py {folder} OUT"
    return UserError(f"--init_from {folder}: {reason}. {cure}")


def _check_vocabulary(folder: str | Path, tokenizer: PretrainingTokenizer) -> None:
    own = read_tokenizer(Path(folder))
    if own is not None and own.pieces != tokenizer.pieces:
        raise UserError(
            f"--init_from {folder}: its vocabulary is not the data's ({tokenizer.vocab_size:,} pieces). Give it the data's: "
            f"python tools/convert_from_hf.py {folder} OUT --resize_vocabulary {tokenizer.origin}; or build the data with "
            f"its tokenizer (tools/build_dataset.py --tokenizer {folder})."
        )


def _check_model(shapes: dict[str, list[int]], theirs: MPNetConfig, own: MPNetConfig, origin: str) -> None:
    """Raises ``UserError`` unless the folder's weights are a whole model, and that of the run."""
    from mpnet_ds.objectives.model_section import ModelSection

    for name, expected in _own_shapes(own).items():
        if name in shapes and shapes[name] != expected:
            cure = f"the recipe's section 'model' must be {json.dumps(asdict(ModelSection.of(theirs)))}"
            raise UserError(f"{origin}: {name} is {shapes[name]} there, {expected} here: {cure}.")
    check_shapes(shapes, theirs, origin)
    for name in ("num_hidden_layers", "layer_norm_eps"):
        found, expected = getattr(theirs, name), getattr(own, name)
        if found != expected:
            raise UserError(f"{origin}: {name} is {found} there, {expected} here: set it in the recipe's section 'model'.")


def _own_shapes(config: MPNetConfig) -> dict[str, list[int]]:
    with torch.device("meta"):
        own = MPNetForPretraining(config).state_dict()
    return {name: list(tensor.shape) for name, tensor in own.items() if name not in TIED_WEIGHTS}


def _check_values(weights: dict[str, Tensor], origin: str) -> None:
    for name, tensor in weights.items():
        if tensor.dtype not in DTYPES:
            raise UserError(f"{origin}: {name} is {tensor.dtype}; weights must be fp32, bf16 or fp16.")
        if not tensor.isfinite().all():
            raise UserError(f"{origin}: {name} holds NaN or infinite numbers: take another checkpoint of that model.")


def _remove_copies(weights: dict[str, Tensor], origin: str) -> None:
    """Takes tied copies out of ``weights``, in place of a source that is missing; raises ``UserError`` if they differ."""
    for copy, source in TIED_WEIGHTS.items():
        tensor = weights.pop(copy, None)
        if tensor is not None and not torch.equal(weights.setdefault(source, tensor), tensor):
            raise UserError(f"{origin}: {copy} is not {source}; the two are one tensor in MPNet's head here.")


def _weight_files(folder: Path) -> list[Path]:
    for form in SAFE_FORMS + PICKLED_FORMS:
        path = folder / form
        if path.is_file():
            return _shards(path) if path.suffix == ".json" else [path]
    raise UserError(f"{folder} holds no weights: none of {', '.join(SAFE_FORMS + PICKLED_FORMS)} is there.")


def _shards(index: Path) -> list[Path]:
    weight_map = _read_json(index).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise UserError(f"{index} is damaged: 'weight_map' must give the file of each weight.")
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        raise UserError(f"{index.parent / missing[0]} is missing, {index.name} names it.")
    return [index.parent / name for name in sorted(names)]


def _open_safetensors(path: Path):
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged, or no safetensors file: {error}") from error


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object.")
    return content
