"""How long a dataset's documents are, and a histogram of it for the terminal."""

import shutil
import sys
from pathlib import Path

import numpy as np

from mpnet_ds.data.storage.manifest import DatasetManifest
from mpnet_ds.data.storage.token_file import TokenFile

DOCUMENTS_AT_ONCE = 1 << 16
LONG_DOCUMENT = 512  # tokens: longer ones do not fit a row of the usual recipe
COUNTED_SINGLY = 1 << 16  # lengths below it are counted one by one, longer ones are kept
EIGHTHS = " ▏▎▍▌▋▊▉"


class DocumentLengths:
    """How many documents have how many tokens, ``</s>`` included.

    Reads the indexes only, in parts: 16 bytes a document. Memory: 512 KiB, and 8 bytes for each document of 65,536
    tokens or more.
    """

    def __init__(self, folder: str | Path):
        folder, manifest = Path(folder), DatasetManifest.load(folder)
        manifest.check_sizes(folder)
        self._counts = np.zeros(COUNTED_SINGLY, dtype=np.int64)
        self._longer = [np.empty(0, dtype=np.int64)]
        for shard in manifest.shards:
            self._count(TokenFile(folder / shard.name))
        self._lengths = np.concatenate([np.arange(COUNTED_SINGLY), np.sort(np.concatenate(self._longer))])
        self._counts = np.concatenate([self._counts, np.ones(len(self._lengths) - COUNTED_SINGLY, dtype=np.int64)])
        self._up_to = np.cumsum(self._counts)

    def _count(self, shard: TokenFile) -> None:
        for begin in range(0, shard.num_documents, DOCUMENTS_AT_ONCE):
            end = min(begin + DOCUMENTS_AT_ONCE, shard.num_documents)
            lengths = np.diff(shard.document_starts(begin, end))
            short = lengths < COUNTED_SINGLY
            self._counts += np.bincount(lengths[short], minlength=COUNTED_SINGLY)
            self._longer.append(lengths[~short])

    @property
    def num_documents(self) -> int:
        """Of all shards."""
        return int(self._up_to[-1])

    @property
    def mean(self) -> float:
        """Tokens in a document, on average."""
        return float(self._lengths @ self._counts) / self.num_documents

    def quantile(self, share: float) -> int:
        """The smallest length that at least this share of the documents does not exceed."""
        return int(self._lengths[np.searchsorted(self._up_to, share * self.num_documents)])

    def share_above(self, length: int) -> float:
        """Share of the documents with more tokens than ``length``."""
        return float(self._counts[self._lengths > length].sum()) / self.num_documents

    def buckets(self) -> list[tuple[int, int, int]]:
        """(shortest, longest, documents) for 1, 2–3, 4–7, 8–15 … tokens, from the first bucket in use to the last."""
        used = np.flatnonzero(self._counts)
        exponents = np.frexp(self._lengths[used])[1] - 1  # floor(log2), and -1 for an empty document
        numbers = np.bincount(exponents + 1, self._counts[used]).astype(int)
        return [
            (
                2**exponent if exponent >= 0 else 0,
                2 ** (exponent + 1) - 1 if exponent >= 0 else 0,
                int(numbers[exponent + 1]),
            )
            for exponent in range(int(exponents.min()), int(exponents.max()) + 1)
        ]


def length_histogram(folder: str | Path, width: int | None = None, unicode: bool | None = None) -> str:
    """A histogram of the documents' lengths in tokens, and a few figures.

    Args:
        width: of a line; by default the terminal's.
        unicode: draw with block characters; by default where standard output's encoding has them.
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
    """A bar of ``length`` characters; anything above 0 is visible."""
    if not unicode:
        return "#" * max(round(length), int(length > 0))
    eighths = max(round(8 * length), int(length > 0))
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def can_print(text: str) -> bool:
    """Whether standard output's encoding has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
