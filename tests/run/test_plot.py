import errno
import io
import json
import math
import os
import sys

import pytest
from matplotlib.colors import to_hex
from PIL import Image

from mpnet_ds.command_line import run
from mpnet_ds.errors import UserError
from mpnet_ds.programs import plot_run
from mpnet_ds.run.plot import Curves, draw, plot_runs, read_curves
from tests.runs import ROOT, command


def run_folder(folder, *lines):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def training_line(step, loss=3.0):
    return {"step": step, "consumed_samples": 8 * step, "loss": loss, "tokens_per_second": 100.0 * step}


WORDS = "word frequencies only"


def names_in(figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_curves_are_those_of_the_run(trained, tmp_path):
    run = trained()
    done = command(sys.executable, "tools/plot_run.py", run.folder, "--output", tmp_path / "run.png")
    assert done.returncode == 0, done.stderr
    picture = Image.open(tmp_path / "run.png").convert("L")
    assert min(picture.size) > 900
    assert sum(picture.histogram()[:200]) > 5_000  # dark pixels: axes, letters, lines
    curves = read_curves(run.folder / "metrics.jsonl", "run")
    assert curves.loss == list(enumerate(run.losses, 1))
    assert curves.eval_loss == list(zip([0, 4, 8], run.eval_losses, strict=True))
    losses, speeds = draw([curves]).axes
    training, held_out, words = losses.lines
    assert training.get_ydata().tolist() == run.losses
    assert held_out.get_xdata().tolist() == [0, 4, 8]
    assert names_in(losses.figure) == ["run", "training", "validation", WORDS]
    assert set(words.get_ydata()) == {next(line["eval_unigram_loss"] for line in run.metrics if "eval_loss" in line)}
    assert losses.get_ylabel() == "loss (nats per predicted token)"
    assert speeds.get_ylabel() == "throughput (tokens/s)"
    assert speeds.get_xlabel() == "steps"
    speed = [line["tokens_per_second"] for line in run.metrics if "loss" in line]
    assert speed[0] is None  # of the first step, which is in no rate
    assert speeds.lines[0].get_ydata().tolist()[1:] == speed[1:]


def test_several_runs_have_colours_and_names_of_their_own(tmp_path):
    long = "many settings " * 7
    places = ("a/first", "b/first", "b/second", f"{long}lr=0.1", f"{long}lr=0.2 and {long}")
    folders = [run_folder(tmp_path / place, training_line(1), training_line(2)) for place in places]
    drawn = []

    def draw_and_keep(runs, x):
        drawn.append(draw(runs, x))
        return drawn[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpnet_ds.run.plot.draw", draw_and_keep)
        runs = [str(folders[0]), str(folders[1] / "metrics.jsonl"), *map(str, folders[2:])]
        plot_runs(runs, str(tmp_path / "runs.png"), "samples")
    losses, speeds = drawn[0].axes
    assert [line.get_label() for line in speeds.lines] == [
        *("a/first", "b/first", "second", "…lr=0.1", "…lr=0.2 and many s…ngs many settings "),
    ]
    assert len({line.get_color() for line in losses.lines}) == 5
    assert [line.get_color() for line in losses.lines] == [line.get_color() for line in speeds.lines]
    assert losses.lines[0].get_xdata().tolist() == [8, 16]
    assert speeds.get_xlabel() == "samples (sequences)"


def levels_in(figure) -> list[tuple[float, str]]:
    """Height and colour of the lines that go all the way across the losses."""
    losses = figure.axes[0]
    return [(line.get_ydata()[0], to_hex(line.get_color())) for line in losses.lines if list(line.get_xdata()) == [0, 1]]


def test_word_frequencies_are_those_of_the_evaluation_or_else_of_the_training_data(tmp_path):
    def drawn(name: str, *lines: dict):
        return draw([read_curves(run_folder(tmp_path / name, *lines) / "metrics.jsonl", name)])

    trained_on, evaluated = {"unigram_loss": 6.5}, {"step": 0, "consumed_samples": 0, "eval_loss": 7.0}
    grey = to_hex("grey")
    both = drawn(
        "both", evaluated | {"eval_unigram_loss": 6.75}, training_line(1) | trained_on, training_line(2) | trained_on
    )
    assert levels_in(both) == [(6.75, grey)]
    assert names_in(both) == ["both", "training", "validation", WORDS]
    alone = drawn("alone", training_line(1), training_line(2) | trained_on)  # counts were added on the way
    assert levels_in(alone) == [(6.5, grey)]
    assert names_in(alone) == ["alone", "training", WORDS]
    older = drawn("older", evaluated, training_line(1), training_line(2))
    assert levels_in(older) == []
    assert names_in(older) == ["older", "training", "validation"]


@pytest.mark.parametrize(
    ("levels", "colours"), [((6.5, 6.5, None), ["grey"]), ((6.5, 6.75, None), ["tab:blue", "tab:orange"])]
)
def test_runs_share_a_grey_line_or_have_those_of_their_own_data_in_their_colours(levels, colours):
    speeds = {"tokens_per_second": [(1, 100.0)]}
    runs = [Curves(f"{number}", loss=[(1, 3.0)], unigram_loss=level, **speeds) for number, level in enumerate(levels)]
    figure = draw(runs)
    assert levels_in(figure) == list(zip(dict.fromkeys(filter(None, levels)), map(to_hex, colours), strict=True))
    assert names_in(figure) == ["0", "1", "2", "training", WORDS]


@pytest.mark.parametrize("count", [10, 11, 40])
def test_many_runs_are_told_apart_beside_the_curves(count):
    runs = [Curves(f"runs/long-name-{number}", loss=[(1, 3.0)], tokens_per_second=[(1, 1e5)]) for number in range(count)]
    figure = draw(runs)
    losses, speeds = figure.axes
    assert names_in(figure) == [*(run.name for run in runs), "training"]
    for axes in (losses, speeds):
        assert len({to_hex(line.get_color()) for line in axes.lines}) == count
    figure.savefig(io.BytesIO())
    assert figure.legends[0].get_window_extent().x0 >= max(axes.get_window_extent().x1 for axes in figure.axes)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, capsys):
    def refuse(source, target):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(target))

    folder = run_folder(tmp_path / "run", training_line(1))
    monkeypatch.setattr("sys.argv", ["plot_run", str(folder), "--output", str(tmp_path / "x.png")])
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(SystemExit) as ended:
        run(plot_run.main)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: cannot write to {tmp_path}/x.png: read-only file system."


def test_events_gaps_and_a_line_in_the_making_do_not_hurt(tmp_path):
    event = {"step": 2, "consumed_samples": 16, "event": "skipped", "loss": None}
    folder = run_folder(tmp_path / "run", training_line(1), event, training_line(3, None), training_line(4))
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    curves = read_curves(folder / "metrics.jsonl", "run")
    assert [x for x, _ in curves.loss] == [1, 3, 4]
    assert math.isnan(curves.loss[1][1])
    assert len(draw([curves]).axes[0].lines) == 1


def test_an_older_picture_is_replaced_and_nothing_else(tmp_path):
    folder = run_folder(tmp_path / "run", training_line(1))
    output = plot_runs([str(folder)], str(tmp_path / "run.png"))
    first = output.read_bytes()
    run_folder(tmp_path / "other", training_line(1), training_line(2, 1.0))
    assert plot_runs([str(tmp_path / "other")], str(output)).read_bytes() != first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "run", "run.png"]
    output.write_text("my notes")
    with pytest.raises(UserError, match=r"run\.png is there already and is not a PNG"):
        plot_runs([str(folder)], str(output))
    assert output.read_text() == "my notes"


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        (["nowhere"], {}, "no such run: nowhere"),
        (["."], {}, r"no metrics\.jsonl in \."),
        (["empty"], {}, "has no training loss yet"),
        (["evaluated"], {}, "has no training loss yet"),
        (["broken"], {}, r"broken/metrics\.jsonl has no training loss yet"),
        (["run", "run/metrics.jsonl"], {}, "the same run is named twice"),
        (["run"], {"x": "sample"}, "--x is 'sample'. Did you mean 'samples'"),
        (["run"], {"output": "run.jpg"}, r"must end in \.png"),
        (["run"], {"output": "no/run.png"}, "no folder no"),
        (["run"], {"output": "folder.png"}, r"folder\.png is a folder"),
    ],
)
def test_what_cannot_be_drawn_is_named(runs, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_folder(tmp_path / "run", training_line(1))
    run_folder(tmp_path / "empty")
    run_folder(tmp_path / "evaluated", {"step": 0, "consumed_samples": 0, "eval_loss": 7.0})
    (run_folder(tmp_path / "broken") / "metrics.jsonl").write_text("loss 5\nloss 4\n")
    (tmp_path / "folder.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        plot_runs(runs, **({"output": "new.png"} | options))
    assert sorted(tmp_path.rglob("*")) == before


def test_without_matplotlib_the_command_that_installs_it_is_named(tmp_path):
    run_folder(tmp_path / "run", training_line(1))
    program = (
        "import runpy, sys; sys.modules['matplotlib'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = command(sys.executable, "-c", program, ROOT / "tools" / "plot_run.py", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: plots need matplotlib, which is not installed: pip install matplotlib\n"
    assert not (tmp_path / "run.png").exists()
