"""The output folder of a run: whose run is in it, and where a run goes on.

    OUT/run.json        all resolved settings and versions, written before the first update
    OUT/metrics.jsonl   see metrics.py
    OUT/tensorboard/    events
    OUT/tokenizer/      a copy of the dataset's tokenizer
    OUT/checkpoints/    see checkpoint/store.py

Two runs are *the same* when model, objective, data, masking, seed and global batch size agree: then one can continue the
other. Length, learning rate and intervals may differ; betas and weight decay stay as they were saved.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from mpnet_ds.checkpoint.store import CheckpointStore, find_checkpoint, read_info, verify
from mpnet_ds.checkpoint.zero_shards import load_shard
from mpnet_ds.errors import UserError
from mpnet_ds.files import write_atomically
from mpnet_ds.training.recipe import DataRecipe, Recipe

FILE_NAME = "run.json"


@dataclass(frozen=True)
class Start:
    """Where a run begins."""

    output: Path
    checkpoint: Path | None
    """Whole and verified; None at the beginning."""
    identity: dict
    """Of this run, see ``identity``."""

    @property
    def step(self) -> int:
        """Updates that are done already."""
        return read_info(self.checkpoint).step if self.checkpoint else 0


def identity(recipe: Recipe, tokenizer_fingerprint: str, data_checksum: str | list) -> dict:
    """What must agree for a run to be continued. ``data_checksum`` is a dataset's or a mixture's."""
    return {
        "objective": recipe.objective,
        "model": asdict(recipe.model),
        "data": asdict(recipe.data),
        "seed": recipe.run.seed,
        "global_batch_size": recipe.optimization.global_batch_size,
        "dataset": data_checksum,
        "tokenizer": tokenizer_fingerprint,
    }


def decide_start(output: Path, resume: str, run_identity: dict, world_size: int, zero_stage: int, precision: str) -> Start:
    """What ``--output_dir`` and ``--resume`` mean together; raises ``UserError`` rather than touch another run.

    Args:
        resume: ``auto`` continues the run in ``output`` if there is one; ``never`` refuses it; else the path of a
            checkpoint, or of a run, to go on from.
    """
    record = _read_record(output)
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
    if resume in ("auto", "never"):
        checkpoint = CheckpointStore(output).newest()
    else:
        checkpoint = find_checkpoint(resume)
        newest = CheckpointStore(output).newest()
        if newest is not None and read_info(newest).step > read_info(checkpoint).step:
            raise UserError(
                f"{output} has gone on to update {read_info(newest).step} since {checkpoint}: choose another --output_dir, "
                "or remove the later checkpoints first."
            )
    if checkpoint is not None:
        verify(checkpoint)
        for shard in checkpoint.glob("*.pt"):
            load_shard(shard)  # refuses what DeepSpeed, which unpickles anything, would run
        _check_fits(checkpoint, run_identity, world_size, zero_stage, precision)
    return Start(output, checkpoint, json.loads(json.dumps(run_identity)))


def free_output(name: str, run_identity: dict, max_steps: int, may_continue: bool = True) -> Path:
    """``runs/NAME``, or ``runs/NAME-2`` and so on: the first that is free or, if allowed, holds this very run unfinished."""
    number = 1
    while True:
        output = Path("runs") / (name if number == 1 else f"{name}-{number}")
        number += 1
        record = _read_record(output)
        if record is None:
            if not _holds_something(output):
                return output
            continue
        newest = CheckpointStore(output).newest()
        unfinished = newest is None or read_info(newest).step < max_steps
        if may_continue and unfinished and not _first_difference(record.get("identity", {}), run_identity):
            return output


def prepare(start: Start, record: dict, tokenizer_folder: Path) -> None:
    """Writes ``run.json`` and the tokenizer's copy."""
    try:
        start.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {start.output}: {error.strerror}. Choose another --output_dir.") from error
    # First what tells whose folder it is: after a kill at any point from here on, the same command goes on.
    write_atomically(start.output / FILE_NAME, json.dumps(record, indent=2) + "\n")
    shutil.copytree(tokenizer_folder, start.output / "tokenizer", dirs_exist_ok=True)


def _holds_something(output: Path) -> bool:
    """Whether there is more than what a kill during the first write leaves."""
    return output.exists() and any(path.name != FILE_NAME + ".tmp" for path in output.iterdir())


def _read_record(output: Path) -> dict | None:
    path = output / FILE_NAME
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): choose another --output_dir.") from error


def _first_difference(before: dict, now: dict) -> str:
    """Between two identities: what differs, in words, or nothing. ``before`` may be of an older version of the program."""
    return _difference(_with_newer_options(before), json.loads(json.dumps(now)))  # tuples become lists, as in the file


def _with_newer_options(before: dict) -> dict:
    """The identity with those options of the data that did not exist when it was saved, as they would have been."""
    if "data" not in before:
        return before
    data, default = before["data"], asdict(DataRecipe())
    masking = default["masking"] | data.get("masking", {})
    return before | {"data": default | data | {"masking": masking}}


def _difference(before: dict, now: dict) -> str:
    for key in now:
        if before.get(key) != now[key]:
            if isinstance(now[key], dict) and isinstance(before.get(key), dict):
                inner = _difference(before[key], now[key])
                if inner:
                    return f"{key}.{inner}"
                continue
            if isinstance(now[key], list):
                return f"{key}: the datasets, or their shares, are others than then"
            return f"{key} was {_short(before.get(key))}, is now {_short(now[key])}"
    return ""


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else text[:16] + '…"'


def _check_fits(checkpoint: Path, run_identity: dict, world_size: int, zero_stage: int, precision: str) -> None:
    info = read_info(checkpoint)
    difference = _first_difference(info.identity, run_identity)
    if difference:
        raise UserError(f"{checkpoint} is of another run ({difference}): take its settings, or another checkpoint.")
    if info.precision != precision:
        raise UserError(
            f"{checkpoint} was saved in {info.precision}, this run computes in {precision}: resume in the former."
        )
    if info.zero_stage != zero_stage or (zero_stage and info.world_size != world_size):
        saved = f"{info.world_size} rank(s) at ZeRO stage {info.zero_stage}"
        here = f"{world_size} at stage {zero_stage}"
        raise UserError(
            f"{checkpoint} was saved by {saved}, this run has {here}: resume with the former, or use another --output_dir."
        )
