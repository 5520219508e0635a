"""Import of any MPNet into a *start*: a complete Hugging Face folder that ``--init_from`` takes.

    config.json          the model's sizes and settings, unchanged
    model.safetensors    fp32, exactly the names of ``MPNetForMaskedLM.save_pretrained``: tied copies are left out
    tokenizer files      if the source has a tokenizer, or one was given

The folder gets its name after a check: transformers loads it without missing or unexpected weights, every tensor is the
source's bit for bit, and the hidden states are those of this project's own encoder.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import MPNetConfig, MPNetForMaskedLM
from transformers.utils import logging as transformers_logging

from mpnet_ds import start_up
from mpnet_ds.errors import UserError, each_of
from mpnet_ds.files import new_folder, refuse_existing
from mpnet_ds.hub.fairseq import read_fairseq
from mpnet_ds.hub.locate import locate_tokenizer
from mpnet_ds.hub.pretrained_mpnet import Pretrained, read_pretrained
from mpnet_ds.hub.read_folder import read_tokenizer
from mpnet_ds.hub.resize_vocabulary import resize_vocabulary
from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.tokenizer import PAD_ID, PretrainingTokenizer
from mpnet_ds.zero.safetensors_writer import write_weights

TOLERANCE = 1e-5
"""Largest difference of a hidden state that passes the check, relative to the largest of them if that is above 1."""
SMALLEST_PADDED, MOST_PADDING = 8, 128
"""Tables are padded to a multiple of 8 (fairseq) up to 128 (annotated-mpnet); anything else means another vocabulary."""


@dataclass(frozen=True)
class Start:
    """Result of an import."""

    difference: float
    """Largest absolute difference of a hidden state between transformers and this project."""
    notes: tuple[str, ...]
    """What was dropped, drawn or cut, one sentence each."""
    config: MPNetConfig


def make_start(
    output: str | Path,
    folder: str | Path | None = None,
    fairseq_file: str | Path | None = None,
    tokenizer: str | Path | None = None,
    resize_to: str | Path | None = None,
) -> Start:
    """Write a start to the new folder ``output``.

    Args:
        folder: a Hugging Face folder; or else
        fairseq_file: a ``.pt`` of the original implementation or of annotated-mpnet.
        tokenizer: folder with the vocabulary of a source that has none.
        resize_to: folder with the tokenizer for the start; resize_vocabulary.py says how its rows are made.
    Raises:
        UserError: the source is damaged or not an MPNet that this project computes; ``output`` exists.
    """
    if (folder is None) == (fairseq_file is None):
        raise UserError("give exactly one source: a Hugging Face folder, or a file with --from_fairseq.")
    transformers_logging.disable_progress_bar()
    given, new, model, _ = each_of(
        lambda: tokenizer and _named_tokenizer(tokenizer),
        lambda: resize_to and _named_tokenizer(resize_to),
        lambda: read_fairseq(fairseq_file) if folder is None else read_pretrained(folder),
        lambda: refuse_existing(output),
    )
    with new_folder(output) as partial:
        _give_tokenizer(model, given)
        if new is not None:
            resize_vocabulary(model, new)
        _write(model, partial)
        start_up.enter("comparing the start with its source")
        return Start(compare(model, partial), tuple(model.notes), model.config)


def compare(model: Pretrained, folder: Path) -> float:
    """Load ``folder`` with transformers, compare it with ``model``; return the largest difference of a hidden state.

    Raises ``UserError`` if a name is missing, a tensor is not the same bit for bit, or hidden states differ.
    """
    theirs, info = MPNetForMaskedLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    wrong = sorted(name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[kind])
    loaded = theirs.state_dict()
    wrong += [name for name, tensor in model.weights.items() if not _same_bits(loaded[name], tensor.float())]
    if wrong:
        raise UserError(f"{folder}: {wrong[0]} is not what {model.origin} holds. Please report this.")
    own = MPNetForPretraining(model.config).eval()
    own.load_state_dict(model.weights)
    ids, mask = _sample(model.config)
    with torch.no_grad():
        expected = theirs.eval().mpnet(ids, mask.long()).last_hidden_state[mask]
        found = own.encode(ids, mask)[mask]
    difference = (expected - found).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
        raise UserError(f"{folder}: hidden states differ by {difference:.1e}. Please report this.")
    return difference


def _sample(config: MPNetConfig) -> tuple[Tensor, Tensor]:
    """Draw ids [2, n], always the same, and their mask: the second sequence is half padding."""
    length = min(config.max_position_embeddings - 2, 128)
    ids = torch.randint(4, config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, length, dtype=torch.bool)
    ids[1, length // 2 :], mask[1, length // 2 :] = PAD_ID, False
    return ids, mask


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def _named_tokenizer(folder: str | Path) -> PretrainingTokenizer:
    found = locate_tokenizer(folder)
    return _checked(read_tokenizer(found) or PretrainingTokenizer.load(found))  # which says what is missing


def _checked(tokenizer: PretrainingTokenizer) -> PretrainingTokenizer:
    if tokenizer.misfit_of_mpnet:
        raise UserError(f"{tokenizer.misfit_of_mpnet}.")
    return tokenizer


def _give_tokenizer(model: Pretrained, given: PretrainingTokenizer | None) -> None:
    """Make the token table as long as the vocabulary; raise ``UserError`` if the rest of its rows cannot be padding."""
    if given is not None and model.tokenizer is not None:
        raise UserError(f"{model.origin} has a tokenizer: leave --tokenizer out; --resize_vocabulary gives it another one.")
    model.tokenizer = model.tokenizer or given
    if model.tokenizer is not None:
        _checked(model.tokenizer)
    else:
        model.notes.append("It has no tokenizer; --tokenizer DIR adds the one that the model was trained with.")
        return
    rows, pieces = model.config.vocab_size, model.tokenizer.vocab_size
    if rows != pieces and (rows % SMALLEST_PADDED or not 0 <= rows - pieces < MOST_PADDING):
        found = f"the token table has {rows:,} rows, the tokenizer in {model.tokenizer.origin} {pieces:,} pieces"
        raise UserError(f"{model.origin}: {found}: name the tokenizer that the model was trained with.")
    model.cut_table(pieces)


def _write(model: Pretrained, folder: Path) -> None:
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [MPNetForMaskedLM.__name__], "float32"
    config.save_pretrained(folder)
    write_weights(model.weights, folder, torch.float32)
    if model.tokenizer is not None:
        model.tokenizer.save(folder, model_max_length=config.max_position_embeddings - 2)
