"""DeepSpeed's monitors, opened where a run begins or continues, without the steps that a resume withdraws.

TensorBoard    written here, since the writer that DeepSpeed takes ends for good where a disk is full once; an event
               voids all earlier events from the first step on, as SummaryWriter(purge_step=…) writes it
csv_monitor    rows of these steps are cut out
wandb          the run there is continued by its id, which is an event of metrics.jsonl; if it has these steps it is
               wound back. W&B offers that to some accounts only: elsewhere the start becomes a run of its own there
comet          cannot withdraw: each start is an experiment of its own, unless the JSON names one

Files hold whole records only, also where the disk was full for a while; they catch up when there is room again.
"""

import os
import platform
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path

from mpnet_ds.errors import UserError, fault_of_disk
from mpnet_ds.files import RecordFile, make_folder, write_atomically

WANDB_RUN = "wandb_run"
"""Event of metrics.jsonl with the id of the run at W&B."""

MonitorEvents = list[tuple[str, float, int]]
"""Name, value and step of each."""


class Monitors:
    """The monitors of one start, each of which may fail for a while."""

    def __init__(self, monitors: Iterable, has_wandb: bool):
        self._monitors, self._has_wandb = list(monitors), has_wandb

    def write_events(self, events: MonitorEvents) -> list[OSError]:
        """Pass events on to all; return the failures of those that cannot write them now."""
        failures = []
        for monitor in self._monitors:
            try:
                monitor.write_events(events)
            except OSError as error:
                failures.append(error)
        return failures

    @property
    def wandb_id(self) -> str | None:
        """Id of the run at W&B that they report to; None if they do not."""
        if not self._has_wandb:
            return None
        import wandb

        return getattr(getattr(wandb, "run", None), "id", None)


def open_monitors(output: Path, monitors: dict, first_step: int, earlier: list[dict]) -> Monitors:
    """Open the monitors; TensorBoard is on unless the JSON says otherwise, and files go to the run's folder.

    Args:
        earlier: lines of metrics.jsonl that earlier starts wrote; what they reported from ``first_step`` on is withdrawn.
    """
    from deepspeed.monitor.config import get_monitor_config
    from deepspeed.monitor.monitor import CometMonitor, WandbMonitor, csvMonitor

    folder = {"output_path": str(output)}
    defaults = {
        "tensorboard": {"enabled": True, "job_name": "tensorboard"} | folder,
        "csv_monitor": {"job_name": "csv"} | folder,
        "comet": {"samples_log_interval": 1},  # counts our steps: by default 99 of 100 would be lost
    }
    config = get_monitor_config(monitors | {name: d | monitors.get(name, {}) for name, d in defaults.items()})
    openers = {
        "tensorboard": lambda section: TensorBoard(section, first_step if earlier else None),
        "wandb": lambda section: _continue_wandb(section, first_step, earlier) or WandbMonitor(section),
        "csv_monitor": lambda section: Csv(csvMonitor(section), first_step if earlier else None),
        "comet": CometMonitor,
    }
    sections = {name: getattr(config, name) for name in openers}
    try:
        opened = [openers[name](section) for name, section in sections.items() if section.enabled]
    except Exception as error:  # of whatever kind each client raises, where nobody is logged in for example
        is_of_file = isinstance(error, OSError) and error.filename
        if fault := f"cannot write to {output}: {error.strerror}" if is_of_file else fault_of_disk(error, output):
            raise UserError(f"{fault}. No monitor can write there.") from error
        what = f"a monitor of DeepSpeed's JSON cannot be opened: {str(error).rstrip('. ')}"
        raise UserError(f"{what}. Correct its section ({', '.join(monitors)}), or leave it out.") from error
    return Monitors(opened, config.wandb.enabled)


class TensorBoard:
    """A file of TensorBoard's events. ``first_step``: from which on it voids earlier events; None: it voids none."""

    def __init__(self, section, first_step: int | None):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folder = Path(section.output_path) / section.job_name
        make_folder(folder)
        name = f"events.out.tfevents.{int(time.time()):010d}.{platform.node()}.{os.getpid()}"
        paths = (folder / f"{name}.{number}" for number in count())
        self._file = RecordFile(next(path for path in paths if not path.exists()))
        self._records = RecordWriter(self._file)  # calls ``write`` once for each record
        self._add(file_version="brain.Event:2")
        if first_step is not None:
            self._add(step=first_step, session_log=SessionLog(status=SessionLog.START))
        self._file.flush()

    def write_events(self, events: MonitorEvents) -> None:
        """Append scalars."""
        for name, value, step in events:
            self._add(step=step, summary=self._summary(value=[self._summary.Value(tag=name, simple_value=value)]))
        self._file.flush()

    def _add(self, **content) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())


class Csv:
    """DeepSpeed's ``csvMonitor``, undone where it writes only a part; ``first_step``: from which on rows are cut out."""

    def __init__(self, monitor, first_step: int | None):
        self._monitor, self._folder = monitor, Path(monitor.log_dir)
        self._pending: MonitorEvents = []
        if first_step is not None:
            self._cut(first_step)

    def write_events(self, events: MonitorEvents) -> None:
        """Append rows to the files of all names, or to none."""
        self._pending += events
        names, sizes = list(self._monitor.filenames), {path: path.stat().st_size for path in self._folder.glob("*.csv")}
        try:
            self._monitor.write_events(self._pending)
        except OSError:
            self._monitor.filenames[:] = names
            for path in self._folder.glob("*.csv"):
                with suppress(OSError):
                    os.truncate(path, sizes.get(path, 0))
            raise
        self._pending = []

    def _cut(self, first_step: int) -> None:
        """Keep the header and the whole rows of earlier steps; the monitor adds no header to files that it knows."""
        for path in self._folder.glob("*.csv"):
            with open(path, encoding="utf-8", newline="") as file:
                header, *rows = file.readlines() or [""]
            kept = [row for row in rows if row.endswith("\n") and _step_of(row) < first_step]
            write_atomically(path, "".join([header, *kept]))
            if header:
                self._monitor.filenames.append(path.stem)


def known_wandb_id(lines: list[dict]) -> str | None:
    """Id of the run at W&B to which the newest start that is known there reported."""
    return next((line["id"] for line in reversed(lines) if line.get("event") == WANDB_RUN), None)


def _continue_wandb(config, first_step: int, earlier: list[dict]) -> None:
    """Make the run at W&B that earlier starts reported to the current one: DeepSpeed's monitor then takes it."""
    known = known_wandb_id(earlier)
    if known is None:
        return
    import wandb

    last = max(line["step"] for line in earlier)
    where = {"project": config.project, "group": config.group, "entity": config.team}
    try:
        if last < first_step:
            wandb.init(**where, id=known, resume="allow")
        else:
            wandb.init(**where, resume_from=f"{known}?_step={first_step - 1}")
    except Exception as error:  # of many kinds: no permission to wind back, removed there, no connection
        reason = " ".join(str(error).split()).rstrip(".")
        left = f"; steps {first_step} to {last} stay in {known}" if last >= first_step else ""
        text = f"W&B does not continue its run {known} at step {first_step} ({reason}): this start is a new run there{left}."
        print(f"warning: {text}", file=sys.stderr, flush=True)


def _step_of(row: str) -> float:
    """Step of a CSV row; infinite if it has none, as a header that was written twice."""
    step = row.partition(",")[0]
    return int(step) if step.isdecimal() else float("inf")
