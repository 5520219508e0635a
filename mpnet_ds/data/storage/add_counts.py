"""Adding the counts of pieces to the manifest of a dataset that was built before the builder counted them."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from mpnet_ds.data.storage.manifest import FILE_NAME, HOLDOUT, DatasetManifest
from mpnet_ds.data.storage.piece_counts import count_pieces, encode
from mpnet_ds.data.storage.token_file import TokenFile
from mpnet_ds.errors import UserError
from mpnet_ds.files import obstacle_to_writing
from mpnet_ds.progress import Progress


def add_piece_counts(folder: str | Path, show_progress: bool = True) -> list[str]:
    """Count the pieces of the dataset in ``folder`` and of its holdout where their manifests lack that; say what was done.

    Reads all tokens once; each manifest is replaced atomically.

    Raises:
        UserError: no dataset, a folder that cannot be written to, or damage: other tokens than the manifest says.
    """
    folder = Path(folder)
    folders = [folder, *(path for path in [folder / HOLDOUT] if (path / FILE_NAME).is_file())]
    manifests = {path: DatasetManifest.load(path) for path in folders}
    lacking = {path: manifest for path, manifest in manifests.items() if not manifest.piece_counts}
    for path, manifest in lacking.items():
        manifest.check_sizes(path)
        if obstacle := obstacle_to_writing(path):
            raise UserError(f"cannot write to {path}: {obstacle}. Get write permission, or count in a copy of the dataset.")
    total = sum(shard.files["bin"].bytes for manifest in lacking.values() for shard in manifest.shards)
    with Progress("Counting", total, unit="B", enabled=show_progress and bool(total)) as progress:
        for path, manifest in lacking.items():
            counts = _count(path, manifest, progress)
            replace(manifest, piece_counts=encode(counts)).save(path)
    return [
        f"{path}: counted the pieces of {manifest.tokens:,} tokens" if path in lacking else f"{path} has its counts already"
        for path, manifest in manifests.items()
    ]


def _count(folder: Path, manifest: DatasetManifest, progress: Progress) -> np.ndarray:
    counts = np.zeros(manifest.vocab_size, dtype=np.int64)
    for shard in manifest.shards:
        counts += count_pieces(TokenFile(folder / shard.name), manifest.vocab_size, progress.update)
    if counts.sum() != manifest.tokens:
        found = f"{folder / FILE_NAME} says {manifest.tokens:,} tokens, its shards have {counts.sum():,}"
        raise UserError(f"{found}: damaged, build the dataset again.")
    return counts
