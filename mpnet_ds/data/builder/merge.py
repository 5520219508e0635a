"""Merging several datasets into one, by reference or by copying their shards.

    january/  shard-00000.bin .idx          merged/  dataset.json   shards "../january/shard-00000",
    february/ shard-00000.bin .idx    ──►            tokenizer/             "../february/shard-00000"
    each with dataset.json, tokenizer/               holdout/       the same of january/holdout, february/holdout

Datasets are joined in the order of the arguments, shards keep their order and their files. By reference, only manifests
are read; the paths are relative, so the folders may be moved, but only together. With ``copy`` the shards are renumbered,
and their checksums are verified while copying.

*Parts of one build* (``build_dataset.py --part I/N``; ``options`` in their manifests hold ``part`` and ``plan``) are put
into their own order. All of them must be there; the result has the same shards, samples and checksum as a build on one
machine. They may be merged into the folder that holds them.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from mpnet_ds.command_line import invocation
from mpnet_ds.data.storage.manifest import FILE_NAME, HOLDOUT, MIB, TOKENIZER, DatasetManifest, FileRecord, ShardRecord
from mpnet_ds.data.storage.piece_counts import add_up
from mpnet_ds.data.storage.provenance import joined
from mpnet_ds.errors import UserError, collecting, each_of, printable
from mpnet_ds.files import copy_folder, new_folder, refuse_existing
from mpnet_ds.progress import Progress
from mpnet_ds.tokenizer import PretrainingTokenizer

MUST_AGREE = ("tokenizer_fingerprint", "vocab_size", "special_ids", "dtype")

Datasets = dict[Path, DatasetManifest]


def merge_datasets(
    folders: list[str | Path],
    output: str | Path,
    copy: bool = False,
    partial_holdout: bool = False,
    show_progress: bool = True,
) -> DatasetManifest:
    """Merge the datasets in ``folders`` into ``output`` and return its manifest.

    Args:
        folders: datasets in the order of the result.
        output: a new folder; or, by reference, one that holds nothing but ``folders``.
        copy: copy the shards, so that ``output`` is self-contained.
        partial_holdout: accept datasets without a holdout beside others that have one. By default this is refused, since
            a text that is held out of one dataset may be training data in another.
    Raises:
        UserError: different tokenizers, a dataset given twice, a missing part, damage, not enough disk space.
    """
    output = Path(output).resolve()
    is_new = copy or not any(Path(named).resolve().parent == output for named in folders)
    datasets, _ = each_of(lambda: _load(folders), lambda: is_new and refuse_existing(output))
    datasets = _in_order_of_parts(datasets)
    holdouts = _holdouts(datasets, partial_holdout)
    _check_same_tokenizer(datasets | holdouts)
    _refuse_duplicates(datasets)
    for folder, manifest in datasets.items():
        if PretrainingTokenizer.load(folder / TOKENIZER).fingerprint != manifest.tokenizer_fingerprint:
            raise UserError(f"{folder / TOKENIZER} is not the tokenizer that {folder} was built with: put that one back.")
    every = (datasets | holdouts).items()
    total = sum(record.bytes for folder, manifest in every for _, _, record in manifest.files(folder)) if copy else 0
    with (
        new_folder(output) if is_new else _folder_of_parts(output, datasets) as folder,
        Progress("Copying", total, unit="B", enabled=show_progress and copy) as progress,
    ):
        if total > (free := shutil.disk_usage(folder).free):
            found = f"copying needs {total:,} bytes, {folder.parent} has {free:,} free"
            raise UserError(f"{found}: free some space, or merge by reference.")
        if holdouts:
            (folder / HOLDOUT).mkdir(exist_ok=True)
            _write(holdouts, folder / HOLDOUT, output / HOLDOUT, copy, progress)
        merged = _write(datasets, folder, output, copy, progress)
    without = [str(folder) for folder, manifest in every if not manifest.piece_counts]
    if without and show_progress:
        cure = f"add them with {invocation('inspect_dataset', output, '--count')}"
        print(f"{without[0]} was built without counts of its pieces, so {output} has none: {cure}.", file=sys.stderr)
    return merged


def _load(folders: list[str | Path]) -> Datasets:
    datasets: Datasets = {}
    findings: list[str] = []
    for named in folders:
        with collecting(findings):
            manifest, folder = DatasetManifest.load(named), Path(named).resolve()
            if folder in datasets:
                raise UserError(f"{named} is given twice: name each dataset once.")
            datasets[folder] = manifest
            manifest.check_sizes(folder)
    if not folders:
        findings.append("no dataset to merge: name at least one folder.")
    if findings:
        raise UserError(*findings)
    return datasets


def _refuse_duplicates(datasets: Datasets) -> None:
    """Raise ``UserError`` if a shard is in two datasets, of which one was merged from the other by reference."""
    owner: dict[Path, Path] = {}
    for folder, manifest in datasets.items():
        for shard in manifest.shards:
            path = (folder / shard.name).resolve()
            if path in owner:
                raise UserError(f"{path} is in {owner[path]} and in {folder}: merge each dataset once.")
            owner[path] = folder


def _check_same_tokenizer(datasets: Datasets) -> None:
    first, *others = datasets
    for other in others:
        for name in MUST_AGREE:
            here, there = getattr(datasets[first], name), getattr(datasets[other], name)
            if here != there:
                found = f"{first} has {name} {here}, {other} has {there}"
                raise UserError(f"{found}: only datasets of the same tokenizer can be merged. Build one of them again.")


def _in_order_of_parts(datasets: Datasets) -> Datasets:
    """Sort the parts of a build and check that all are there; return other datasets unchanged."""
    parts = {folder: manifest.options["part"] for folder, manifest in datasets.items() if "part" in manifest.options}
    if not parts:
        return datasets
    first = next(iter(parts))
    total = parts[first][1]
    folder_of: dict[int, Path] = {}
    for folder, manifest in datasets.items():
        if folder not in parts:
            raise UserError(f"{first} is one part of a build, {folder} is a whole dataset: merge the parts first.")
        number, its_total = parts[folder]
        if (its_total, manifest.options.get("plan")) != (total, datasets[first].options.get("plan")):
            what = f"{first} and {folder} are parts of different builds (other input, tokenizer or options)"
            raise UserError(f"{what}: merge the parts of each build first.")
        if number in folder_of:
            found = f"part {number} of {total} is given twice, as {folder_of[number]} and as {folder}"
            raise UserError(f"{found}: name one of them.")
        folder_of[number] = folder
    missing = [str(number) for number in range(1, total + 1) if number not in folder_of]
    if missing:
        which = f"missing part(s) of {total}: {', '.join(missing[:10])}{' …' if len(missing) > 10 else ''}"
        raise UserError(f"{which}. Build with --part {missing[0]}/{total}, or add its folder.")
    return {folder_of[number]: datasets[folder_of[number]] for number in sorted(folder_of)}


def _holdouts(datasets: Datasets, partial: bool) -> Datasets:
    """Load the holdouts in the same order. A part of a build may have none, if none of its documents is held out."""
    found = [folder / HOLDOUT for folder in datasets if (folder / HOLDOUT / FILE_NAME).is_file()]
    without = [folder for folder in datasets if folder / HOLDOUT not in found]
    are_parts = any("part" in manifest.options for manifest in datasets.values())
    if found and without and not (partial or are_parts):
        what = f"{found[0].parent} has a holdout, {without[0]} has none"
        raise UserError(f"{what}: build the latter with --holdout too, or merge with --partial_holdout.")
    return _load(found) if found else {}


def _folder_of_parts(output: Path, datasets: Datasets) -> AbstractContextManager[Path]:
    """Open ``output``, which holds the datasets and only needs a manifest."""
    if (output / FILE_NAME).exists():
        raise UserError(f"{output} is already a dataset: remove {output / FILE_NAME} to merge into it again.")
    ours = {TOKENIZER, HOLDOUT, TOKENIZER + ".partial", FILE_NAME + ".tmp"}  # of an interrupted merge
    for entry in sorted(output.iterdir()):
        if entry not in datasets and entry.name not in ours and not entry.name.startswith("."):
            raise UserError(f"{output} holds {entry.name}, which is not one of the datasets: choose another --output.")
    _check_leftovers(output, datasets)
    if not os.access(output, os.W_OK):
        raise UserError(f"cannot write to {output}: choose another --output, or get write permission.")
    return nullcontext(output)


def _check_leftovers(output: Path, datasets: Datasets) -> None:
    """Raise ``UserError`` if what looks left over from an interrupted merge is the user's own."""
    expected = next(iter(datasets.values())).tokenizer_fingerprint
    for tokenizer in (output / TOKENIZER, output / HOLDOUT / TOKENIZER):
        if tokenizer.exists() and PretrainingTokenizer.load(tokenizer).fingerprint != expected:
            raise UserError(f"{tokenizer} is not the tokenizer of the datasets: choose another --output, or move it away.")
    holdout = output / HOLDOUT
    if (holdout / FILE_NAME).exists() and "merged_from" not in DatasetManifest.load(holdout).options:
        raise UserError(f"{holdout} is a dataset of its own: choose another --output, or move it away.")


def _write(datasets: Datasets, folder: Path, output: Path, copy: bool, progress: Progress) -> DatasetManifest:
    """Write merged datasets into ``folder``, which will be renamed to ``output``, their manifest last."""
    copy_folder(next(iter(datasets)) / TOKENIZER, folder / TOKENIZER)
    shards: list[ShardRecord] = []
    for source, manifest in datasets.items():
        for shard in manifest.shards:
            if copy:
                shards.append(replace(shard, name=f"shard-{len(shards):05d}"))
                for suffix, record in shard.files.items():
                    _copy_file(shard.file(source, suffix), shards[-1].file(folder, suffix), record, progress)
            else:
                name = os.path.relpath(source / shard.name, output)
                if name != printable(name):
                    raise UserError(f"{source}: {FILE_NAME} cannot hold a path that is not UTF-8: rename it, or add --copy.")
                shards.append(replace(shard, name=name))
    merged = _manifest_of(datasets, shards, "copy" if copy else "reference")
    merged.save(folder)
    return merged


def _copy_file(source: Path, target: Path, record: FileRecord, progress: Progress) -> None:
    """Copy one file to disk and compare what was read with its record."""
    try:
        with open(source, "rb") as reader, open(target, "wb") as writer:
            found = FileRecord.of_blocks(_copied_blocks(reader, writer, progress))
            writer.flush()
            os.fsync(writer.fileno())
    except OSError as error:
        raise UserError(f"cannot copy {source} to {target}: {error.strerror}.") from error
    if found != record:
        advice = f"find the place with {invocation('inspect_dataset', source.parent, '--verify')}"
        raise UserError(f"{source} is damaged: its checksums are not those in {FILE_NAME}; {advice}.")


def _copied_blocks(reader, writer, progress: Progress) -> Iterator[bytes]:
    while block := reader.read(MIB):
        writer.write(block)
        progress.update(len(block))
        yield block


def _manifest_of(datasets: Datasets, shards: list[ShardRecord], how: str) -> DatasetManifest:
    first, *others = datasets.values()
    shared = {
        name: value
        for name, value in first.options.items()
        if name != "part" and all(other.options.get(name) == value for other in others)
    }
    sources = {json.dumps(source, sort_keys=True): source for one in datasets.values() for source in one.sources}
    options = shared | {"merged_by": how, "merged_from": [printable(str(folder)) for folder in datasets]}
    tokenizer = PretrainingTokenizer.load(next(iter(datasets)) / TOKENIZER)
    left_out = _left_out(list(datasets.values()))
    stated = joined(one.provenance for one in datasets.values())
    counts = add_up((one.piece_counts for one in datasets.values()), tokenizer.vocab_size)
    other = {"left_out": left_out, "provenance": stated, "piece_counts": counts}
    return DatasetManifest.of(tokenizer, shards, list(sources.values()), options, **other)


def _left_out(manifests: list[DatasetManifest]) -> dict:
    """Add up the counts of left-out documents, with the first fault of all."""
    found: dict = {}
    for manifest in manifests:
        for name, value in manifest.left_out.items():
            found[name] = found.get(name, 0) + value if isinstance(value, int) else found.get(name) or value
    return found
