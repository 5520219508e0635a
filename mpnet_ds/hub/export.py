"""Export to Hugging Face folders, one for each part of the trained module (the way back is in init_from.py).

    config.json              of the part's transformers class
    model.safetensors        its weights, without tied copies; above a size model-0000i-of-0000n.safetensors and
                             model.safetensors.index.json
    tokenizer.json, tokenizer_config.json, special_tokens_map.json, vocab.txt
    README.md                model card, see model_card.py
    modules.json, …          with sentence_transformers, see sentence_transformers.py

A module says in ``parts()`` what its folders are called, which class loads each, and how names differ; most have one part,
which is the output folder itself. Weights go from the shards to the files a few MiB at a time. Of the vocabulary's tables
only rows that have a piece are copied: training may pad them. Every folder is compared with the training model before the
output gets its name (parity.py).
"""

import copy
import sys
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from mpnet_ds import start_up
from mpnet_ds.checkpoint.store import MANIFEST, find_checkpoint
from mpnet_ds.command_line import invocation
from mpnet_ds.errors import UserError, each_of
from mpnet_ds.files import new_folder, refuse_existing
from mpnet_ds.hub.exportable import TrainedModel, check_finite
from mpnet_ds.hub.model_card import model_card
from mpnet_ds.hub.parity import Comparison, compare
from mpnet_ds.hub.part_weights import Shape, Source, SumOfStored, contents_of, find_sources, first_names
from mpnet_ds.hub.sentence_transformers import write_sentence_encoder
from mpnet_ds.models.module import Part
from mpnet_ds.tokenizer import BOS, PretrainingTokenizer
from mpnet_ds.zero.lazy_weights import StoredWeights
from mpnet_ds.zero.safetensors_writer import dtype_of, write_weights
from mpnet_ds.zero.torch_file import StoredTensor

MODEL = "model"
"""Stem of the file that transformers loads."""


def export_huggingface(
    source: str | Path,
    output: str | Path,
    dtype: str = "fp32",
    max_shard_size: int | str = "5GB",
    sentence_transformers: bool = False,
    show_progress: bool = False,
) -> Comparison:
    """Write a complete folder, which appears once it has been verified to compute what the training model does.

    Args:
        source: a checkpoint folder, a run's folder or its ``checkpoints`` folder (then the newest one).
        dtype: ``fp32``, ``bf16`` or ``fp16``, of the weights in the files.
        max_shard_size: bytes, or such as ``5GB``: larger weights are split into several files.
        sentence_transformers: also write the files of a sentence encoder, the mean of the last hidden states.
    Raises:
        UserError: not a complete checkpoint of this project, ``output`` exists, a model that this program does not know,
            weights that are missing, superfluous or not finite, or an export that differs from the training model.
    """
    checkpoint = check_export(source, output, dtype)
    model, options = TrainedModel.of(checkpoint), WeightOptions(dtype, max_shard_size, show_progress)
    parts = model.parts
    if sentence_transformers and list(parts) != [""]:
        raise UserError(f"{checkpoint} has the parts {', '.join(parts)}; --sentence_transformers needs a single model.")
    with new_folder(output) as folder:
        weights = model.open_weights()
        for name, part in parts.items():
            part_folder = folder / name
            part_folder.mkdir(exist_ok=True)
            _write_part(part_folder, part, model, weights, options)
            if sentence_transformers:
                write_sentence_encoder(part_folder, part.config.hidden_size, model.info.seq_length)
            (part_folder / "README.md").write_text(model_card(model, part, sentence_transformers), encoding="utf-8")
        weights.check()
        start_up.enter("comparing the export with the training model")
        return compare(checkpoint, folder)


def check_export(source: str | Path, output: str | Path, dtype: str) -> Path:
    """Return the checkpoint of an export; raise ``UserError`` with what is wrong with its arguments."""
    return each_of(lambda: _find(source), lambda: dtype_of(dtype), lambda: refuse_existing(output))[0]


def _find(source: str | Path) -> Path:
    """Find the checkpoint; tell a folder that another program saved from an empty one."""
    path = Path(source)
    try:
        return find_checkpoint(path)
    except UserError:
        if not any(path.glob("*_states.pt")) and not any(path.glob("*/*_states.pt")):
            raise
    raise UserError(
        f"{path} holds DeepSpeed shards without a {MANIFEST}: another program wrote them, or a save was interrupted. Their "
        f"model is unknown, so no Hugging Face folder can be made. {invocation('consolidate', path, 'OUT')} joins "
        "any program's shards to safetensors; for an export give a run's folder, or a complete step-… folder."
    )


@dataclass(frozen=True)
class WeightOptions:
    """How weights are written; as in ``export_huggingface``."""

    dtype: str
    max_shard_size: int | str
    show_progress: bool


def _write_part(folder: Path, part: Part, model: TrainedModel, weights: StoredWeights, options: WeightOptions) -> None:
    """Write configuration, weights and tokenizer of a part."""
    config = copy.deepcopy(part.config)
    config.architectures, config.dtype = [part.model_class.__name__], dtype_of(options.dtype)
    config.save_pretrained(folder)

    def check(name: str, numbers: Tensor) -> None:
        check_finite(name, numbers, model.checkpoint, "training diverged before it: choose an earlier checkpoint")

    files = open_part(part, model, weights)
    sizes = dict.fromkeys(files, sys.maxsize) | {MODEL: options.max_shard_size}  # files beside the model are not split
    for stem, tensors in files.items():
        show_progress = options.show_progress
        write_weights(tensors, folder, config.dtype, sizes[stem], check=check, show_progress=show_progress, stem=stem)
    model.tokenizer.save(folder, model_max_length=model.info.seq_length)
    _frame_texts(folder / "tokenizer.json", model.tokenizer)


def open_part(part: Part, model: TrainedModel, weights: StoredWeights) -> dict[str, dict[str, StoredTensor | SumOfStored]]:
    """Map each file's stem to its tensors, without padding rows, in the order of the checkpoint."""
    contents, first = contents_of(part), first_names(model.module)
    stored = {first[name]: tensor for name, tensor in weights.tensors.items()}
    order = {name: number for number, name in enumerate(stored)}

    def opened(source: Source, shape: Shape) -> StoredTensor | SumOfStored:
        one, *others = (stored[first[name]] for name in source)
        tensor = SumOfStored(one, *others) if others else one
        return tensor if tensor.shape == shape else tensor.rows(shape[0])

    sources = find_sources(part, model.exported, contents)
    names = sorted(sources, key=lambda name: order[first[sources[name][0]]])
    files = {MODEL: {name: opened(sources[name], contents.shapes[name]) for name in names}}
    trained = model.exported.state_dict()
    for file, inside in part.extra_files.items():
        stem = file.removesuffix(".safetensors")
        files[stem] = {inner: opened((name,), tuple(trained[name].shape)) for name, inner in inside.items()}
    return files


def _frame_texts(file: Path, tokenizer: PretrainingTokenizer) -> None:
    """Make the saved tokenizer add ``<s>`` and ``</s>`` around a text, as sequences have them in training."""
    backend = tokenizers.Tokenizer.from_file(str(file))
    if backend.encode("").ids != tokenizer.framed([]):
        added = {backend.id_to_token(number): number for number in tokenizer.framed([])}
        *begin, end = added or [""]
        between = [end] * (2 if begin == [BOS] else 1)  # two in MPNet's and RoBERTa's pairs
        pair = [*begin, "$A", *between, "$B", end]
        single, pair = (" ".join(filter(None, template)) for template in ([*begin, "$A", end], pair))
        backend.post_processor = TemplateProcessing(single, pair, list(added.items()))
        backend.save(str(file))
