"""How a build is divided, and whether an interrupted one can be continued.

The corpus, source after source, is cut into *pieces* of about ``shard_bytes``; each piece becomes the shard of its number,
whoever builds it and whenever. So the files do not depend on the number of processes or machines, and a build that was
interrupted continues with the pieces that are missing. A piece may hold many small files, or a stretch of a large one:

    sources   |  a.txt  | b.jsonl |          c.txt          | d.gz |
    pieces    |---- 0 -----|--- 1 ---|--- 2 ---|--- 3 ---|-- 4 --|

Where several machines build, each takes a run of consecutive pieces.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime

from mpnet_ds.data.text import standard_input
from mpnet_ds.data.text.corpus import Corpus, num_units
from mpnet_ds.data.text.source import Source
from mpnet_ds.errors import UserError
from mpnet_ds.machine import available_cores
from mpnet_ds.ranks.launchers import find_task

USUAL_SHARDS = 64
SMALLEST_SHARD, LARGEST_SHARD = 1 << 20, 1 << 26  # bytes of text
SENTENCES = ("line", "document")


@dataclass(frozen=True)
class Span:
    """A part of a source; ``start`` and ``end`` as ``corpus.read`` takes them."""

    source: int
    """Number of the source."""
    start: int
    end: int


Piece = list[Span]


@dataclass(frozen=True)
class Part:
    """Which of several machines this is."""

    number: int
    """From 1 to ``of``."""
    of: int
    origin: str = "--part"

    def __post_init__(self):
        if not 1 <= self.number <= self.of:
            raise UserError(f"{self.origin}: part {self.number} of {self.of} cannot be; parts count from 1/{self.of}.")

    @property
    def folder_name(self) -> str:
        """Sorts in the order of the parts."""
        return f"part-{self.number:05d}-of-{self.of:05d}"

    def pieces(self, count: int) -> range:
        """The numbers of this part's pieces among ``count``: parts tile them in order."""
        return range((self.number - 1) * count // self.of, self.number * count // self.of)


@dataclass(frozen=True)
class BuildOptions:
    """How a dataset is built, beside what it is built from."""

    holdout: float = 0.0
    """Share of the documents that go to ``OUT/holdout``. A document's side follows from its text alone."""
    sentences: str = "line"
    """What a sequence of the index is: a ``line`` or a whole ``document``. Samples do not depend on it."""
    shard_bytes: int | None = None
    """Bytes of text for each shard, about; what cannot be divided may make a larger one. None: see ``cut``."""
    workers: int | None = None
    """Processes; None: all cores. The dataset does not depend on it."""
    part: Part | None = None
    """Builds this part alone, into a folder of its own within the output."""

    def __post_init__(self):
        if not 0 <= self.holdout < 1:
            cure = "0.01 keeps one document in a hundred aside"
            raise UserError(f"--holdout {self.holdout} must be at least 0 and below 1: {cure}.")
        if self.sentences not in SENTENCES:
            raise UserError(f"--sentences {self.sentences}: it takes {' or '.join(SENTENCES)}.")
        if self.shard_bytes is not None and self.shard_bytes < 1:
            raise UserError(f"--shard_size {self.shard_bytes} must be at least 1 byte.")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers {self.workers} must be at least 1.")

    def num_workers(self) -> int:
        """``workers``, or the cores that this process may use."""
        return self.workers or available_cores()

    def pieces(self, count: int) -> range:
        """The numbers of the pieces to build among ``count``."""
        return (self.part or Part(1, 1)).pieces(count)


def parse_part(text: str) -> Part:
    """``2/8`` as a part."""
    found = re.fullmatch(r"([0-9]{1,9})/([1-9][0-9]{0,8})", text.strip())
    if not found:
        raise UserError(f"--part {text}: it takes two numbers such as 2/8, the second part of eight.")
    return Part(int(found[1]), int(found[2]))


def part_of_environment(environment: Mapping[str, str]) -> Part | None:
    """The part that a task of a SLURM array, ``srun`` or ``mpirun`` is; None outside of these, or where it is alone."""
    if "SLURM_ARRAY_TASK_COUNT" in environment:
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
        number, first, last, count = (_number(environment, name) for name in names)
        if last - first + 1 != count:
            raise UserError(f"{names[0]}: the array {first}…{last} has gaps ({count} tasks): say --part I/N.")
        return Part(number - first + 1, count, names[0]) if count > 1 else None
    task = find_task(environment)
    return Part(task.rank + 1, task.size, task.variable) if task else None


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not re.fullmatch("[0-9]+", value):
        raise UserError(f"the variable {name} is '{value}', not a number: say --part I/N (--part 1/1 builds all).")
    return int(value)


def cut(sources: list[Source], shard_bytes: int | None) -> list[Piece]:
    """All pieces, in order; by default a corpus makes ``USUAL_SHARDS`` of them, not too small and not too large."""
    if shard_bytes is None:
        total = sum(source.num_bytes for source in sources)
        shard_bytes = min(max(total // USUAL_SHARDS, SMALLEST_SHARD), LARGEST_SHARD)
    pieces: list[Piece] = [[]]
    room = shard_bytes
    for number, source in enumerate(sources):
        for start, end, size in _units(source, shard_bytes):
            while start < end:
                taken = min(end - start, max(room, 0)) if source.is_divisible else end - start
                if room <= 0 or (pieces[-1] and not source.is_divisible and size > room):
                    pieces.append([])
                    room = shard_bytes
                    continue
                _append(pieces[-1], Span(number, start, start + taken))
                room -= taken if source.is_divisible else size
                start += taken
    return [piece for piece in pieces if piece]


def _units(source: Source, shard_bytes: int) -> list[tuple[int, int, int]]:
    """(start, end, bytes) of what a source is divided by; a divisible file is one, which ``cut`` divides."""
    if source.kind == "parquet":
        from mpnet_ds.data.text.tables import row_group_bytes

        return [(i, i + 1, size) for i, size in enumerate(row_group_bytes(source))]
    if source.kind == "datasets" and not source.num_bytes:  # streamed: nobody knows the size
        return [(i, i + 1, shard_bytes) for i in range(source.units)]
    if source.kind == "datasets":
        rows = max(1, min(source.units, source.units * shard_bytes // source.num_bytes))
        size = rows * source.num_bytes // source.units
        return [(i, min(i + rows, source.units), size) for i in range(0, source.units, rows)]
    return [(0, num_units(source), source.num_bytes)]


def _append(piece: Piece, span: Span) -> None:
    """Adds a span, joined to the one before where it continues that."""
    if piece and (piece[-1].source, piece[-1].end) == (span.source, span.start):
        span = Span(span.source, piece.pop().start, span.end)
    piece.append(span)


def settings_of(corpus: Corpus, tokenizer_fingerprint: str, options: BuildOptions) -> dict:
    """What a build depends on, as ``plan.json`` and the manifest record it: options of a set only where there is one."""
    recorded = asdict(options) | asdict(corpus.options)
    of_a_set = ("dataset_config", "split", "streaming") if corpus.options.dataset is None else ()
    for name in ("workers", "part", "dataset", *of_a_set):  # the set itself is one of the sources
        del recorded[name]
    if options.part is not None:
        recorded["part"] = [options.part.number, options.part.of]
    sources = [standard_input.as_recorded(source) for source in corpus.sources]
    settings = {
        "sources": [asdict(source) for source in sources],
        "tokenizer_fingerprint": tokenizer_fingerprint,
        "options": recorded | {"plan": _digest(sources, tokenizer_fingerprint, recorded)},
    }
    return json.loads(json.dumps(settings))


def _digest(sources: list[Source], tokenizer_fingerprint: str, options: dict) -> str:
    """sha256 (hex) of what all parts of a build have in common: not times, which copies of a corpus may differ in."""
    listed = [[source.path, source.num_bytes, source.units, source.version] for source in sources]
    common = {name: value for name, value in options.items() if name not in ("part", "on_error")}
    return hashlib.sha256(json.dumps([listed, tokenizer_fingerprint, common], sort_keys=True).encode()).hexdigest()


def difference(before: dict, now: dict) -> str:
    """The first difference between two builds' settings, for a person; empty if one may continue the other."""
    if before["tokenizer_fingerprint"] != now["tokenizer_fingerprint"]:
        old, new = (settings["tokenizer_fingerprint"][:12] for settings in (before, now))
        return f"the tokenizer was {old}, is now {new}"
    for name, value in now["options"].items():
        was = before["options"].get(name)
        may_change = name == "plan" or (name == "on_error" and was == "stop")  # what was built had no fault
        if was != value and not may_change:
            flag = {"shard_bytes": "shard_size"}.get(name, name)
            return f"--{flag} was {was}, is now {value}"
    old, new = ({source["path"]: source for source in settings["sources"]} for settings in (before, now))
    for path in old.keys() | new.keys():
        if path not in new or path not in old:
            return f"{path} is {'gone' if path in old else 'new'}"
        if old[path] != new[path]:
            return f"{path} has changed: {_describe(old[path])} then, {_describe(new[path])} now"
    order = [[source["path"] for source in settings["sources"]] for settings in (before, now)]
    return "the sources are in another order" if order[0] != order[1] else ""


def _describe(source: dict) -> str:
    time = datetime.fromtimestamp(source["modified"]).isoformat(" ", "microseconds") if source["modified"] else ""
    return " ".join(filter(None, (f"{source['num_bytes']:,} bytes", time, source["version"][:12])))
