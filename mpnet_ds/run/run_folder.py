"""The output folder of a run: whose run is in it, and where a run resumes.

    OUT/run.json        all resolved settings and versions, of every start; written before its first step
    OUT/metrics.jsonl   see metrics.py
    OUT/tensorboard/    events
    OUT/tokenizer/      a copy of the dataset's tokenizer
    OUT/checkpoints/    see checkpoint/store.py

    OUT/inspection/     state of a run that gave up
    OUT/hang/           stacks of ranks that hung

Two runs are *the same* when model, objective, data, masking, seed and global batch size agree: then one can continue the
other. Length, learning rate, the optimizer's settings and intervals may differ, and so may the ZeRO stage, the precision
and the number of ranks: the checkpoint is converted.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mpnet_ds.checkpoint.store import CheckpointStore, find_checkpoint, read_info, read_save, verify
from mpnet_ds.config.recipe import Recipe
from mpnet_ds.errors import UserError, fault_of_disk
from mpnet_ds.files import LOCK, TEMPORARY, copy_folder, locked, make_folder
from mpnet_ds.preflight.inspection import flatten
from mpnet_ds.preflight.plan import StartingPoint
from mpnet_ds.ranks.disks import TOKEN, Disks
from mpnet_ds.run import history
from mpnet_ds.run_record import FILE_NAME, read_record, starts_of
from mpnet_ds.zero.torch_file import TensorFile


def identity(recipe: Recipe, tokenizer_fingerprint: str, data_checksum: str | list) -> dict:
    """What must agree for a run to be resumed. ``data_checksum`` is a dataset's or a mixture's."""
    return {
        "objective": recipe.objective.section(),
        "model": recipe.model.identity(),
        "data": {key: value for key, value in asdict(recipe.data).items() if key != "license"},
        "seed": recipe.run.seed,
        "global_batch_size": recipe.optimization.global_batch_size,
        "dataset": data_checksum,
        "tokenizer": tokenizer_fingerprint,
    }


@dataclass(frozen=True)
class Setting:
    """What may differ between a checkpoint and the run that resumes from it."""

    world_size: int
    zero_stage: int
    precision: str
    layout: dict = field(default_factory=dict)
    """See ``deepspeed_config.layout``."""


def decide_start(output: Path, resume: str, run_identity: dict, setting: Setting, disks: Disks) -> StartingPoint:
    """Decide where a run begins from ``--output_dir`` and ``--resume``; raises ``UserError`` rather than touch another run.

    Every rank must call it; all get the same answer. Looks at the folder on each disk.

    Args:
        resume: ``auto`` continues the run in ``output`` if there is one; ``never`` refuses it; else the path of a
            checkpoint, or of a run, to resume from. A run that began with this very path is continued.
    """
    began_so = all(disks.on_each(lambda: _check_folder(output, resume, run_identity)))
    found = list_checkpoints(output, disks)
    if any(found) and not all(found):
        raise UserError(_describe_lack(output, found, disks))
    damaged: list[tuple[Path, str]] = []
    if resume in ("auto", "never") or (began_so and any(found)):
        checkpoint = _newest_usable(output, found, damaged, disks)
    else:
        checkpoint = _named_checkpoint(resume, output, disks)
    own = json.loads(json.dumps(run_identity))
    if checkpoint is None:
        return StartingPoint(output, None, own, found=found)
    conversion, *_ = disks.on_each(lambda: _conversion(checkpoint, run_identity, setting))
    return StartingPoint(output, checkpoint, own, conversion, tuple(damaged), found)


def list_checkpoints(output: Path, disks: Disks) -> tuple[tuple[str, ...], ...]:
    """Names of the checkpoints in ``output`` on each disk, oldest first, usable or not; every rank must call it.

    ``latest`` moves when all disks have a manifest: what is newer and not on all disks is what a kill during a save left.
    """
    store = CheckpointStore(output)
    lists = disks.on_each(lambda: ([path.name for path in store.all()], store.latest))
    everywhere = set.intersection(*(set(names) for names, _ in lists))
    last = max(latest for _, latest in lists)
    return tuple(tuple(name for name in names if name in everywhere or name <= last) for names, _ in lists)


def _check_folder(output: Path, resume: str, run_identity: dict) -> bool:
    """Raises ``UserError`` if this run may not be in ``output``; whether a run is in it that began with this ``resume``."""
    record = read_record(output)
    if record is not None:
        if resume == "never":
            raise UserError(f"{output} holds a run: choose another --output_dir, or --resume auto to continue it.")
        difference = _first_difference(record.get("identity", {}), run_identity)
        if difference:
            raise UserError(f"{output} holds another run ({difference}): choose another --output_dir.")
    elif output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: choose another --output_dir.")
    elif _holds_something(output):
        raise UserError(f"{output} is not empty and holds no run ({FILE_NAME} is missing): choose another --output_dir.")
    return record is not None and any(one.get("arguments", {}).get("resume") == resume for one in starts_of(record))


def _describe_lack(output: Path, found: tuple[tuple[str, ...], ...], disks: Disks) -> str:
    """Where some disks have checkpoints and others have none: probably not the hosts that saved them."""
    pairs = list(zip(disks.names, found, strict=True))
    without = "; ".join(name for name, checkpoints in pairs if not checkpoints)
    having = "; ".join(f"{name} ({checkpoints[-1]})" for name, checkpoints in pairs if checkpoints)
    return (
        f"{output} has no checkpoints on {without}, but on {having}: they are on local disks. Start on the hosts that saved "
        "them, in the same order, or copy the folders of all hosts to one that all share."
    )


def _named_checkpoint(resume: str, output: Path, disks: Disks) -> Path:
    """What ``--resume DIR`` means, verified; raises ``UserError`` if it is unusable, or older than what ``output`` has."""

    def find() -> tuple[Path, str]:
        checkpoint, newest = find_checkpoint(resume), CheckpointStore(output).newest()
        if newest is not None and read_info(newest).step > read_info(checkpoint).step:
            raise UserError(
                f"{output} has continued to step {read_info(newest).step} since {checkpoint}: choose another --output_dir, "
                "or remove the later checkpoints first."
            )
        _check_usable(checkpoint)
        return checkpoint, read_save(checkpoint)

    places = disks.on_each(find)
    if len(set(places)) > 1:
        names = "; ".join(f"{checkpoint} on {name}" for (checkpoint, _), name in zip(places, disks.names, strict=True))
        raise UserError(f"--resume {resume} is not of one save on all disks ({names}): name a checkpoint that all have.")
    return places[0][0]


def _newest_usable(output: Path, found: tuple, damaged: list[tuple[Path, str]], disks: Disks) -> Path | None:
    """The newest checkpoint that is whole on all disks; adds those that are not to ``damaged``. None if there are none."""
    store = CheckpointStore(output)
    for name in sorted(set().union(*found), reverse=True):
        checkpoint = store.root / name
        problem = _find_problem(checkpoint, disks)
        if not problem:
            return checkpoint
        damaged.append((checkpoint, problem))
    if damaged:
        raise UserError(
            f"every checkpoint in {store.root} is damaged; the newest: {damaged[0][1]} "
            "To start over take another --output_dir."
        )
    return None


def _find_problem(checkpoint: Path, disks: Disks) -> str:
    """Why a checkpoint cannot be used, on some disk or on all together; empty if it can."""

    def examine() -> tuple[str, str]:
        try:
            _check_usable(checkpoint)
            return "", read_save(checkpoint)
        except UserError as error:
            return disks.at_host(str(error)), ""

    outcomes = disks.on_each(examine)
    problems = [problem for problem, _ in outcomes if problem]
    if not problems and len({save for _, save in outcomes}) > 1:
        return f"{checkpoint.name} is not of one save on {'; '.join(disks.names)}."
    return problems[0] if problems else ""


def _check_usable(checkpoint: Path) -> None:
    """Raises ``UserError`` if a file is missing or damaged, or holds what DeepSpeed, which unpickles anything, would run."""
    verify(checkpoint)
    for shard in checkpoint.glob("*.pt"):
        TensorFile(shard)


def free_output(name: str, run_identity: dict, max_steps: int, may_continue: bool = True) -> Path:
    """``runs/NAME``, or ``runs/NAME-2`` and so on: the first that is free or, if allowed, holds this very run unfinished."""
    number = 1
    while True:
        output = Path("runs") / (name if number == 1 else f"{name}-{number}")
        number += 1
        record = read_record(output)
        if record is None:
            if not _holds_something(output):
                return output
            continue
        newest = CheckpointStore(output).newest()
        unfinished = newest is None or read_info(newest).step < max_steps
        if may_continue and unfinished and not _first_difference(record.get("identity", {}), run_identity):
            return output


@contextmanager
def held(output: Path) -> Iterator[None]:
    """Make the folder and lock it for this process; raises ``UserError`` if it cannot, or another run is in it now."""
    try:
        make_folder(output)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror}. Choose another --output_dir.") from error
    with locked(output / LOCK, f"{output} is in use by another run"):
        yield


def prepare(start: StartingPoint, record: dict, tokenizer_folder: Path) -> None:
    """Write ``run.json`` and the tokenizer's copy, and move damaged checkpoints out of the way."""
    try:
        # First what tells whose folder it is: after a kill at any point from here on, the same command resumes.
        history.write(start.output, record)
        copy_folder(tokenizer_folder, start.output / "tokenizer")
        for checkpoint, _ in start.damaged:
            if checkpoint.exists():  # on another disk it may be missing
                CheckpointStore(start.output).set_aside(checkpoint)
    except OSError as error:
        what = fault_of_disk(error, start.output) or f"cannot write to {start.output}: {error.strerror or error}"
        raise UserError(f"{what}. Nothing was trained; choose another --output_dir, or mend this one.") from error


def _holds_something(output: Path) -> bool:
    """Whether there is more than what a kill during the first write leaves."""
    ours = (FILE_NAME + TEMPORARY, LOCK)
    return output.exists() and any(path.name not in ours and not path.name.startswith(TOKEN) for path in output.iterdir())


def _first_difference(before: dict, now: dict) -> str:
    """First difference between two identities, in words; empty if there is none."""
    then, own = flatten("", before), flatten("", json.loads(json.dumps(now)))  # tuples become lists, as in the file
    for key in dict.fromkeys([*own, *then]):
        if then.get(key) != own.get(key):
            if key == "dataset" and isinstance(own.get(key), list):
                return f"{key}: the datasets, or their shares, are others than then"
            return f"{key} was {_short(then.get(key))}, is now {_short(own.get(key))}"
    return ""


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else text[:16] + '…"'


def _conversion(checkpoint: Path, run_identity: dict, now: Setting) -> str:
    """What was different when the checkpoint was saved; raises ``UserError`` if it is of another run."""
    info = read_info(checkpoint)
    difference = _first_difference(info.identity, run_identity)
    if difference:
        raise UserError(f"{checkpoint} is of another run ({difference}): take its settings, or another checkpoint.")
    pairs = [(f"ZeRO {info.zero_stage}", f"ZeRO {now.zero_stage}"), (info.precision, now.precision)]
    keys = ["optimizer"]
    if now.zero_stage or info.zero_stage:  # at ZeRO 0 every rank has everything
        pairs.append((f"{info.world_size} rank(s)", f"{now.world_size} rank(s)"))
        keys = dict.fromkeys([*info.layout, *now.layout])
    pairs += [(f"{key} {info.layout.get(key, 'unset')}", f"{key} {now.layout.get(key, 'unset')}") for key in keys]
    conversion = ", ".join(f"{before} → {now}" for before, now in pairs if before != now)
    if conversion and "muon" in (info.layout.get("optimizer"), now.layout.get("optimizer")):
        raise UserError(
            f"{checkpoint} cannot be converted ({conversion}), as Muon's states are its own: resume as it was saved, or "
            "export it (convert_to_hf) and start a new run from its weights (--init_from)."
        )
    return conversion
