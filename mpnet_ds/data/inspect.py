"""Looking into a dataset folder: what it holds, whether it is whole, what a sample looks like."""

from pathlib import Path

import numpy as np

from mpnet_ds.data.dataset import PretrainingDataset
from mpnet_ds.data.manifest import DatasetManifest, FileRecord
from mpnet_ds.errors import UserError
from mpnet_ds.progress import Progress


def describe(folder: str | Path) -> str:
    """A few lines for a person, from the manifest alone."""
    manifest = DatasetManifest.load(folder)
    size = sum(record.bytes for shard in manifest.shards for record in shard.files.values())
    lines = [
        f"{folder}: {manifest.documents:,} documents, {manifest.sequences:,} sequences, {manifest.tokens:,} tokens",
        f"{len(manifest.shards)} shard(s), {size:,} bytes, ids as {manifest.dtype}",
        f"vocabulary of {manifest.vocab_size:,} pieces, tokenizer {manifest.tokenizer_fingerprint[:12]}",
        *(f"from {source['path']}, {source['num_bytes']:,} bytes" for source in manifest.sources),
        f"built by mpnet_ds {manifest.tool_version}: {manifest.command}",
    ]
    return "\n".join(lines)


def verify(folder: str | Path) -> int:
    """Reads every file and compares checksums; raises ``UserError`` at the first difference. Returns the bytes read."""
    folder = Path(folder)
    manifest = DatasetManifest.load(folder)
    manifest.check_sizes(folder)
    files = [
        (folder / f"{shard.name}.{suffix}", record) for shard in manifest.shards for suffix, record in shard.files.items()
    ]
    total = sum(record.bytes for _, record in files)
    with Progress("Verifying", total, unit="B") as progress:
        for path, record in files:
            if FileRecord.of(path) != record:
                raise UserError(f"{path} is damaged: its checksums are not those of the manifest. Build the dataset again.")
            progress.update(record.bytes)
    return total


def show(folder: str | Path, index: int, seq_length: int = 128) -> str:
    """Sample ``index`` of epoch 0 as text: predicted tokens as ``[true→input]``, then the order of prediction."""
    data = PretrainingDataset(folder, seq_length)
    if not 0 <= index < len(data):
        raise UserError(f"--show {index}: {folder} has samples 0 … {len(data) - 1} at {seq_length} tokens.")
    sample = {name: array[0] for name, array in data.batch([index]).items()}
    pieces = np.array(data.tokenizer.pieces, dtype=object)
    text = pieces[sample["input_ids"]]
    used = sample["predicted_positions"] >= 0
    positions, inputs = sample["predicted_positions"][used], sample["predicted_inputs"][used]
    order = " ".join(text[positions])
    for position, replacement in zip(positions, inputs, strict=True):
        text[position] = f"[{text[position]}→{pieces[replacement]}]"
    return f"{' '.join(text)}\n\npredicted in this order: {order}"
