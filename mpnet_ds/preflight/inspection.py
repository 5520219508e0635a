"""Inspection of a run before a model is built, on every rank; all findings are reported at once.

Each rank makes an ``Inspection``: it gathers findings, of which some are fatal, and facts, in which all ranks must agree.
Then the ranks gather all inspections, and ``raise_if_fatal`` joins them: every rank raises the same ``UserError`` with
everything that must be changed, or continues with the same warnings.

What is checked is in checks.py.
"""

import json
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from mpnet_ds.data.samples.dataset import PretrainingDataset
from mpnet_ds.errors import AgreedError, UserError
from mpnet_ds.findings import Finding, describe_disagreements
from mpnet_ds.preflight.plan import RunPlan
from mpnet_ds.ranks import process_group
from mpnet_ds.ranks.disks import Disks
from mpnet_ds.ranks.launchers import name_ranks
from mpnet_ds.ranks.process_group import Ranks

DATA, EVAL_DATA = "the dataset's checksum", "the evaluation data's checksum"
"""Names of the facts about checksums."""
MOST_DIFFERENCES = 8  # that are named


class Check(NamedTuple):
    """A check and what it looks at."""

    function: Callable[[RunPlan, Ranks, Disks], list[Finding]]
    needs: tuple[str, ...] = ()
    """Fields of the plan, ``ranks`` and ``disks`` that must be known before it can run."""


@dataclass
class Inspection:
    """Findings and facts of one rank."""

    rank: int = 0
    host: str = field(default_factory=socket.gethostname)
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """Name → value that can be written as JSON; all ranks that know it must have the same."""
    checked: list[str] = field(default_factory=list, repr=False)
    """Names of checks that have run."""

    def attempt(self, function: Callable[[], Any]):
        """Call a function and return its result; None where it raises a ``UserError``, whose texts become findings."""
        try:
            return function()
        except UserError as error:
            self.findings += map(Finding, error.findings)
        except PermissionError as error:
            self.findings.append(Finding(f"{error.filename}: permission denied."))
        return None

    def take(self, examined: tuple[Any, Iterable[str]]):
        """Return what is valid of something examined, and add what is wrong with the rest to the findings."""
        valid, texts = examined
        self.add(map(Finding, texts))
        return valid

    def add(self, findings: Iterable[Finding]) -> None:
        """Add the findings of a check."""
        self.findings += findings

    def run(self, checks: Iterable[Check], plan: RunPlan, ranks: Ranks | None = None, disks: Disks | None = None) -> None:
        """Run those checks whose needs are known by now, each once; ``ranks`` and ``disks`` are None until they are."""
        known = {name for name, value in (*vars(plan).items(), ("ranks", ranks), ("disks", disks)) if value is not None}
        for check in checks:
            name = check.function.__name__
            if name not in self.checked and known.issuperset(check.needs):
                self.checked.append(name)
                self.add(self.attempt(partial(check.function, plan, ranks, disks)) or [])

    @property
    def is_fatal(self) -> bool:
        """Whether this rank cannot continue."""
        return any(finding.is_fatal for finding in self.findings)


def gather_findings(
    inspection: Inspection, ranks: process_group.Ranks, datasets: Sequence[PretrainingDataset] = ()
) -> list[str]:
    """Warnings of all ranks; ``UserError`` where any rank cannot continue. Every rank must call it.

    ``datasets``: of this rank, whose files are named where those of other ranks differ.
    """
    inspections = ranks.gather(inspection)
    if any(differ(inspections, name) for name in (DATA, EVAL_DATA)):
        inspection.facts |= facts_of_files(datasets)  # to name the files
        inspections = ranks.gather(inspection)
    return raise_if_fatal(inspections)


def raise_if_fatal(inspections: list[Inspection]) -> list[str]:
    """Warnings of all ranks; raises one ``AgreedError`` with everything that is fatal.

    What all ranks found is said once; what some found, with these ranks and their hosts.
    """
    found: dict[Finding, list[Inspection]] = {}
    for inspection in inspections:
        for finding in dict.fromkeys(inspection.findings):
            found.setdefault(finding, []).append(inspection)
    for finding in disagreements(inspections):
        found[finding] = inspections
    texts = {
        finding: finding.text if len(who) == len(inspections) else f"{_name_ranks(who)}: {finding.text}"
        for finding, who in found.items()
    }
    fatal = [text for finding, text in texts.items() if finding.is_fatal]
    if fatal:
        raise AgreedError(*fatal)
    return list(texts.values())


def disagreements(inspections: list[Inspection]) -> list[Finding]:
    """A finding for each fact in which the ranks that know it differ: what most have, and who has something else."""
    facts = [(inspection, inspection.facts) for inspection in inspections]  # where it is even, rank 0 is right
    texts = list(describe_disagreements(facts, _name_ranks, "ranks"))
    if len(texts) > MOST_DIFFERENCES:
        more = len(texts) - MOST_DIFFERENCES
        texts[MOST_DIFFERENCES:] = [f"and {more} more differences between the ranks."]
    return list(map(Finding, texts))


def differ(inspections: list[Inspection], name: str) -> bool:
    """Whether the ranks that know a fact disagree on it."""
    return len({json.dumps(found.facts[name]) for found in inspections if name in found.facts}) > 1


def facts_of_files(datasets: Iterable[PretrainingDataset]) -> dict[str, str]:
    """Facts by which the files can be named in which two copies of a dataset differ."""
    facts = {}
    for data in datasets:
        files = list(data.manifest.files(data.folder))
        facts[f"the number of files of {data.folder}"] = str(len(files))
        facts |= {f"the sha256 of {path}": record.sha256 for _, path, record in files}
    return facts


def flatten(prefix: str, value: Any) -> dict[str, Any]:
    """Facts of a nested dict, one for each value: ``{"recipe.run.seed": 0, …}``; ``prefix`` may be empty."""
    if not isinstance(value, dict):
        return {prefix: value}
    places = ((f"{prefix}.{key}" if prefix else key, inner) for key, inner in value.items())
    return {key: fact for place, inner in places for key, fact in flatten(place, inner).items()}


def _name_ranks(inspections: list[Inspection]) -> str:
    return name_ranks([found.rank for found in inspections], {found.rank: found.host for found in inspections})
