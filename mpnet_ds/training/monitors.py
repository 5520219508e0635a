"""DeepSpeed's monitors, opened where a run begins or continues, without the steps that a resume withdraws.

TensorBoard    an event voids all earlier events from the first step on, as SummaryWriter(purge_step=…) writes it
csv_monitor    rows of these steps are cut out
wandb          the run there is continued by its id, which is an event of metrics.jsonl; if it has these steps it is
               wound back. W&B offers that to some accounts only: elsewhere the start becomes a run of its own there
comet          cannot withdraw: each start is an experiment of its own, unless the JSON names one
"""

import sys
from pathlib import Path

from mpnet_ds.errors import UserError
from mpnet_ds.files import write_atomically

WANDB_RUN = "wandb_run"
"""Event of metrics.jsonl with the id of the run at W&B."""


def open_monitors(output: Path, monitors: dict, first_step: int, earlier: list[dict]):
    """Open DeepSpeed's monitors; TensorBoard is on unless the JSON says otherwise, and files go to the run's folder.

    Args:
        earlier: lines of metrics.jsonl that earlier starts wrote; what they reported from ``first_step`` on is withdrawn.
    """
    from deepspeed.monitor.config import get_monitor_config
    from deepspeed.monitor.monitor import MonitorMaster

    folder = {"output_path": str(output)}
    defaults = {
        "tensorboard": {"enabled": True, "job_name": "tensorboard"} | folder,
        "csv_monitor": {"job_name": "csv"} | folder,
        "comet": {"samples_log_interval": 1},  # counts our steps: by default 99 of 100 would be lost
    }
    config = get_monitor_config(monitors | {name: d | monitors.get(name, {}) for name, d in defaults.items()})
    try:
        if config.wandb.enabled:
            _continue_wandb(config.wandb, first_step, earlier)
        opened = MonitorMaster(config)
    except Exception as error:  # of whatever kind each client raises, where nobody is logged in for example
        what = f"a monitor of DeepSpeed's JSON cannot be opened: {str(error).rstrip('. ')}"
        raise UserError(f"{what}. Correct its section ({', '.join(monitors)}), or leave it out.") from error
    if earlier:
        if opened.tb_monitor is not None:
            _purge_tensorboard(opened.tb_monitor.summary_writer, first_step)
        if opened.csv_monitor is not None:
            _cut_csv(opened.csv_monitor, first_step)
    return opened


def wandb_id(monitors) -> str | None:
    """Id of the run at W&B that these monitors report to; None if they do not."""
    if monitors.wandb_monitor is None:
        return None
    import wandb

    return getattr(getattr(wandb, "run", None), "id", None)


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


def _purge_tensorboard(writer, first_step: int) -> None:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    session = SessionLog(status=SessionLog.START)
    writer.file_writer.add_event(Event(step=first_step, session_log=session))


def _cut_csv(monitor, first_step: int) -> None:
    """Keep the header and the whole rows of earlier steps; the monitor adds no header to files that it knows."""
    for path in Path(monitor.log_dir).glob("*.csv"):
        with open(path, encoding="utf-8", newline="") as file:
            header, *rows = file.readlines() or [""]
        kept = [row for row in rows if row.endswith("\n") and _step_of(row) < first_step]
        write_atomically(path, "".join([header, *kept]))
        monitor.filenames.append(path.stem)


def _step_of(row: str) -> float:
    """Step of a CSV row; infinite if it has none, as a header that was written twice."""
    step = row.partition(",")[0]
    return int(step) if step.isdecimal() else float("inf")
