"""Whether a Hugging Face folder computes what the training model does, on real text.

The training model's plain forward comes first and leaves its hidden states and logits; then it goes, and ``transformers``
loads the folder: the two models are not in memory at once. The text: three sentences, padded to one length, and English
from the built-in sample in a row that is as long as those of the training, so that all positions and all
buckets of far tokens are used, and in one of half that length, with padding behind it.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer, MPNetConfig
from transformers.utils import logging as transformers_logging

from mpnet_ds.checkpoint.consolidate import load_consolidated
from mpnet_ds.checkpoint.store import find_checkpoint, read_info
from mpnet_ds.data.text import builtin_sample
from mpnet_ds.errors import UserError
from mpnet_ds.hub.exportable import exportable_config
from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.tokenizer import BOS_ID, EOS_ID, PretrainingTokenizer

TOLERANCE = 1e-5
"""Largest difference of a number that passes, relative to the largest of its kind where that is above 1."""

CHECK_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Return a new list that contains all the items of the iterable in ascending order.",
    "MPNet leverages the dependency among predicted tokens through permuted language modelling.",
)
CHARACTERS_PER_TOKEN = 16  # of the text that is to fill a row; pieces have fewer

Batch = dict[str, Tensor]
Outputs = list[tuple[Tensor, Tensor]]
"""For each batch: hidden states [t, d] and logits [t, V] of its t real tokens, fp32."""


@dataclass(frozen=True)
class Comparison:
    """What the check of an export found. Differences are the largest absolute ones."""

    hidden_states: float
    logits: float
    tokens: int
    """How many were compared."""
    longest: int
    """Tokens in the longest row."""
    dtype: str
    """Of the weights in the folder: ``float32``, ``bfloat16`` or ``float16``."""
    rounding: float | None = None
    """What rounding the weights to ``dtype`` changes in a hidden state of the training model; None in fp32."""
    padding_rows: int = 0
    """Rows of the training model's vocabulary that stand for no piece, and that the folder has not."""

    def describe(self) -> list[str]:
        """Lines for a person."""
        lines = [
            f"It loads with transformers and agrees with the training model on {self.tokens:,} tokens, in rows of up to "
            f"{self.longest}:",
            f"the largest difference of a hidden state is {self.hidden_states:.1e}, of a logit {self.logits:.1e}",
        ]
        if self.rounding is not None:
            change = f"this changes a hidden state by up to {self.rounding:.1e}"
            lines.append(f"The weights were rounded to {self.dtype} first; {change}")
        if self.padding_rows:
            lines.append(f"{self.padding_rows} row(s) of padding in the vocabulary were cut off")
        return lines


def compare(source: str | Path, folder: str | Path) -> Comparison:
    """Loads ``folder`` with transformers and holds it against the model of a checkpoint (or of a run's newest one).

    Raises ``UserError`` if hidden states or logits differ by more than ``TOLERANCE``, if the tokenizers differ, or if
    weights are missing or superfluous. A folder in 16 bit is compared with the training model's weights rounded alike.
    """
    transformers_logging.disable_progress_bar()
    checkpoint, folder = find_checkpoint(source), Path(folder)
    written, info = _config_of(folder), read_info(checkpoint)
    trained = exportable_config(info, checkpoint)
    _compare_tokenizers(checkpoint, folder)
    batches = list(check_batches(folder, info.seq_length))
    model = _training_model(checkpoint, trained, info.objective["name"])
    expected, rounding = _of_training(model, batches, written["dtype"], written["vocab_size"])
    del model
    hidden, logits = _differences(expected, _of_transformers(folder, batches))
    lengths = [length for batch in batches for length in batch["attention_mask"].sum(dim=1).tolist()]
    padding_rows = trained.vocab_size - written["vocab_size"]
    return Comparison(hidden, logits, sum(lengths), max(lengths), written["dtype"], rounding, padding_rows)


def check_batches(folder: str | Path, seq_length: int) -> Iterator[Batch]:
    """``input_ids`` and ``attention_mask``, int64 [B, n]: short rows, then one of ``seq_length`` tokens and one of half."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    long_text = _text_of(CHARACTERS_PER_TOKEN * seq_length)
    texts = [[(text, seq_length) for text in CHECK_TEXTS], [(long_text, seq_length), (long_text, max(seq_length // 2, 4))]]
    for rows in texts:
        ids = [tokenizer(text, truncation=True, max_length=length)["input_ids"] for text, length in rows]
        yield dict(tokenizer.pad({"input_ids": ids}, return_tensors="pt"))


def _text_of(num_characters: int) -> str:
    """English of at least that length: what there is, from its beginning, as often as it takes."""
    parts, length = [], 0
    for paragraph in itertools.cycle([*CHECK_TEXTS, *builtin_sample.beginning(num_characters)]):
        parts.append(paragraph)
        length += len(paragraph) + 1
        if length > num_characters:
            return " ".join(parts)
    raise AssertionError("unreachable")


def _compare_tokenizers(checkpoint: Path, folder: Path) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(folder), PretrainingTokenizer.load(checkpoint / "tokenizer")
    for text, ids in zip(CHECK_TEXTS, ours.encode(list(CHECK_TEXTS)), strict=True):
        expected, found = (
            [BOS_ID, *ids.tolist(), EOS_ID],
            theirs(text, truncation=True, max_length=len(ids) + 9)["input_ids"],
        )
        if found != expected:
            raise UserError(f"the tokenizer in {folder} cuts '{text}' into {found}, training has {expected}.")


def _training_model(checkpoint: Path, config: MPNetConfig, objective: str) -> MPNetForPretraining:
    with torch.device("meta"):
        model = MPNetForPretraining(config, objective)
    model.load_state_dict(load_consolidated(checkpoint), assign=True)  # no second copy of the weights
    return model.eval()


@torch.no_grad()
def _of_training(
    model: MPNetForPretraining, batches: list[Batch], dtype: str, vocab_size: int
) -> tuple[Outputs, float | None]:
    """What the model computes with its weights rounded to ``dtype``, and how much the rounding changed a hidden state."""
    exact = _run(model, batches, vocab_size)
    if dtype == "float32":
        return exact, None
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype)).float()
    rounded = _run(model, batches, vocab_size)
    return rounded, max((before - after).abs().max().item() for (before, _), (after, _) in zip(exact, rounded, strict=True))


def _run(model: MPNetForPretraining, batches: list[Batch], vocab_size: int) -> Outputs:
    outputs = []
    for batch in batches:
        hidden = model.encode(batch["input_ids"], batch["attention_mask"])[batch["attention_mask"].bool()]
        outputs.append((hidden, model.lm_head(hidden)[:, :vocab_size]))
    return outputs


@torch.no_grad()
def _of_transformers(folder: Path, batches: list[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
    model, loading = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    wrong = {kind: sorted(keys) for kind, keys in loading.items() if keys}
    if wrong:
        raise UserError(f"transformers does not find the weights of its MPNet in {folder}: {wrong}. Please report this.")
    model.eval()
    for batch in batches:
        out, real = model(**batch, output_hidden_states=True), batch["attention_mask"].bool()
        yield out.hidden_states[-1][real], out.logits[real]


def _differences(expected: Outputs, found: Iterator[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Largest of hidden states and of logits; raises ``UserError`` if they are too large, or no numbers."""
    worst = [0.0, 0.0]
    for ours, theirs in zip(expected, found, strict=True):
        for kind, (own, exported) in enumerate(zip(ours, theirs, strict=True)):
            difference = (own - exported).abs().max().item()
            if not difference <= TOLERANCE * max(1.0, own.abs().max().item()):  # NaN is not below anything
                what = ("hidden state", "logit")[kind]
                raise UserError(
                    f"the export differs from the training model: a {what} by {difference:.1e}. Please report this."
                )
            worst[kind] = max(worst[kind], difference)
    return worst[0], worst[1]


def _config_of(folder: Path) -> dict:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is no Hugging Face folder: config.json is missing.")
    return json.loads(path.read_text(encoding="utf-8"))
