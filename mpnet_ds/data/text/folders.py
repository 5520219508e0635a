"""Which files of a folder or pattern are text, and which are passed over.

Hidden files and folders are passed over without a word: names that begin with a dot (``.git``, ``.Trash-1000``, the
``._a.txt`` that macOS adds to archives) and the other wastebaskets of ``HIDDEN``. Everything else is counted and named.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mpnet_ds.errors import UserError, one_line

KINDS = {".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv"}
KINDS |= {".parquet": "parquet", ".arrow": "arrow"}
COMPRESSIONS = {".gz": "gz", ".bz2": "bz2", ".xz": "xz", ".zst": "zst", ".zstd": "zst"}
HIDDEN = {"__MACOSX", "$RECYCLE.BIN", "@eaDir"}
NOT_TEXT = {"dataset.json", "tokenizer.json"}  # a folder with one of these was made from text and is not a corpus
NAMED = 3  # files of each group that are named


@dataclass
class PassedOver:
    """Files of folders and patterns that are not read, by the reason."""

    files: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, file: Path) -> None:
        """Note a file."""
        self.files.setdefault(reason, []).append(str(file))

    @property
    def count(self) -> int:
        """Number of files."""
        return sum(map(len, self.files.values()))

    def __str__(self) -> str:
        groups = []
        for reason, files in self.files.items():
            names = ", ".join(files[:NAMED]) + (", …" if len(files) > NAMED else "")
            endings = Counter(Path(file).suffix or "no ending" for file in files).most_common(NAMED)
            kinds = f" ({', '.join(f'{number:,} {ending}' for ending, number in endings)})" if len(files) > NAMED else ""
            groups.append(f"{len(files):,} {reason}{kinds}: {names}")
        return one_line(f"{self.count:,} files passed over: {'; '.join(groups)}") if groups else ""


def kind_of(file: Path) -> str | None:
    """Return the kind of a file by its ending, before that of the compression; None if it is unknown."""
    return KINDS.get(uncompressed(file).suffix.lower())


def compression_of(file: Path) -> str:
    """Return the compression of a file by its ending; empty if it has none."""
    return COMPRESSIONS.get(file.suffix.lower(), "")


def uncompressed(file: Path) -> Path:
    """Path of a file without the ending of its compression."""
    return file.with_suffix("") if compression_of(file) else file


def text_files_below(folder: str, passed_over: PassedOver) -> list[Path]:
    """List the files of a folder and its subfolders that are text, sorted; follow links, enter each folder once."""

    def refuse(error: OSError):
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.")

    files, seen, made_from_text = [], set(), set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        if NOT_TEXT & set(names) or os.path.dirname(place) in made_from_text:
            made_from_text.add(place)
        for file in (Path(place, name) for name in names if not _is_hidden(name)):
            if place in made_from_text:
                passed_over.add("in folders with a dataset.json or tokenizer.json", file)
            elif reason := _reason_against(file):
                passed_over.add(reason, file)
            else:
                files.append(file)
    return without_copies(sorted(files), passed_over)


def without_copies(files: Iterable[Path], passed_over: PassedOver) -> list[Path]:
    """Leave out compressed copies of a file that is there in another form, as ``gzip --keep`` leaves them."""
    files = list(files)
    kept: dict[Path, Path] = {}
    for file in sorted(files, key=lambda file: (bool(compression_of(file)), file)):
        kept.setdefault(uncompressed(file), file)
    for file in files:
        if kept[uncompressed(file)] != file:
            passed_over.add("compressed copies of files beside them", file)
    return [file for file in files if kept[uncompressed(file)] == file]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in HIDDEN


def _reason_against(file: Path) -> str:
    """Say why a file is not read unless it is named; empty if it is read."""
    if kind_of(file) is None:
        return "of unknown kind"
    if file.suffix.lower() == ".json":
        return ".json, which are read only if they are named or compressed"
    if file.suffix.lower() == ".arrow" and file.name.startswith("cache-"):
        return "caches of the datasets library"
    return "" if file.is_file() else "not there (broken links) or not files"
