"""Export to a Hugging Face MPNet folder (the way back is in start.py).

    model.safetensors        weights, under transformers' names, without tied copies; above a size model-0000i-of-0000n
                             .safetensors and model.safetensors.index.json
    config.json              as transformers.MPNetConfig writes it
    tokenizer.json, tokenizer_config.json, special_tokens_map.json, vocab.txt
    README.md                model card, see model_card.py
    modules.json, …          with sentence_transformers, see sentence_encoder.py

Parameters have transformers' names in training already, so an export is a copy. Of the vocabulary's tables only rows that
stand for a piece are copied: training may pad them. What transformers cannot represent is refused (exportable.py), and
the folder is compared with the training model before it takes its name (comparison.py).
"""

from pathlib import Path

import tokenizers
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import MPNetConfig

from mpnet_ds.checkpoint.consolidate import open_weights
from mpnet_ds.checkpoint.store import MANIFEST, find_checkpoint, read_info
from mpnet_ds.errors import UserError
from mpnet_ds.files import new_folder
from mpnet_ds.hub.exportable import (
    check_finite,
    check_vocabulary,
    check_weights,
    exportable_config,
)
from mpnet_ds.hub.model_card import model_card
from mpnet_ds.hub.parity import Comparison, compare
from mpnet_ds.hub.sentence_transformers import write_sentence_encoder
from mpnet_ds.models.mpnet.model import MODEL_KEYS, TIED_WEIGHTS, VOCABULARY_TABLES
from mpnet_ds.tokenizer import BOS, BOS_ID, EOS, EOS_ID, PretrainingTokenizer
from mpnet_ds.zero.safetensors_writer import dtype_of, write_weights

ARCHITECTURE = "MPNetForMaskedLM"


def export_huggingface(
    source: str | Path,
    output: str | Path,
    dtype: str = "fp32",
    max_shard_size: int | str = "5GB",
    sentence_transformers: bool = False,
    show_progress: bool = False,
) -> Comparison:
    """Writes a complete folder, which appears when it has been found to compute what the training model does.

    Args:
        source: a checkpoint folder, a run's folder or its ``checkpoints`` folder (then the newest one).
        dtype: ``fp32``, ``bf16`` or ``fp16``, of the weights in the files.
        max_shard_size: bytes, or ``5GB``: larger weights are divided among several files.
        sentence_transformers: also write what makes it a sentence encoder, the mean of the last hidden states.
    Raises:
        UserError: no whole checkpoint of this project, ``output`` exists, a model that transformers cannot represent,
            weights that are missing, superfluous or not finite, or an export that differs from the training model.
    """
    torch_dtype = dtype_of(dtype)
    checkpoint = _find(source)
    info, tokenizer = read_info(checkpoint), PretrainingTokenizer.load(checkpoint / "tokenizer")
    trained = exportable_config(info, checkpoint)
    check_vocabulary(trained, tokenizer.vocab_size, checkpoint)
    config = _config_to_write(trained, tokenizer.vocab_size, torch_dtype)
    with new_folder(output) as folder:
        config.save_pretrained(folder)
        _write_weights(checkpoint, folder, trained, config, max_shard_size, show_progress)
        tokenizer.save(folder, model_max_length=info.seq_length)
        _frame_texts(folder / "tokenizer.json")
        if sentence_transformers:
            write_sentence_encoder(folder, config.hidden_size)
        card = model_card(checkpoint, config, tokenizer, sentence_transformers)
        (folder / "README.md").write_text(card, encoding="utf-8")
        return compare(checkpoint, folder)


def _find(source: str | Path) -> Path:
    """The checkpoint; a folder that another program saved is told from one that holds nothing."""
    path = Path(source)
    try:
        return find_checkpoint(path)
    except UserError:
        if not any(path.glob("*_states.pt")) and not any(path.glob("*/*_states.pt")):
            raise
    raise UserError(
        f"{path} holds shards of DeepSpeed without a {MANIFEST}: another program wrote them, or a save was cut short. Which "
        f"model they are of is not known, so no Hugging Face folder can be made. tools/consolidate.py {path} OUT joins any "
        "program's shards to safetensors; for an export give a run's folder, or a step-… folder that is whole."
    )


def _config_to_write(trained: MPNetConfig, num_pieces: int, dtype: torch.dtype) -> MPNetConfig:
    values = {key: getattr(trained, key) for key in MODEL_KEYS} | {"vocab_size": num_pieces}
    return MPNetConfig(**values, architectures=[ARCHITECTURE], dtype=dtype)


def _frame_texts(file: Path) -> None:
    """Lets a tokenizer that does not do so put ``<s>`` and ``</s>`` around a text, as rows have them in training."""
    backend = tokenizers.Tokenizer.from_file(str(file))
    if backend.encode("").ids != [BOS_ID, EOS_ID]:
        special = [(BOS, BOS_ID), (EOS, EOS_ID)]
        backend.post_processor = TemplateProcessing(f"{BOS} $A {EOS}", f"{BOS} $A {EOS} {EOS} $B {EOS}", special)
        backend.save(str(file))


def _write_weights(
    checkpoint: Path,
    folder: Path,
    trained: MPNetConfig,
    written: MPNetConfig,
    max_shard_size: int | str,
    show_progress: bool,
) -> None:
    """The checkpoint's weights as files of ``folder``.

    Args:
        trained: the training model's configuration, which the weights must fit.
        written: that of the export: ``vocab_size`` rows of the vocabulary are kept, in ``dtype``.
    """
    weights = open_weights(checkpoint)
    check_weights(weights.tensors, trained, checkpoint)
    tensors = {
        name: tensor.rows(written.vocab_size) if name in VOCABULARY_TABLES else tensor
        for name, tensor in weights.tensors.items()
        if name not in TIED_WEIGHTS
    }

    def check(name: str, numbers: Tensor, rounded: Tensor) -> None:
        check_finite(name, numbers, checkpoint, "training went wrong before it: take an earlier checkpoint")
        check_finite(name, rounded, checkpoint, f"{written.dtype} cannot hold its numbers: take --dtype bf16 or fp32")

    write_weights(tensors, folder, written.dtype, max_shard_size, check=check, show_progress=show_progress)
    weights.check()
