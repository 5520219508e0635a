"""Building a dataset: corpus → plan → shards, by several processes → manifest.

While it is being built, a dataset is called ``OUT.partial``:

    plan.json                        sources, tokenizer and options of this build
    shard-00000.bin .idx .json       finished shards; the .json is their record (see shard_builder.py)
    shard-00007.bin.4711.tmp         files that are being written
    .mpnet_ds.lock                   held by the process that builds

The same command continues an interrupted build with the missing shards. At the end the manifest is written, files that
only the build needs are removed, and the folder is renamed to ``OUT`` atomically.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from mpnet_ds.data.builder.plan import BuildOptions, ShardPlan, difference, plan_shards, settings_of
from mpnet_ds.data.builder.shard_builder import TRAINING, BuiltShard, Job, record_path
from mpnet_ds.data.builder.workers import build_shards
from mpnet_ds.data.storage.manifest import FILE_NAME, HOLDOUT, TOKENIZER, DatasetManifest
from mpnet_ds.data.storage.piece_counts import add_up, decode
from mpnet_ds.data.storage.provenance import Provenance
from mpnet_ds.data.text.corpus import Corpus, check_unchanged, num_units
from mpnet_ds.data.text.source import STANDARD_INPUT, ReadOptions, describe_faults, warn_of_empty
from mpnet_ds.data.text.standard_input import STORED, stored_standard_input
from mpnet_ds.errors import UserError, fault_of_disk
from mpnet_ds.files import (
    BUILD_PLAN,
    LOCK,
    TEMPORARY,
    empty_folder,
    partial_folder,
    rename_into_place,
    sync_files,
    sync_folder,
    write_atomically,
)
from mpnet_ds.interrupts import interrupt_once
from mpnet_ds.machine import nearest_existing_folder, percent
from mpnet_ds.progress import Progress
from mpnet_ds.tokenizer import PretrainingTokenizer


def build_dataset(
    inputs: list[str],
    tokenizer: str | Path,
    output: str | Path,
    options: BuildOptions | None = None,
    reading: ReadOptions | None = None,
    show_progress: bool = True,
) -> DatasetManifest:
    """Build the dataset folder ``output`` and return its manifest.

    Args:
        inputs: files, folders, globs, ``-`` for standard input, or ``builtin-sample``; see ``corpus.py``.
        tokenizer: folder of the tokenizer; a copy of it goes into the dataset.
        options: several ``workers`` import this program's main module again, as ``multiprocessing`` does, so a script that
            calls this needs ``if __name__ == "__main__":``.
    Raises:
        UserError: bad input; ``output`` holds something else; ``OUT.partial`` holds an interrupted build of something else.
    """
    options, reading = options or BuildOptions(), reading or ReadOptions()
    output = Path(output).resolve()
    if options.part is not None:
        if STANDARD_INPUT in inputs:
            raise UserError("--part cannot read standard input, since all machines must see the same text: use a file.")
        if (output / FILE_NAME).exists():
            raise UserError(f"{output} is already a dataset, and parts need a folder of their own: choose another --output.")
        output = output / options.part.folder_name
    _check_outside(output, inputs)
    loaded = PretrainingTokenizer.load(tokenizer)
    if not loaded.is_local:
        if options.sentences == "line":
            why = "its ids of a line depend on the rest of the document"
            raise UserError(f"{tokenizer} is a {loaded.kind} tokenizer, and {why}: add --sentences document.")
        if show_progress:
            print(f"{loaded.kind} uses the encoder of the tokenizers library, much slower than WordPiece.", file=sys.stderr)
    with _build_folder(output) as folder, stored_standard_input(inputs, folder, reading.stdin_format) as files:
        corpus = Corpus(files, reading)
        if corpus.passed_over.count and show_progress:
            print(corpus.passed_over, file=sys.stderr, flush=True)
        settings = settings_of(corpus, loaded.fingerprint, options)
        finished = _finished_already(output, folder, settings)
        if finished is not None:
            return _restated(output, finished, options.provenance)
        _continue_or_start(folder, settings)
        plans = plan_shards(corpus.sources, options.shard_bytes)
        numbers = options.shard_numbers(len(plans))
        job = Job(str(folder), str(tokenizer), corpus.sources, reading, options)
        if options.holdout:
            (folder / HOLDOUT).mkdir(exist_ok=True)
        _build_missing(job, {number: plans[number] for number in numbers}, show_progress)
        for source in corpus.sources:
            check_unchanged(source)
        return _finish(folder, output, loaded, settings, numbers, options)


def _check_outside(output: Path, inputs: list[str]) -> None:
    for name in inputs:
        folder = Path(os.path.realpath(name))  # resolve() raises for a link to itself
        if folder.is_dir() and (folder == output or folder in output.parents):
            raise UserError(f"--output {output} is inside --input {name} and would be read as text: choose another folder.")


@contextmanager
def _build_folder(output: Path) -> Iterator[Path]:
    """Open ``OUT.partial``; after a failure it is kept if it holds finished shards."""
    try:
        with interrupt_once(), partial_folder(output) as folder:
            _remove_unfinished_files(folder)
            try:
                yield folder
            except BaseException as error:
                _say_how_to_continue(folder, error)
                if not _has_finished_shards(folder):
                    shutil.rmtree(folder, ignore_errors=True)
                raise
    except Exception as error:
        fault = fault_of_disk(error, output)
        if fault is None:
            raise
        free = shutil.disk_usage(nearest_existing_folder(output)).free
        raise UserError(
            f"{fault}, {free:,} bytes are free. Free some space (--dry_run estimates how much is needed); "
            "the same command continues this build."
        ) from error


def _remove_unfinished_files(folder: Path) -> None:
    for path in folder.rglob(f"*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def _has_finished_shards(folder: Path) -> bool:
    return (folder / FILE_NAME).exists() or any(folder.glob("shard-*.json"))


def _say_how_to_continue(folder: Path, error: BaseException) -> None:
    """Add to an interrupt, or to an error in the data, that finished shards are kept."""
    count = len(list(folder.glob("shard-*.json")))
    if isinstance(error, KeyboardInterrupt) and count:
        error.args = (f"{count} finished shards are kept; the same command continues this build.",)
    elif isinstance(error, UserError) and count and "--on_error" in str(error):
        error.args = (f"{error} ({count} finished shards are kept; the same command continues, also with --on_error.)",)


def _finished_already(output: Path, folder: Path, settings: dict) -> DatasetManifest | None:
    """Return the manifest if this very dataset exists; rename its folder first if only that was left to do."""
    if (folder / FILE_NAME).exists():
        _refuse_if_different(folder, difference(asdict(DatasetManifest.load(folder)), settings))
        return _rename_into_place(folder, output)
    if not output.exists():
        return None
    if (output / FILE_NAME).is_file():
        try:
            manifest = _checked(output, settings)
            (output / LOCK).unlink(missing_ok=True)  # of a build that was killed at its very end
            shutil.rmtree(folder)
            return manifest
        except UserError as error:
            raise UserError(f"{output} already exists. {error} Choose another --output, or remove it first.") from error
    if not output.is_dir() or any(output.iterdir()):
        raise UserError(f"{output} exists and is not empty: choose another --output or remove it.")
    return None


def _restated(output: Path, manifest: DatasetManifest, given: Provenance) -> DatasetManifest:
    """The manifest of a finished dataset, rewritten, and its holdout's, where other statements are given for it now."""
    if manifest.provenance.updated(given) == manifest.provenance:
        return manifest
    for folder in (output, output / HOLDOUT):
        if (folder / FILE_NAME).is_file():
            before = DatasetManifest.load(folder)
            replace(before, provenance=before.provenance.updated(given)).save(folder)
    return DatasetManifest.load(output)


def _checked(output: Path, settings: dict) -> DatasetManifest:
    """Return the manifest of a finished dataset; raise ``UserError`` if it is damaged or ``settings`` make another one."""
    manifest = DatasetManifest.load(output)
    what = difference(asdict(manifest), settings)
    if what:
        raise UserError(f"It holds another dataset ({what}).")
    manifest.check_sizes(output)
    PretrainingTokenizer.load(output / TOKENIZER)
    if settings["options"]["holdout"]:
        DatasetManifest.load(output / HOLDOUT).check_sizes(output / HOLDOUT)
    return manifest


def _continue_or_start(folder: Path, settings: dict) -> None:
    """Write ``plan.json``; refuse finished shards of another build, and remove whatever else is there."""
    plan = folder / BUILD_PLAN
    if plan.exists() and _has_finished_shards(folder):
        try:
            what = difference(json.loads(plan.read_text(encoding="utf-8")), settings)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{plan} is damaged ({error}): remove {folder} and build again.") from error
        _refuse_if_different(folder, what)
    else:  # nothing to continue: files here may be of a build with other options
        empty_folder(folder, keep=STORED)
    write_atomically(plan, json.dumps(settings, indent=1) + "\n")


def _refuse_if_different(folder: Path, what: str) -> None:
    if what:
        raise UserError(f"{folder} holds an interrupted build of something else ({what}): continue that, or remove it.")


def _build_missing(job: Job, plans: dict[int, ShardPlan], show_progress: bool) -> None:
    missing = {number: plan for number, plan in plans.items() if not _is_finished(job, number)}
    if len(missing) < len(plans) and show_progress:
        print(f"Continuing: {len(plans) - len(missing)} of {len(plans)} shards are finished.", file=sys.stderr, flush=True)
    sizes = [_bytes_of(job, plan) for plan in missing.values()]
    if missing:
        with Progress("Building", sum(sizes) or None, unit="B", enabled=show_progress) as progress:
            build_shards(job, missing, progress.update)


def _is_finished(job: Job, number: int) -> bool:
    """Whether a shard's record and the files that it names are there; a record of other files is deleted."""
    path = record_path(Path(job.folder), number)
    try:
        built = BuiltShard.load(path)
        is_finished = all(shard.has_its_files(job.side(side)) for side, shard in built.shards.items())
        for text in built.piece_counts.values():
            decode(text)
    except FileNotFoundError:
        return False
    except ValueError:  # the record itself was cut off, by a full disk for example: the shard is built again
        is_finished = False
    if not is_finished:
        path.unlink()
    return is_finished


def _bytes_of(job: Job, plan: ShardPlan) -> int:
    """Size of the text of a shard in bytes, as a share of its sources."""
    sources = [(job.sources[part.source], part.end - part.start) for part in plan]
    return sum(source.num_bytes * units // num_units(source) for source, units in sources)


def _finish(
    folder: Path, output: Path, tokenizer: PretrainingTokenizer, settings: dict, numbers: range, options: BuildOptions
) -> DatasetManifest:
    """Write the manifests, remove what only the build needed, and rename the folder."""
    holdout, require_documents, max_unknown = options.holdout, options.part is None, options.max_unknown
    records = [BuiltShard.load(record_path(folder, number)) for number in numbers]
    if holdout:
        held_out = _manifest(tokenizer, settings, HOLDOUT, records, options.provenance)
        if require_documents and not held_out.documents:
            _discard(folder)
            raise UserError(f"--holdout {holdout} left no document for evaluation: use a larger share or more text.")
        _save(held_out, tokenizer, folder / HOLDOUT)
    manifest = _manifest(tokenizer, settings, TRAINING, records, options.provenance)
    if require_documents and not manifest.documents:
        _discard(folder)
        names = ", ".join(source["path"] for source in settings["sources"][:3])
        empty, faulty = (manifest.left_out[f"{kind}_documents"] for kind in ("empty", "faulty"))
        no_text = warn_of_empty(empty, empty, settings["options"]["text_field"]) or "it holds no text."
        if faulty:
            no_text = f"what can be read holds no text. {describe_faults(faulty, manifest.left_out['first_fault'])}"
        why = "use a smaller --holdout." if holdout and held_out.documents else no_text
        raise UserError(f"no document for training in {names}: {why}")
    if manifest.unknown_tokens > max_unknown * manifest.tokens:
        _discard(folder)
        found = f"{percent(manifest.unknown_tokens, manifest.tokens)} of the tokens are {tokenizer.unknown}"
        cure = f"train a tokenizer on this text, or allow more than --max_unknown {max_unknown}"
        raise UserError(f"{found}: {tokenizer.origin} cannot write them; {cure}.")
    _save(manifest, tokenizer, folder)
    return _rename_into_place(folder, output)


def _discard(folder: Path) -> None:
    """Delete the records of a build without result, so that its folder is removed."""
    for path in folder.glob("shard-*.json"):
        path.unlink()


def _manifest(
    tokenizer: PretrainingTokenizer, settings: dict, side: str, records: list[BuiltShard], provenance: Provenance
) -> DatasetManifest:
    having = [record for record in records if side in record.shards]
    shards = [record.shards[side] for record in having]
    counts = add_up((record.piece_counts.get(side, "") for record in having), tokenizer.vocab_size)
    return DatasetManifest.of(
        tokenizer,
        shards,
        settings["sources"],
        settings["options"],
        provenance=provenance,
        piece_counts=counts,
        left_out={
            "empty_documents": sum(record.empty_documents for record in records),
            "faulty_documents": sum(record.faulty_documents for record in records),
            "first_fault": next((record.first_fault for record in records if record.first_fault), ""),
            "passed_over": settings["passed_over"],
        },
    )


def _save(manifest: DatasetManifest, tokenizer: PretrainingTokenizer, folder: Path) -> None:
    manifest.check_sizes(folder)
    tokenizer.save(folder / TOKENIZER)
    sync_files(folder / TOKENIZER)
    manifest.save(folder)


def _rename_into_place(folder: Path, output: Path) -> DatasetManifest:
    for path in (folder / BUILD_PLAN, *folder.glob("shard-*.json"), *folder.glob(f"{STORED}*")):
        path.unlink(missing_ok=True)
    _remove_unfinished_files(folder)  # of workers that outlived a build that was killed just before this one
    sync_folder(folder)
    rename_into_place(folder, output)
    return DatasetManifest.load(output)
