"""Curves of one or several runs, from their ``metrics.jsonl``, as a PNG.

Above: training loss (a thin line, the mean of each log interval as it was written, not smoothed) and validation loss (dots);
across, what word frequencies alone give. Below: tokens per second. Each run has a colour of its own, named beside the
curves.
"""

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mpnet_ds.errors import UserError, did_you_mean, each_of
from mpnet_ds.files import replacing
from mpnet_ds.metrics_file import FILE_NAME, read_metrics

AXES = {"steps": "step", "samples": "consumed_samples"}
"""Horizontal axis → key of a line that holds its value."""

WORDS = {"linestyle": (0, (8, 4)), "linewidth": 1}
"""Of the line of word frequencies."""
MOST_NAMES = 30  # below each other
LONGEST_NAME = 36  # characters, so that room for the curves is left

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass
class Curves:
    """Curves of one run: pairs (x, y) in the order of the file; y is NaN where a value was not finite."""

    name: str
    loss: list[tuple[float, float]] = field(default_factory=list)
    """Loss in nats."""
    eval_loss: list[tuple[float, float]] = field(default_factory=list)
    tokens_per_second: list[tuple[float, float]] = field(default_factory=list)
    unigram_loss: float | None = None
    """Loss of word frequencies alone, on the evaluation data if there are any."""


def plot_runs(runs: list[str], output: str, x: str = "steps") -> Path:
    """Draw ``runs`` (folders, or files ``metrics.jsonl``) into the PNG file ``output``; an older one is replaced.

    Raises ``UserError`` for a run without metrics, an ``output`` that is something else, or if matplotlib is missing.
    """
    path = Path(output)
    each_of(lambda: _check_output(path), lambda: _check_axis(x), *(partial(_file_of, run) for run in runs))
    figure = draw([read_curves(file, name, x) for file, name in zip(*_files_and_names(runs), strict=True)], x)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=150)
    return path


def read_curves(file: Path, name: str, x: str = "steps") -> Curves:
    """Curves of one ``metrics.jsonl``; incomplete lines are left out."""
    curves, axis = Curves(name), AXES[x]
    for line in read_metrics(file):
        if axis not in line or "event" in line:
            continue
        for key in ("loss", "eval_loss", "tokens_per_second"):
            if key in line:
                value = line[key]
                getattr(curves, key).append((line[axis], float("nan") if value is None else value))
        curves.unigram_loss = line.get("eval_unigram_loss", curves.unigram_loss or line.get("unigram_loss"))
    if not curves.loss:
        raise UserError(f"{file} has no training loss yet: wait for the run's first --log_interval steps.")
    return curves


def draw(runs: list[Curves], x: str = "steps"):
    """A matplotlib ``Figure`` of two axes, losses above and throughput below, with lines labelled by run."""
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
        from matplotlib.ticker import EngFormatter
    except ImportError as error:
        raise UserError("plots need matplotlib, which is not installed: pip install matplotlib") from error
    figure = Figure(figsize=(11, 7), layout="constrained")
    losses, speeds = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    few, many = colormaps["tab10"], colormaps["turbo"]
    colours = [
        few(number) if len(runs) <= few.N else many(0.05 + 0.9 * number / (len(runs) - 1)) for number in range(len(runs))
    ]
    validation = {"linestyle": "--", "marker": "o", "markersize": 4}
    for colour, run in zip(colours, runs, strict=True):
        losses.plot(*zip(*run.loss, strict=True), color=colour, linewidth=1, alpha=0.8)
        if run.eval_loss:
            losses.plot(*zip(*run.eval_loss, strict=True), color=colour, **validation)
        speeds.plot(*zip(*run.tokens_per_second, strict=True), color=colour, linewidth=1, label=run.name)
    levels = {run.unigram_loss: colour for colour, run in zip(colours, runs, strict=True) if run.unigram_loss}
    for level, colour in levels.items():
        losses.axhline(level, color="grey" if len(levels) == 1 else colour, **WORDS)
    losses.set_ylabel("loss (nats per predicted token)")
    speeds.set_ylabel("throughput (tokens/s)")
    speeds.set_xlabel({"steps": "steps", "samples": "samples (sequences)"}[x])
    speeds.set_ylim(bottom=0)
    speeds.yaxis.set_major_formatter(EngFormatter())
    speeds.xaxis.set_major_formatter(EngFormatter())
    kinds = [Line2D([], [], color="grey", linewidth=1, label="training")]
    kinds += [Line2D([], [], color="grey", label="validation", **validation)] if any(run.eval_loss for run in runs) else []
    kinds += [Line2D([], [], color="grey", label="word frequencies only", **WORDS)] if levels else []
    columns = 1 + len(runs) // MOST_NAMES
    figure.legend(handles=[*speeds.lines, *kinds], loc="outside right upper", frameon=False, ncols=columns)
    figure.align_ylabels()
    for axes in (losses, speeds):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _files_and_names(runs: list[str]) -> tuple[list[Path], list[str]]:
    """Each run's file, and the shortest end of its folder's path that tells it from the others."""
    files = list(map(_file_of, runs))
    parts = [file.resolve().parent.parts for file in files]
    if len(set(parts)) < len(parts):
        raise UserError("the same run is named twice.")
    names = []
    for one in parts:
        length = next(n for n in range(1, len(one) + 1) if sum(other[-n:] == one[-n:] for other in parts) == 1)
        names.append("/".join(one[-length:]))
    return files, _short(names)


def _short(names: list[str]) -> list[str]:
    """Leave out what the long names have in common at the beginning, then the middle of those that are still long."""
    long = [name for name in names if len(name) > LONGEST_NAME]
    alike = next((at for at, column in enumerate(zip(*long, strict=False)) if len(set(column)) > 1), 0)
    common = len(re.match(r"(.*[\s/_,-])?", long[0][:alike])[0]) if long else 0
    half = LONGEST_NAME // 2
    cut = [f"…{name[common:]}" if common and name in long else name for name in names]
    return [name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half:]}" for name in cut]


def _file_of(name: str) -> Path:
    run = Path(name)
    file = run / FILE_NAME if run.is_dir() else run
    if not file.is_file():
        found = f"no {FILE_NAME} in {run}" if run.is_dir() else f"no such run: {run}"
        raise UserError(f"{found}. A run is the --output_dir of launch/pretrain.py, or its {FILE_NAME}.")
    return file


def _check_axis(x: str) -> None:
    if x not in AXES:
        raise UserError(f"--x is '{x}'. {did_you_mean(x, AXES)}")


def _check_output(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise UserError(f"--output is {path}; it must end in .png.")
    if not path.parent.is_dir():
        raise UserError(f"no folder {path.parent} for --output.")
    if path.exists():
        if not path.is_file():
            raise UserError(f"{path} is a folder: choose another --output.")
        with open(path, "rb") as file:
            if file.read(len(PNG_SIGNATURE)) != PNG_SIGNATURE:
                raise UserError(f"{path} is there already and is not a PNG: choose another --output.")
