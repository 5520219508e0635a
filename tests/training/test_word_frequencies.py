"""What runs say about the loss of word frequencies alone, and whether they have left it."""

import shutil
from dataclasses import replace

import pytest

from mpnet_ds.checkpoint.store import read_info
from mpnet_ds.data import BuildOptions, PretrainingDataset, build_dataset
from mpnet_ds.data.samples.unigram import Unigram
from mpnet_ds.data.storage.manifest import DatasetManifest
from mpnet_ds.objectives.mpnet import MPNet
from tests.runs import RECIPE, ROOT, Run, pretrain_all
from tests.training.faulty_runs import events

LEFT, STUCK = "left_word_frequencies", "still_at_word_frequencies"
ALONE = "Word frequencies alone give a loss of"


def values(run: Run, name: str) -> list[float]:
    return [line[name] for line in run.metrics if name in line and "event" not in line]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_logs_the_level_of_its_training_data_and_of_what_it_is_evaluated_on(trained, dataset_folder, ranks):
    run, objective = trained("zero2", ranks), MPNet()
    unigram = Unigram.of(PretrainingDataset(dataset_folder, 32), objective)
    assert f"{ALONE} {unigram.expected:.3f} nats" in run.out
    assert values(run, "unigram_loss") == [unigram.expected] * 8
    held_out = PretrainingDataset(dataset_folder / "holdout", 32)
    total, number = unigram.sum_of(objective.target_ids(held_out.batch(range(20))))  # run.eval_samples
    assert values(run, "eval_unigram_loss") == pytest.approx([total / number] * 3, rel=1e-12)
    for prefix, count in (("", 8), ("eval_", 3)):
        masked, losses = values(run, f"{prefix}masked_loss"), values(run, f"{prefix}loss")
        assert len(masked) == len(values(run, f"{prefix}masked_accuracy")) == count
        assert masked == pytest.approx(losses, abs=0.3)
        assert masked != losses
    assert f"step 8: validation loss {run.eval_losses[-1]:.4f}" in run.out
    assert f"on <mask> {values(run, 'eval_masked_loss')[-1]:.4f}\n" in run.out
    assert not events(run, LEFT) + events(run, STUCK)


def test_one_rank_and_two_log_the_same(trained):
    one, two = trained("zero2", 1), trained("zero2", 2)
    for name in ("masked_loss", "masked_accuracy", "eval_masked_loss", "eval_masked_accuracy", "eval_unigram_loss"):
        assert values(one, name) == pytest.approx(values(two, name), abs=1e-5), name


@pytest.fixture(scope="module")
def runs(tmp_path_factory, dataset_folder, save_word_tokenizer) -> dict[str, Run]:
    """By name: ``stuck``, told of it early, and again after a resume; ``learned``, of one text; ``uncounted`` data."""
    folder = tmp_path_factory.mktemp("level")
    uncounted = shutil.copytree(dataset_folder, folder / "uncounted-data")
    replace(DatasetManifest.load(uncounted), piece_counts="").save(uncounted)
    (folder / "text.txt").write_text("\n\n".join(" ".join(f"w{i}" for i in range(30)) for _ in range(100)))
    save_word_tokenizer(folder / "words", 30)
    one_text = folder / "one-text"
    what = ([str(folder / "text.txt")], folder / "words", one_text, BuildOptions(workers=1))
    build_dataset(*what, show_progress=False)
    impatient, common = (
        ["--fault", "impatient"],
        ["--deepspeed_config", ROOT / "ds_configs" / "zero2.json", "--recipe", RECIPE],
    )
    learn = ["--set", "data.sample_mode=document", "optimization.learning_rate=0.02"]
    runs = {
        folder / "stuck": [*common, "--data", dataset_folder, *impatient, "--max_steps", 6],
        folder / "learned" / ".." / "stuck": [*common, "--data", dataset_folder, *impatient],
        folder / "learned": [*common, "--data", one_text, *impatient, *learn, "--max_steps", 12],
        folder / "uncounted": [*common, "--data", uncounted, "--max_steps", 2],
    }
    (folder / "learned").mkdir()
    done = list(pretrain_all(folder, runs, ranks=1).values())
    assert [run.code for run in done] == [0] * 4, done[0].out + done[0].err
    return dict(zip(("stuck", "resumed", "learned", "uncounted"), done, strict=True))


def test_a_run_that_should_have_left_the_level_is_told_once(runs):
    run = runs["resumed"]
    (event,) = events(run, STUCK)
    (masked,) = [line["eval_masked_loss"] for line in run.metrics if "eval_loss" in line and line["step"] == 4]
    assert (event["step"], event["loss"]) == (4, masked), "at the first evaluation after the warm-up and a tenth of the run"
    assert event["unigram_loss"] == values(run, "eval_unigram_loss")[0] < masked + 0.3
    (warning,) = [line for line in run.err.splitlines() if "word frequencies" in line]
    said = f"warning: step 4: the loss, {masked:.4f}, is still that of word frequencies alone, {event['unigram_loss']:.4f}."
    assert warning.startswith(said)
    assert "--set model.start=near" in warning
    assert 'docs/training.md, "Does it learn?"' in warning
    assert "at step 6" in run.out
    assert read_info(run.newest_checkpoint).losses["plateau"] == {"was_left": False, "was_warned": True}


def test_a_run_says_once_when_it_leaves_the_level(runs):
    run = runs["learned"]
    (event,) = events(run, LEFT)
    level = values(run, "unigram_loss")[0]
    first = next(line for line in run.metrics if line.get("masked_loss", level) < level - 0.3)
    assert (event["step"], event["loss"], event["unigram_loss"]) == (first["step"], first["masked_loss"], level)
    assert run.out.count("the loss is below that of word frequencies alone") == 1
    assert f"step {event['step']}: the loss is below that of word frequencies alone, {level:.4f}" in run.out
    assert values(run, "masked_loss")[0] > level - 0.3
    assert not events(run, STUCK)
    assert read_info(run.newest_checkpoint).losses["plateau"] == {"was_left": True, "was_warned": False}


def test_data_without_counts_train_and_the_run_says_how_to_add_them(runs):
    run = runs["uncounted"]
    assert len(run.losses) == len(run.eval_losses) == 2
    (line,) = [line for line in run.out.splitlines() if "word frequencies" in line.lower()]
    folder = run.folder.parent / "uncounted-data"
    assert line == (
        f"The loss of word frequencies alone is unknown: {folder} has no counts. "
        f"To add them: python tools/inspect_dataset.py {folder} --count"
    )
    assert not [name for line in run.metrics for name in line if "unigram" in name]
    assert len(values(run, "eval_masked_loss")) == 2
    assert not events(run, LEFT) + events(run, STUCK)
