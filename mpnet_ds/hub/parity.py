"""Check that the folders of an export compute what the training model does.

For each part the reference outputs come first: the training module's own (``reference_outputs``), or those of
the part's transformers class, filled in memory from the training module's weights. Then ``from_pretrained`` loads the
folder, which must hold exactly these weights, and its outputs are compared. The inputs: three sentences, padded to one
length; English from the built-in sample in a sequence of the training's length, so that all positions and distances are
used, and in one of half that length followed by padding; and tokens drawn at random.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from mpnet_ds.checkpoint.store import find_checkpoint
from mpnet_ds.data.text import builtin_sample
from mpnet_ds.errors import UserError
from mpnet_ds.hub.exportable import TrainedModel
from mpnet_ds.hub.part_weights import add_up, contents_of, find_sources
from mpnet_ds.models.module import Part, PretrainingModule
from mpnet_ds.tokenizer import PretrainingTokenizer

TOLERANCE = 1e-5
"""Largest difference that passes, relative to the largest number of its kind if that is above 1."""

CHECK_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Return a new list that contains all the items of the iterable in ascending order.",
    "MPNet leverages the dependency among predicted tokens through permuted language modelling.",
)
CHARACTERS_PER_TOKEN = 16  # of a text that fills a sequence; pieces have fewer
KINDS = {"hidden_states": "a hidden state", "logits": "a logit"}
"""Name of an output → one number of it, in words; others keep their name."""

Batch = dict[str, Tensor]
Outputs = dict[str, Tensor]
"""Name of an output of a transformers class → fp32, [t, …] of a batch's t real tokens; of hidden states the last."""


@dataclass(frozen=True)
class Comparison:
    """What the check of an export found."""

    differences: dict[str, float]
    """Largest absolute difference by output; with several parts ``PART: OUTPUT``."""
    tokens: int
    """How many were compared, of each part."""
    longest: int
    """Tokens in the longest sequence."""
    dtype: str
    """Of the weights in the files: ``float32``, ``bfloat16`` or ``float16``."""
    rounding: float | None = None
    """Largest change of a reference output when the weights are rounded to ``dtype``; None in fp32."""
    padding_rows: int = 0
    """Rows of the training model's vocabulary without a piece, which the export does not have."""

    def describe(self) -> list[str]:
        """Describe the comparison in lines of text."""
        found = ", ".join(f"{_in_words(name)} {value:.1e}" for name, value in self.differences.items())
        sizes = f"{self.tokens:,} tokens, in sequences of up to {self.longest}"
        lines = [
            f"It loads with transformers and agrees with the training model on {sizes}.",
            f"Largest differences: {found}",
        ]
        if self.rounding is not None:
            change = f"this changes an output by up to {self.rounding:.1e}"
            lines.append(f"The weights were rounded to {self.dtype} first; {change}")
        if self.padding_rows:
            lines.append(f"{self.padding_rows} padding row(s) of the vocabulary were cut off")
        return lines


def compare(source: str | Path, output: str | Path) -> Comparison:
    """Load the folders of an export with transformers and compare them with the model of a checkpoint.

    Args:
        source: the checkpoint, or a run's folder (then its newest).
    Raises:
        UserError: outputs differ by more than ``TOLERANCE``, tokenizers differ, or weights are missing or superfluous.
            Folders in 16 bit are compared with the training model's weights rounded alike.
    """
    transformers_logging.disable_progress_bar()
    model, output = TrainedModel.of(find_checkpoint(source)), Path(output)
    differences, changes = {}, []
    for name, part in model.parts.items():
        folder = output / name
        dtype = _dtype_of(folder)
        _compare_tokenizers(model.tokenizer, folder)
        batches = list(check_batches(folder, model.info.seq_length))
        expected, change = _reference(name, part, model, folder, batches, dtype)
        found = _differences(expected, _of_folder(folder, part, batches))
        differences |= {f"{name}: {kind}" if name else kind: value for kind, value in found.items()}
        changes.append(change)
    lengths = [length for batch in batches for length in batch["attention_mask"].sum(dim=1).tolist()]
    rounding = None if dtype == "float32" else max(changes)
    return Comparison(differences, sum(lengths), max(lengths), dtype, rounding, model.padding_rows)


def check_batches(folder: str | Path, seq_length: int) -> Iterator[Batch]:
    """Yield ``input_ids`` and ``attention_mask``, int64 [B, n], of texts and random tokens.

    First short texts, then one of ``seq_length`` tokens and one of half, then ``seq_length`` tokens at random.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    long_text = _text_of(CHARACTERS_PER_TOKEN * seq_length)
    texts = [[(text, seq_length) for text in CHECK_TEXTS], [(long_text, seq_length), (long_text, max(seq_length // 2, 4))]]
    for sequences in texts:
        ids = [tokenizer(text, truncation=True, max_length=length)["input_ids"] for text, length in sequences]
        yield dict(tokenizer.pad({"input_ids": ids}, return_tensors="pt"))
    ordinary = torch.tensor(sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids)))
    drawn = torch.randint(len(ordinary), (1, seq_length), generator=torch.Generator().manual_seed(0))
    yield {"input_ids": ordinary[drawn], "attention_mask": torch.ones_like(drawn)}


def _text_of(num_characters: int) -> str:
    """Make English text of at least that length, by repetition if necessary."""
    parts, length = [], 0
    for paragraph in itertools.cycle([*CHECK_TEXTS, *builtin_sample.beginning(num_characters)]):
        parts.append(paragraph)
        length += len(paragraph) + 1
        if length > num_characters:
            return " ".join(parts)
    raise AssertionError("unreachable")


def _compare_tokenizers(ours: PretrainingTokenizer, folder: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    for text, ids in zip(CHECK_TEXTS, ours.encode(list(CHECK_TEXTS)), strict=True):
        expected = ours.framed(ids.tolist())
        found = theirs(text, truncation=True, max_length=len(ids) + 9)["input_ids"]
        if found != expected:
            raise UserError(f"the tokenizer in {folder} splits '{text}' into {found}, training into {expected}.")


@torch.no_grad()
def _reference(
    name: str, part: Part, model: TrainedModel, folder: Path, batches: list[Batch], dtype: str
) -> tuple[list[Outputs], float]:
    """Compute outputs of the weights rounded to ``dtype``, and the largest change that the rounding caused.

    Compares the files beside the model as well, number by number.
    """
    module = model.load()
    _compare_extra_files(part, module, folder, dtype)
    reference = module if module.reference_outputs(name, batches[0]) is not None else fill(part, module, model)
    exact = _run(reference, name, batches)
    if dtype == "float32":
        return exact, 0.0
    for parameter in reference.parameters():
        parameter.data = _rounded(parameter.data, dtype)
    rounded = _run(reference, name, batches)
    changes = (before[kind] - after[kind] for before, after in zip(exact, rounded, strict=True) for kind in before)
    return rounded, max(change.abs().max().item() for change in changes)


def fill(part: Part, module: PretrainingModule, model: TrainedModel) -> nn.Module:
    """Fill the part's own class with the weights of the training module, by its renamings and sums."""
    contents, weights = contents_of(part), module.state_dict()
    sources = find_sources(part, model.exported, contents)
    state = {
        name: add_up(weights, source)[tuple(map(slice, contents.shapes[name]))]  # without padding rows
        for name, source in sources.items()
    }
    filled = part.model_class(part.config)
    filled.load_state_dict(state | {copy: state[first] for copy, first in contents.tied.items()}, assign=True)
    return filled.eval()


def _rounded(tensor: Tensor, dtype: str) -> Tensor:
    return tensor.to(getattr(torch, dtype)).float()


def _compare_extra_files(part: Part, module: PretrainingModule, folder: Path, dtype: str) -> None:
    weights = module.state_dict()
    for file, inside in part.extra_files.items():
        stored = load_file(folder / file)
        for name, inner in inside.items():
            if not torch.equal(stored[inner].float(), _rounded(weights[name], dtype)):
                raise UserError(f"{folder / file}: {inner} is not {name} of the training model. Please report this.")


def _run(model: nn.Module, name: str, batches: Iterable[Batch]) -> list[Outputs]:
    """Compute reference outputs of a training module's part ``name``, or outputs of a transformers model."""
    is_own = isinstance(model, PretrainingModule)
    return [
        _at_real_tokens(model.reference_outputs(name, batch) if is_own else _outputs_of(model, batch), batch)
        for batch in batches
    ]


def _outputs_of(model: nn.Module, batch: Batch) -> Outputs:
    torch.manual_seed(0)  # Reformer's hashes are random in evaluation too
    out = model(**batch, output_hidden_states=True)
    last = {name: value[-1] if isinstance(value, tuple) else value for name, value in out.items()}
    return {name: value for name, value in last.items() if isinstance(value, Tensor) and value.is_floating_point()}


def _at_real_tokens(outputs: Outputs, batch: Batch) -> Outputs:
    real = batch["attention_mask"].bool()
    return {name: value[real] if value.shape[:2] == real.shape else value for name, value in outputs.items()}


@torch.no_grad()
def _of_folder(folder: Path, part: Part, batches: list[Batch]) -> list[Outputs]:
    model, loading = part.model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    wrong = {kind: sorted(map(str, keys)) for kind, keys in loading.items() if keys}
    if wrong:
        kind = part.model_class.__name__
        raise UserError(f"transformers does not find the weights of its {kind} in {folder}: {wrong}. Please report this.")
    return _run(model.eval(), "", batches)


def _differences(expected: list[Outputs], found: list[Outputs]) -> dict[str, float]:
    """Find the largest difference of each output; raise ``UserError`` if one is too large or NaN."""
    worst: dict[str, float] = {}
    for ours, theirs in zip(expected, found, strict=True):
        for kind, own in ours.items():
            own = own[..., : theirs[kind].shape[-1]]  # without padding rows
            difference = (own - theirs[kind]).abs().max().item()
            if not difference <= TOLERANCE * max(1.0, own.abs().max().item()):  # NaN compares false
                raise UserError(
                    f"the export differs from the training model: {_in_words(kind)} by {difference:.1e}. Please report this."
                )
            worst[kind] = max(worst.get(kind, 0.0), difference)
    return worst


def _in_words(kind: str) -> str:
    name, colon, output = kind.rpartition(": ")
    return name + colon + KINDS.get(output, f"a number of {output}")


def _dtype_of(folder: Path) -> str:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a Hugging Face folder: config.json is missing.")
    return json.loads(path.read_text(encoding="utf-8"))["dtype"]
