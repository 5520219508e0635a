"""Lengths of a dataset's documents, and a histogram of them for the terminal."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mpnet_ds.data.storage.manifest import DatasetManifest
from mpnet_ds.data.storage.token_file import TokenFile

DOCUMENTS_AT_ONCE = 1 << 16
LONG_DOCUMENT = 512  # tokens: longer ones do not fit into a sequence of the default recipes
EIGHTHS = " ▏▎▍▌▋▊▉"


class DocumentLengths:
    """How many documents have how many tokens, including ``</s>``.

    Reads only the indexes: 16 bytes per document. Memory: 16 bytes for each distinct length.
    """

    def __init__(self, folder: str | Path):
        self.lengths, self.counts = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        for found in _lengths_of_documents(Path(folder)):
            lengths, counts = np.unique(found, return_counts=True)
            self.lengths, index = np.unique(np.concatenate([self.lengths, lengths]), return_inverse=True)
            self.counts = np.bincount(index, np.concatenate([self.counts, counts])).astype(np.int64)
        self._up_to = np.cumsum(self.counts)

    @property
    def num_documents(self) -> int:
        """Number of documents in all shards."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Average number of tokens in a document."""
        return float(self.lengths @ self.counts) / self.num_documents

    def quantile(self, share: float) -> int:
        """Return the smallest length that at least this share of the documents does not exceed."""
        return int(self.lengths[np.searchsorted(self._up_to, share * self.num_documents)])

    def share_above(self, length: int) -> float:
        """Return the share of documents with more tokens than ``length``."""
        return float(self.counts[self.lengths > length].sum()) / self.num_documents

    def buckets(self) -> list[tuple[int, int, int]]:
        """List (shortest, longest, documents) for 0, 1, 2–3, 4–7, 8–15 … tokens, from the first to the last used bucket."""
        bits = np.frexp(self.lengths)[1]  # 0 for length 0, else floor(log2) + 1
        counts = np.bincount(bits, self.counts).astype(int)
        return [((1 << b) >> 1, (1 << b) - 1, int(counts[b])) for b in range(int(bits.min()), int(bits.max()) + 1)]


def _lengths_of_documents(folder: Path) -> Iterator[np.ndarray]:
    """Yield int64 arrays with the number of tokens of each document."""
    manifest = DatasetManifest.load(folder)
    manifest.check_sizes(folder)
    for record in manifest.shards:
        shard = TokenFile(folder / record.name)
        for begin in range(0, shard.num_documents, DOCUMENTS_AT_ONCE):
            yield np.diff(shard.document_starts(begin, min(begin + DOCUMENTS_AT_ONCE, shard.num_documents)))


def length_histogram(folder: str | Path, width: int | None = None, unicode: bool | None = None) -> str:
    """Draw a histogram of document lengths in tokens, with a few figures below it.

    ``width`` in characters and ``unicode``, for block characters, are by default what the terminal has.
    """
    lengths = DocumentLengths(folder)
    if not lengths.num_documents:
        return "no documents"
    width = shutil.get_terminal_size().columns if width is None else width
    unicode = can_print(EIGHTHS + "█–") if unicode is None else unicode
    rows = [
        (f"{shortest:,}{'–' if unicode else '-'}{longest:,}" if longest > shortest else f"{shortest:,}", count)
        for shortest, longest, count in lengths.buckets()
    ]
    label_width = max(len(label) for label, _ in rows)
    count_width = max(len(f"{count:,}") for _, count in rows)
    highest = max(count for _, count in rows)
    bar_width = max(1, width - label_width - count_width - 4)
    lines = ["tokens in a document:"]
    for label, count in rows:
        bar = _bar(count / highest * bar_width, unicode).ljust(bar_width)
        lines.append(f"{label:>{label_width}}  {bar}  {count:>{count_width},}")
    above = 100 * lengths.share_above(LONG_DOCUMENT)
    figures = f"median {lengths.quantile(0.5):,}, mean {lengths.mean:,.1f}, 95 % up to {lengths.quantile(0.95):,}"
    return "\n".join([*lines, f"{figures}; {above:.1f} % longer than {LONG_DOCUMENT}"])


def _bar(length: float, unicode: bool) -> str:
    """Draw a bar of ``length`` characters; anything above 0 is visible."""
    if not unicode:
        return "#" * max(round(length), int(length > 0))
    eighths = max(round(8 * length), int(length > 0))
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def can_print(text: str) -> bool:
    """Tell whether standard output's encoding has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
