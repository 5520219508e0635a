"""Plan of a build: which text goes into which shard, and whether an interrupted build can be continued.

The corpus, source after source, is split into *shard plans* of about ``shard_bytes``; plan i becomes shard i, whichever
process builds it. So the files do not depend on the number of processes or machines, and an interrupted build continues
with the missing shards. A shard may take many small files, or a byte range of a large one:

    sources   |  a.txt  | b.jsonl |          c.txt          | d.gz |
    shards    |---- 0 -----|--- 1 ---|--- 2 ---|--- 3 ---|-- 4 --|

When several machines build, each takes a run of consecutive shards.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime

from mpnet_ds.data.storage.provenance import Provenance
from mpnet_ds.data.text import standard_input
from mpnet_ds.data.text.corpus import TABLES, Corpus, num_units
from mpnet_ds.data.text.source import Source
from mpnet_ds.errors import UserError
from mpnet_ds.machine import available_cores
from mpnet_ds.ranks.launchers import find_task, read_number

USUAL_SHARDS = 64
SMALLEST_SHARD, LARGEST_SHARD = 1 << 20, 1 << 26  # bytes of text
SENTENCES = ("line", "document")


@dataclass(frozen=True)
class SourceRange:
    """A range of a source, with ``start`` and ``end`` as in ``corpus.read``."""

    source: int
    """Index of the source."""
    start: int
    end: int


ShardPlan = list[SourceRange]
"""What one shard is built from."""


@dataclass(frozen=True)
class Part:
    """One machine's part of a build: ``--part I/N``."""

    number: int
    """From 1 to ``of``."""
    of: int
    origin: str = "--part"

    def __post_init__(self):
        if not 1 <= self.number <= self.of:
            found = f"{self.origin}: part {self.number} of {self.of} does not exist"
            raise UserError(f"{found}; parts are numbered from 1/{self.of} to {self.of}/{self.of}.")

    @property
    def folder_name(self) -> str:
        """Folder of the part's output; the names sort in the order of the parts."""
        return f"part-{self.number:05d}-of-{self.of:05d}"

    def shard_numbers(self, count: int) -> range:
        """Numbers of this part's shards among ``count``; the parts tile them in order."""
        return range((self.number - 1) * count // self.of, self.number * count // self.of)


@dataclass(frozen=True)
class BuildOptions:
    """How to build a dataset."""

    holdout: float = 0.0
    """Share of the documents that goes to ``OUT/holdout``; decided for each document by its text alone."""
    sentences: str = "line"
    """What counts as a sequence in the index: a ``line`` or a whole ``document``."""
    shard_bytes: int | None = None
    """Approximate bytes of text for each shard; a source that cannot be split may make a larger one. None: automatic."""
    workers: int | None = None
    """Number of processes; None: one for each core. The dataset does not depend on it."""
    part: Part | None = None
    """Build only this part, into its own folder inside the output folder."""
    max_unknown: float = 0.2
    """Share of unknown tokens above which the dataset is refused."""
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self):
        findings = []
        if not 0 <= self.holdout < 1:
            cure = "0.01 holds out one document in a hundred"
            findings.append(f"--holdout is {self.holdout}; it must be at least 0 and below 1: {cure}.")
        if not 0 <= self.max_unknown <= 1:
            findings.append(f"--max_unknown is {self.max_unknown}; it must be a share of the tokens, from 0 to 1.")
        if self.sentences not in SENTENCES:
            findings.append(f"--sentences is '{self.sentences}'; it must be {' or '.join(SENTENCES)}.")
        if self.shard_bytes is not None and self.shard_bytes < 1:
            findings.append(f"--shard_size is {self.shard_bytes}; it must be at least 1 byte.")
        if self.workers is not None and self.workers < 1:
            findings.append(f"--workers is {self.workers}; it must be at least 1.")
        if findings:
            raise UserError(*findings)

    def num_workers(self) -> int:
        """Number of processes to use: ``workers``, or the cores that this process may use."""
        return self.workers or available_cores()

    def shard_numbers(self, count: int) -> range:
        """Numbers of the shards to build among ``count``."""
        return (self.part or Part(1, 1)).shard_numbers(count)


def parse_part(text: str) -> Part:
    """Parse ``2/8``."""
    found = re.fullmatch(r"([0-9]{1,9})/([1-9][0-9]{0,8})", text.strip())
    if not found:
        raise UserError(f"--part is '{text}'; it must be I/N, such as 2/8 for the second part of eight.")
    return Part(int(found[1]), int(found[2]))


def part_of_environment(environment: Mapping[str, str]) -> Part | None:
    """Return the part of this task of a SLURM array, ``srun`` or ``mpirun``; None outside of these or for a single task."""
    if "SLURM_ARRAY_TASK_COUNT" in environment:
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
        cure = "pass --part I/N (--part 1/1 builds all)"
        number, first, last, count = (read_number(environment, name, cure=cure) for name in names)
        if last - first + 1 != count:
            raise UserError(f"{names[0]}: the array {first}…{last} has gaps ({count} tasks): pass --part I/N.")
        return Part(number - first + 1, count, names[0]) if count > 1 else None
    task = find_task(environment)
    return Part(task.rank + 1, task.size, task.variable) if task else None


def plan_shards(sources: list[Source], shard_bytes: int | None) -> list[ShardPlan]:
    """Plan all shards, in order, each of ``shard_bytes`` of text: by default so many that there are ``USUAL_SHARDS`` shards,
    but at least ``SMALLEST_SHARD`` and at most ``LARGEST_SHARD``.
    """
    if shard_bytes is None:
        total = sum(source.num_bytes for source in sources)
        shard_bytes = min(max(total // USUAL_SHARDS, SMALLEST_SHARD), LARGEST_SHARD)
    plans: list[ShardPlan] = [[]]
    room = shard_bytes
    for number, source in enumerate(sources):
        for start, end, size in _units(source, shard_bytes):
            while start < end:
                taken = min(end - start, max(room, 0)) if source.is_divisible else end - start
                if room <= 0 or (plans[-1] and not source.is_divisible and size > room):
                    plans.append([])
                    room = shard_bytes
                    continue
                _append(plans[-1], SourceRange(number, start, start + taken))
                room -= taken if source.is_divisible else size
                start += taken
    return [plan for plan in plans if plan]


def _units(source: Source, shard_bytes: int) -> list[tuple[int, int, int]]:
    """List what a source can be split into as (start, end, bytes); a divisible file is one unit, to be split further."""
    if source.kind in TABLES:
        from mpnet_ds.data.text.tables import unit_bytes

        return [(i, i + 1, size) for i, size in enumerate(unit_bytes(source))]
    if source.kind == "datasets" and not source.num_bytes:  # streamed: its size is unknown
        return [(i, i + 1, shard_bytes) for i in range(source.units)]
    if source.kind == "datasets":
        rows = max(1, min(source.units, source.units * shard_bytes // source.num_bytes))
        size = rows * source.num_bytes // source.units
        return [(i, min(i + rows, source.units), size) for i in range(0, source.units, rows)]
    return [(0, num_units(source), source.num_bytes)]


def _append(plan: ShardPlan, more: SourceRange) -> None:
    """Add a range, joined to the last one if it continues that."""
    if plan and (plan[-1].source, plan[-1].end) == (more.source, more.start):
        more = SourceRange(more.source, plan.pop().start, more.end)
    plan.append(more)


def settings_of(corpus: Corpus, tokenizer_fingerprint: str, options: BuildOptions) -> dict:
    """Collect what a build depends on, as ``plan.json`` and the manifest record it."""
    recorded = asdict(options) | asdict(corpus.options)
    unused = ("dataset_config", "split", "streaming") if corpus.options.dataset is None else ()
    for name in (
        "workers",
        "part",
        "max_unknown",
        "provenance",
        "dataset",
        "keep_white_space",
        *unused,
    ):  # the dataset is one of the sources
        del recorded[name]
    if options.part is not None:
        recorded["part"] = [options.part.number, options.part.of]
    sources = [standard_input.as_recorded(source) for source in corpus.sources]
    settings = {
        "sources": [asdict(source) for source in sources],
        "tokenizer_fingerprint": tokenizer_fingerprint,
        "options": recorded | {"plan": _digest(sources, tokenizer_fingerprint, recorded)},
        "passed_over": str(corpus.passed_over),
    }
    return json.loads(json.dumps(settings))


def _digest(sources: list[Source], tokenizer_fingerprint: str, options: dict) -> str:
    """sha256 (hex) of what all parts of a build have in common; without times, which differ between copies of a corpus."""
    listed = [[source.path, source.num_bytes, source.units, source.version] for source in sources]
    common = {name: value for name, value in options.items() if name not in ("part", "on_error")}
    return hashlib.sha256(json.dumps([listed, tokenizer_fingerprint, common], sort_keys=True).encode()).hexdigest()


def difference(before: dict, now: dict) -> str:
    """Describe the first difference between the settings of two builds; empty if one may continue the other."""
    if before["tokenizer_fingerprint"] != now["tokenizer_fingerprint"]:
        old, new = (settings["tokenizer_fingerprint"][:12] for settings in (before, now))
        return f"the tokenizer was {old} and is now {new}"
    for name, value in now["options"].items():
        was = before["options"].get(name)
        may_change = name == "plan" or (name == "on_error" and was == "stop")  # no shard built so far had a fault
        if was != value and not may_change:
            flag = {"shard_bytes": "shard_size"}.get(name, name)
            return f"--{flag} was {was} and is now {value}"
    old, new = ({source["path"]: source for source in settings["sources"]} for settings in (before, now))
    for path in old.keys() | new.keys():
        if path not in new or path not in old:
            return f"{path} is {'gone' if path in old else 'new'}"
        if old[path] != new[path]:
            return f"{path} has changed: it was {_describe(old[path])} and is now {_describe(new[path])}"
    order = [[source["path"] for source in settings["sources"]] for settings in (before, now)]
    return "the sources are in another order" if order[0] != order[1] else ""


def _describe(source: dict) -> str:
    time = datetime.fromtimestamp(source["modified"]).isoformat(" ", "microseconds") if source["modified"] else ""
    return " ".join(filter(None, (f"{source['num_bytes']:,} bytes", time, source["version"][:12])))
