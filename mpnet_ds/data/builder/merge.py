"""Makes one dataset of several: by reference, or by copying their shards.

    january/  shard-00000.bin .idx          merged/  dataset.json   shards "../january/shard-00000",
    february/ shard-00000.bin .idx    ──►            tokenizer/             "../february/shard-00000"
    each with dataset.json, tokenizer/               holdout/       the same of january/holdout, february/holdout

Shards keep their order, datasets that of the arguments, and each shard its own index: so documents stay what they are.
By reference nothing is read but manifests, and the paths are relative: the folders may move, but only together. With
``copy`` the shards are numbered anew, and their checksums compared on the way.

*Parts of one build* (``build_dataset.py --part I/N``; ``options`` of their manifests say ``part`` and ``plan``) are put
in their own order. All must be there, and the result has the shards, and so the samples and the checksum, of a build
on one machine. They may be merged into the very folder that holds them.
"""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import mpnet_ds
from mpnet_ds.data.storage.manifest import FILE_NAME, HOLDOUT, MIB, TOKENIZER, DatasetManifest, FileRecord, ShardRecord
from mpnet_ds.errors import UserError
from mpnet_ds.files import new_folder, sync_files
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
    """Merges the datasets in ``folders`` into ``output`` and returns its manifest.

    Args:
        folders: in the order that their shards shall have.
        output: a new folder; or, by reference, one that holds nothing but ``folders``.
        copy: copy the shards, so that ``output`` stands alone.
        partial_holdout: let the merged holdout come from those that have one. Otherwise all have one, or none: a text
            held out of one dataset may well be in another that holds nothing out.
    Raises:
        UserError: no two tokenizers, no dataset twice, no part missing, nothing damaged, room on the disk.
    """
    datasets = _in_order_of_parts(_load(folders))
    holdouts = _holdouts(datasets, partial_holdout)
    _check_alike(datasets | holdouts)
    _check_twice(datasets)
    for folder, manifest in datasets.items():
        _check_tokenizer(folder, manifest)
    output = Path(output).resolve()
    every = (datasets | holdouts).items()
    total = sum(record.bytes for folder, manifest in every for _, _, record in manifest.files(folder)) if copy else 0
    with (
        _output_folder(output, datasets, copy) as place,
        Progress("Copying", total, unit="B", enabled=show_progress and copy) as progress,
    ):
        if total > (free := shutil.disk_usage(place).free):
            found = f"copying takes {total:,} bytes, {place.parent} has {free:,} free"
            raise UserError(f"{found}: make room, or merge by reference.")
        writer = _MergeWriter(place, output, copy, progress)
        if holdouts:
            (place / HOLDOUT).mkdir(exist_ok=True)
            writer.write(holdouts, Path(HOLDOUT))
        return writer.write(datasets, Path())


def _load(folders: list[str | Path]) -> Datasets:
    datasets: Datasets = {}
    for named in folders:
        manifest, folder = DatasetManifest.load(named), Path(named).resolve()
        if folder in datasets:
            raise UserError(f"{named} is named twice: name each dataset once.")
        manifest.check_sizes(folder)
        datasets[folder] = manifest
    if not datasets:
        raise UserError("no dataset to merge: name at least one folder.")
    return datasets


def _check_tokenizer(folder: Path, manifest: DatasetManifest) -> None:
    if PretrainingTokenizer.load(folder / TOKENIZER).fingerprint != manifest.tokenizer_fingerprint:
        raise UserError(f"{folder / TOKENIZER} is not the tokenizer that {folder} was built with: put that one back.")


def _check_twice(datasets: Datasets) -> None:
    """A shard may be there twice where one of the datasets was merged of another by reference."""
    owner: dict[Path, Path] = {}
    for folder, manifest in datasets.items():
        for shard in manifest.shards:
            path = (folder / shard.name).resolve()
            if path in owner:
                raise UserError(f"{path} is in {owner[path]} and in {folder}: merge each dataset once.")
            owner[path] = folder


def _check_alike(datasets: Datasets) -> None:
    first, *others = datasets
    for other in others:
        for name in MUST_AGREE:
            here, there = getattr(datasets[first], name), getattr(datasets[other], name)
            if here != there:
                found = f"{first} has {name} {here}, {other} has {there}"
                raise UserError(f"{found}: only datasets of one tokenizer can be merged. Build one of them again.")


def _in_order_of_parts(datasets: Datasets) -> Datasets:
    """Parts of one build, complete and sorted; other datasets as they come."""
    parts = {folder: manifest.options["part"] for folder, manifest in datasets.items() if "part" in manifest.options}
    if not parts:
        return datasets
    first = next(iter(parts))
    total = parts[first][1]
    folder_of: dict[int, Path] = {}
    for folder, manifest in datasets.items():
        if folder not in parts:
            raise UserError(f"{first} is one part of a build, {folder} a whole dataset: merge the parts first.")
        number, its_total = parts[folder]
        if (its_total, manifest.options.get("plan")) != (total, datasets[first].options.get("plan")):
            what = f"{first} and {folder} are parts of different builds (other input, tokenizer or options)"
            raise UserError(f"{what}: merge the parts of each build first.")
        if number in folder_of:
            raise UserError(f"part {number} of {total} is there twice: {folder_of[number]} and {folder}.")
        folder_of[number] = folder
    missing = [number for number in range(1, total + 1) if number not in folder_of]
    if missing:
        which = ", ".join(str(number) for number in missing[:10]) + (" …" if len(missing) > 10 else "")
        verb = "part {} of {} is missing" if len(missing) == 1 else "parts {} of {} are missing"
        raise UserError(f"{verb.format(which, total)}: build with --part {missing[0]}/{total}, or name its folder too.")
    return {folder_of[number]: datasets[folder_of[number]] for number in sorted(folder_of)}


def _holdouts(datasets: Datasets, partial: bool) -> Datasets:
    """The holdouts of the datasets, in the same order. A part of a build may have none: no text fell to it."""
    found = [folder / HOLDOUT for folder in datasets if (folder / HOLDOUT / FILE_NAME).is_file()]
    without = [folder for folder in datasets if folder / HOLDOUT not in found]
    are_parts = any("part" in manifest.options for manifest in datasets.values())
    if found and without and not (partial or are_parts):
        what = f"{found[0].parent} has a holdout, {without[0]} has none"
        raise UserError(f"{what}: build that one with --holdout too, or merge with --partial_holdout.")
    return _load(found) if found else {}


def _output_folder(output: Path, datasets: Datasets, copy: bool) -> AbstractContextManager[Path]:
    """A new folder; or ``output`` itself where it holds the datasets, so that the manifest alone makes the difference."""
    if copy or not any(folder.parent == output for folder in datasets):
        return new_folder(output)
    if (output / FILE_NAME).exists():
        raise UserError(f"{output} is a dataset already: remove {output / FILE_NAME} to merge into it again.")
    ours = {TOKENIZER, HOLDOUT, TOKENIZER + ".partial", FILE_NAME + ".tmp"}  # of a merge that was interrupted
    for entry in sorted(output.iterdir()):
        if entry not in datasets and entry.name not in ours and not entry.name.startswith("."):
            raise UserError(f"{output} holds {entry.name}, which is none of the datasets to merge: choose another output.")
    _check_remains(output, datasets)
    if not os.access(output, os.W_OK):
        raise UserError(f"cannot write to {output}: choose another output, or ask for the right to write there.")
    return nullcontext(output)


def _check_remains(output: Path, datasets: Datasets) -> None:
    """What looks like the remains of an interrupted merge may be the user's own: only the very same is overwritten."""
    expected = next(iter(datasets.values())).tokenizer_fingerprint
    for tokenizer in (output / TOKENIZER, output / HOLDOUT / TOKENIZER):
        if tokenizer.exists() and PretrainingTokenizer.load(tokenizer).fingerprint != expected:
            raise UserError(f"{tokenizer} is not the tokenizer of the datasets: choose another output, or move it away.")
    holdout = output / HOLDOUT
    if (holdout / FILE_NAME).exists() and "merged_from" not in DatasetManifest.load(holdout).options:
        raise UserError(f"{holdout} is a dataset of its own: choose another output, or move it away.")


class _MergeWriter:
    """Writes merged datasets below ``place``, which will be called ``output``."""

    def __init__(self, place: Path, output: Path, copy: bool, progress: Progress):
        self.place, self.output, self.copy, self.progress = place, output, copy, progress

    def write(self, datasets: Datasets, where: Path) -> DatasetManifest:
        """One dataset in the subfolder ``where``; its manifest comes last."""
        _copy_tokenizer(next(iter(datasets)) / TOKENIZER, self.place / where / TOKENIZER)
        shards: list[ShardRecord] = []
        for folder, manifest in datasets.items():
            for shard in manifest.shards:
                name = f"shard-{len(shards):05d}" if self.copy else self._path_to(folder / shard.name, where)
                shards.append(replace(shard, name=name))
                if self.copy:
                    for suffix, record in shard.files.items():
                        target = shards[-1].file(self.place / where, suffix)
                        _copy_file(shard.file(folder, suffix), target, record, self.progress)
        merged = _manifest_of(datasets, shards, "copy" if self.copy else "reference")
        merged.save(self.place / where)
        return merged

    def _path_to(self, prefix: Path, where: Path) -> str:
        return Path(os.path.relpath(prefix, self.output / where)).as_posix()


def _copy_tokenizer(source: Path, target: Path) -> None:
    """A copy, whole or not there."""
    if not target.exists():
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        sync_files(partial)
        os.replace(partial, target)


def _copy_file(source: Path, target: Path, record: FileRecord, progress: Progress) -> None:
    """Copies one file and compares what was read with its record; it is on disk when this returns."""
    try:
        with open(source, "rb") as reader, open(target, "wb") as writer:
            found = FileRecord.of_blocks(_copied_blocks(reader, writer, progress))
            writer.flush()
            os.fsync(writer.fileno())
    except OSError as error:
        raise UserError(f"cannot copy {source} to {target}: {error.strerror}.") from error
    if found != record:
        advice = f"tools/inspect_dataset.py {source.parent} --verify says where"
        raise UserError(f"{source} is damaged: its checksums are not those of {FILE_NAME}. {advice}.")


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
    return replace(
        first,
        documents=sum(shard.documents for shard in shards),
        sequences=sum(shard.sequences for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        shards=shards,
        sources=list(sources.values()),
        command=shlex.join(sys.argv),
        tool_version=mpnet_ds.__version__,
        options=shared | {"merged_by": how, "merged_from": [str(folder) for folder in datasets]},
        left_out=_left_out(list(datasets.values())),
    )


def _left_out(manifests: list[DatasetManifest]) -> dict:
    """Counts of left-out documents added up, and the first fault of all."""
    found: dict = {}
    for manifest in manifests:
        for name, value in manifest.left_out.items():
            found[name] = found.get(name, 0) + value if isinstance(value, int) else found.get(name) or value
    return found
