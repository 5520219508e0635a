"""Looking into a dataset folder: what it holds, how long its documents are, what a sample looks like."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np

from mpnet_ds.data.dataset import PretrainingDataset
from mpnet_ds.data.manifest import DatasetManifest
from mpnet_ds.data.token_file import TokenFile
from mpnet_ds.errors import UserError
from mpnet_ds.tokenizer import CONTINUATION

DOCUMENTS_AT_ONCE = 1 << 16
LONG_DOCUMENT = 512  # tokens: longer ones do not fit a row of the usual recipe
COUNTED_SINGLY = 1 << 16  # lengths below it are counted one by one, longer ones are kept
EIGHTHS = " ▏▎▍▌▋▊▉"

COLOURS = {"mask": "\x1b[31m", "kept": "\x1b[32m", "random": "\x1b[33m"}
COLOUR_OFF = "\x1b[0m"


def describe(folder: str | Path) -> str:
    """A few lines for a person, from the manifest alone."""
    manifest = DatasetManifest.load(folder)
    size = sum(record.bytes for _, _, record in manifest.files(folder))
    lines = [
        f"{folder}: {manifest.documents:,} documents, {manifest.sequences:,} sequences, {manifest.tokens:,} tokens",
        f"{len(manifest.shards)} shard(s), {size:,} bytes, ids as {manifest.dtype}",
        f"vocabulary of {manifest.vocab_size:,} pieces, tokenizer {manifest.tokenizer_fingerprint[:12]}",
        *(f"from {source['path']}, {source['num_bytes']:,} bytes" for source in manifest.sources),
        f"built by mpnet_ds {manifest.tool_version}: {manifest.command}",
    ]
    return "\n".join(lines)


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
        return int(self._up_to[-1])

    @property
    def mean(self) -> float:
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


def draw_lengths(folder: str | Path, width: int | None = None, unicode: bool | None = None) -> str:
    """A histogram of the documents' lengths in tokens, and a few figures.

    Args:
        width: of a line; by default the terminal's.
        unicode: draw with block characters; by default where standard output's encoding has them.
    """
    lengths = DocumentLengths(folder)
    if not lengths.num_documents:
        return "no documents"
    width = shutil.get_terminal_size().columns if width is None else width
    unicode = _can_print(EIGHTHS + "█–") if unicode is None else unicode
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


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def show(folder: str | Path, index: int, seq_length: int = 128, colour: bool | None = None) -> str:
    """Sample ``index`` of epoch 0 as readable text with its masking, then the order of prediction.

    A predicted token stands as ``[true→input]``, or with ``colour`` as true→input in a colour that says whether the
    model sees ``<mask>``, the token itself or a random one. By default colour is used on a terminal, unless the variable
    NO_COLOR is set (no-color.org).
    """
    data = PretrainingDataset(folder, seq_length)
    if not 0 <= index < len(data):
        raise UserError(f"--show {index}: {folder} has samples 0 … {len(data) - 1} at {seq_length} tokens.")
    sample = {name: array[0] for name, array in data.batch([index]).items()}
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") if colour is None else colour
    arrow = "→" if _can_print("→") else "->"
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
    text = _joined(pieces[true], drawn)
    counts = ", ".join(f"{members.sum()} {_painted(kind, colour)}" for kind, members in kinds.items())
    return f"{text}\n\n{len(positions)} predicted: {counts}; in this order: {' '.join(pieces[true[positions]])}"


def _painted(kind: str, colour: bool) -> str:
    return f"{COLOURS[kind]}{kind}{COLOUR_OFF}" if colour else kind


def _joined(pieces: np.ndarray, drawn: dict[int, str]) -> str:
    """Pieces as words: what continues a word follows it without a space. ``drawn``: text for some of the positions."""
    parts = []
    for position, piece in enumerate(pieces):
        if not piece.startswith(CONTINUATION):
            parts.append(" ")
        parts.append(drawn.get(position, piece.removeprefix(CONTINUATION)))
    return "".join(parts).strip()
