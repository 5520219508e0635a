"""Inspecting a dataset: what it holds, and what a sample looks like."""

import os
import sys
from pathlib import Path

import numpy as np

from mpnet_ds.command_line import invocation
from mpnet_ds.data.samples.dataset import PretrainingDataset
from mpnet_ds.data.storage.lengths import can_print
from mpnet_ds.data.storage.manifest import FILE_NAME, HOLDOUT, DatasetManifest
from mpnet_ds.data.storage.piece_counts import entropy
from mpnet_ds.data.text.source import describe_faults
from mpnet_ds.errors import UserError, one_line
from mpnet_ds.tokenizer import PretrainingTokenizer
from mpnet_ds.word_boundaries import CONTINUATION

SOURCES_TO_LIST = 10
COLOURS = {"mask": "\x1b[31m", "kept": "\x1b[32m", "random": "\x1b[33m"}
COLOUR_OFF = "\x1b[0m"


def describe(folder: str | Path) -> str:
    """Summarise a dataset in a few lines, from its manifests."""
    manifest = DatasetManifest.load(folder)
    size = sum(record.bytes for _, _, record in manifest.files(folder))
    lines = [
        f"{folder}: {manifest.counted} ({manifest.unknown_share})",
        f"{len(manifest.shards)} shard(s), {size:,} bytes, ids as {manifest.dtype}",
        f"vocabulary of {manifest.vocab_size:,} pieces, tokenizer {manifest.tokenizer_fingerprint[:12]} ({manifest.layout})",
        _frequency_loss(folder, manifest),
        *(
            f"from {one_line(source['path'])}, {source['num_bytes']:,} bytes"
            for source in manifest.sources[:SOURCES_TO_LIST]
        ),
    ]
    lines += manifest.provenance.describe()
    lines[1:1] = [f"Warning: {remark}" for remark in manifest.remarks]
    if len(manifest.sources) > SOURCES_TO_LIST:
        lines.append(f"and {len(manifest.sources) - SOURCES_TO_LIST:,} more sources, listed in {FILE_NAME}")
    if "merged_from" in manifest.options:
        lines.append(f"merged by {manifest.options['merged_by']} from {', '.join(manifest.options['merged_from'])}")
    lines += _left_out(manifest.left_out)
    if (Path(folder) / HOLDOUT / FILE_NAME).is_file():
        lines.append(f"{HOLDOUT}: {DatasetManifest.load(Path(folder) / HOLDOUT).counted}")
    return "\n".join([*lines, f"made by mpnet_ds {manifest.tool_version}: {manifest.command}"])


def _frequency_loss(folder: str | Path, manifest: DatasetManifest) -> str:
    """Say what the loss of a model would be that knows only how often each piece occurs."""
    counts = manifest.decoded_piece_counts()
    if counts is None:
        return f"no counts of pieces: add them with {invocation('inspect_dataset', folder, '--count')}"
    loss = entropy(counts, manifest.special_ids.values())
    return f"loss of word frequencies only: about {loss:.2f} nats (special tokens left out)"


def _left_out(left_out: dict) -> list[str]:
    """Say what of the sources is not in the dataset."""
    empty, faulty = (left_out.get(f"{kind}_documents", 0) for kind in ("empty", "faulty"))
    lines = [f"left out: {empty:,} empty documents"] if empty else []
    lines += [describe_faults(faulty, left_out.get("first_fault", ""))] if faulty else []
    return [*lines, *filter(None, [left_out.get("passed_over")])]


def show(folder: str | Path, index: int, seq_length: int = 128, colour: bool | None = None) -> str:
    """Render sample ``index`` of epoch 0 as readable text with its masking, then the order of prediction.

    A predicted token is shown as ``[true→input]``, or with ``colour`` as true→input in a colour that tells whether the model
    sees ``<mask>``, the token itself or a random one. By default, colour is used on a terminal unless the variable NO_COLOR
    is set (no-color.org). Where the layout has no mask token, only the text is shown.
    """
    data = PretrainingDataset(folder, seq_length)
    if not 0 <= index < len(data):
        raise UserError(f"--show is {index}; {folder} has samples 0 … {len(data) - 1} of {seq_length} tokens.")
    if data.tokenizer.mask_id is None:
        return _joined(data.sequences([index]).ids[0], data.tokenizer, {})
    sample = {name: array[0] for name, array in data.batch([index]).items()}
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") if colour is None else colour
    arrow = "→" if can_print("→") else "->"
    pieces = np.array(data.tokenizer.pieces, dtype=object)
    true = sample["input_ids"]
    used = sample["predicted_positions"] >= 0
    positions, inputs = sample["predicted_positions"][used], sample["predicted_inputs"][used]
    kinds = {"mask": inputs == data.tokenizer.mask_id, "kept": inputs == true[positions]}
    kinds["random"] = ~(kinds["mask"] | kinds["kept"])
    drawn = {}
    for kind, members in kinds.items():
        before, after = (COLOURS[kind], COLOUR_OFF) if colour else "[]"
        for position, replacement in zip(positions[members], inputs[members], strict=True):
            drawn[int(position)] = f"{before}{pieces[true[position]]}{arrow}{pieces[replacement]}{after}"
    text = _joined(true, data.tokenizer, drawn)
    counts = ", ".join(f"{members.sum()} {_coloured(kind, colour)}" for kind, members in kinds.items())
    return f"{text}\n\n{len(positions)} predicted: {counts}; in this order: {' '.join(pieces[true[positions]])}"


def _coloured(kind: str, colour: bool) -> str:
    return f"{COLOURS[kind]}{kind}{COLOUR_OFF}" if colour else kind


def _joined(ids: np.ndarray, tokenizer: PretrainingTokenizer, drawn: dict[int, str]) -> str:
    """Join pieces to words, continuations without a space. ``drawn``: text for some of the positions."""
    parts = []
    for position, id_ in enumerate(ids):
        if tokenizer.words.starts[id_]:
            parts.append(" ")
        parts.append(drawn.get(position, tokenizer.pieces[id_].removeprefix(CONTINUATION)))
    return "".join(parts).strip()
