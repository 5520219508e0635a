"""Files of a checkpoint that are on other hosts' disks.

Where hosts save to local disks, each disk has a folder of the same name with its ranks' shards, what every host needs (the
model's file at ZeRO 0 to 2, the tokenizer) and a manifest. That manifest lists under ``elsewhere`` what the other disks
have: so each folder can be checked by itself, and a folder into which all were copied is a complete checkpoint.

    "elsewhere": [{"host": "node-b", "folder": "/scratch/run/checkpoints/step-00000200", "files": {NAME: RECORD, …}}, …]

A record is size, checksums and, for what a rank wrote, the rank. Files that every disk has are equal byte for byte.
"""

from collections.abc import Iterator
from pathlib import Path

from mpnet_ds.errors import UserError
from mpnet_ds.ranks.disks import gather_command


def elsewhere_of(number: int, disks: list[dict]) -> list[dict]:
    """Entries for the manifest of disk ``number``; ``disks`` are such entries with all files of each disk."""
    own = disks[number]["files"].keys()
    others = [disk for place, disk in enumerate(disks) if place != number]
    return [
        other | {"files": {name: other["files"][name] for name in sorted(other["files"].keys() - own)}} for other in others
    ]


def files_elsewhere(elsewhere: list[dict]) -> dict[str, dict]:
    """Name → record of all files on other disks."""
    return {name: record for disk in elsewhere for name, record in disk["files"].items()}


def find_missing(folder: Path, elsewhere: list[dict], rank: int | None = None) -> Iterator[tuple[dict, list[str]]]:
    """Yield other disks with the names of their files that were not copied here; with ``rank`` only those that it wrote."""
    for disk in elsewhere:
        wanted = [name for name, record in disk["files"].items() if rank is None or record.get("rank") == rank]
        if missing := [name for name in wanted if not (folder / name).is_file()]:
            yield disk, missing


def check_gathered(folder: Path, elsewhere: list[dict], why: str = "") -> None:
    """Raise ``UserError`` if files are missing here, naming for each host one of them and how to copy them.

    ``why``: what needs the files of all hosts; empty for a reader of the whole checkpoint.
    """
    findings = []
    for disk, missing in find_missing(folder, elsewhere):
        files = f"{missing[0]} and {len(missing) - 1} more are" if len(missing) > 1 else f"{missing[0]} is"
        found = f"{folder}: {files} on a local disk of {disk['host']}{why and f', and {why}'}"
        findings.append(f"{found}. Copy what is missing: {_command(disk, folder)}")
    if findings:
        raise UserError(*findings)


def check_rank(folder: Path, elsewhere: list[dict], rank: int) -> None:
    """Raise ``UserError`` if what ``rank`` saved is on another disk than that of its present host."""
    for disk, missing in find_missing(folder, elsewhere, rank):
        raise UserError(
            f"{folder}: {missing[0]}, from which rank {rank} resumes, is on a local disk of {disk['host']}. Start on the "
            f"hosts that saved it, in the same order, or copy it: {_command(disk, folder)}"
        )


def _command(disk: dict, folder: Path) -> str:
    return gather_command(disk["host"], disk["folder"], folder.absolute())


def is_sound(elsewhere) -> bool:
    """Whether a manifest's value under this key has the form above."""
    kinds = (("host", str), ("folder", str), ("files", dict))
    return isinstance(elsewhere, list) and all(
        isinstance(disk, dict) and all(isinstance(disk.get(key), kind) for key, kind in kinds) for disk in elsewhere
    )
