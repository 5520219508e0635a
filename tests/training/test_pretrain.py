"""Whole runs through the launch script and DeepSpeed."""

import json
import shutil

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpnet_ds.data import BuildOptions, build_dataset
from mpnet_ds.tokenizer_training import train_tokenizer
from tests.runs import RECIPE, ROOT, pretrain, pretrain_all


def test_loss_falls_from_about_log_vocabulary_on_both_sides(trained):
    run = trained()
    assert run.losses[0] == pytest.approx(6.9, abs=0.3)
    assert run.losses[-1] < run.losses[0] - 0.15
    assert run.eval_losses[-1] < run.eval_losses[0] - 0.15


def test_a_finished_run_leaves_what_is_promised(trained):
    run = trained()
    training = [line for line in run.metrics if "loss" in line]
    assert [line["step"] for line in training] == list(range(1, 9))
    assert [line["consumed_samples"] for line in training] == [8 * step for step in range(1, 9)]
    promised = {"accuracy", "learning_rate", "grad_norm", "tokens_per_second", "predicted_tokens_per_second", "data_wait"}
    assert all(promised <= line.keys() for line in training)
    assert all(0 <= line["data_wait"] < 1 for line in training)
    assert training[0]["learning_rate"] == pytest.approx(2.5e-3)
    assert training[1]["learning_rate"] == pytest.approx(5e-3)
    assert [line["step"] for line in run.metrics if "eval_loss" in line] == [0, 4, 8]
    record = json.loads((run.folder / "run.json").read_text())
    assert record["batch"] == {"micro_batch_size": 8, "accumulation_steps": 1, "global_batch_size": 8}
    assert record["versions"]["torch"] == torch.__version__.split("+")[0] or record["versions"]["torch"] == torch.__version__
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    written = [event.value for event in events.Scalars("train/loss")]
    assert written == pytest.approx(run.losses, rel=1e-6)


def test_newest_two_checkpoints_and_the_best_are_kept(trained):
    run = trained()
    kept = sorted(path.name for path in (run.folder / "checkpoints").glob("step-*"))
    assert kept == ["step-00000006", "step-00000008"]
    assert run.newest_checkpoint.name == "step-00000008"


@pytest.mark.parametrize("objective", ["plm", "mlm"])
def test_other_objectives_train(dataset_folder, tmp_path, objective):
    run = pretrain(tmp_path / "run", "--recipe", RECIPE, "--data", dataset_folder, "--objective", objective)
    assert run.code == 0, run.err
    assert run.losses[-1] < run.losses[0] - 0.3


def test_mean_is_over_all_slots_of_the_global_batch(tmp_path):
    """Rows of unknown characters have fewer slots, so means of means would depend on how the batch is cut."""
    text = tmp_path / "text.txt"
    words = "the quick brown fox jumps over the lazy dog and runs away from the angry bear in the deep forest"
    text.write_text("\n\n".join(words if i % 3 else "\u2603 " * 40 for i in range(120)))
    train_tokenizer([words], 64).save(tmp_path / "tokenizer")
    build_dataset([str(text)], tmp_path / "tokenizer", tmp_path / "data", BuildOptions(max_unknown=1), show_progress=False)
    arguments = ["--recipe", RECIPE, "--data", tmp_path / "data", "--deepspeed_config", ROOT / "ds_configs" / "zero2.json"]
    cut_up = [*arguments, "--micro_batch_size", 2]
    whole, cut = pretrain_all(tmp_path, {tmp_path / "whole": arguments, tmp_path / "cut": cut_up}, ranks=1).values()
    (ranks,) = pretrain_all(tmp_path, {tmp_path / "ranks": cut_up}, ranks=2).values()
    assert whole.code == cut.code == ranks.code == 0, whole.err + cut.err + ranks.err
    assert cut.losses == pytest.approx(whole.losses, abs=1e-5)
    assert ranks.losses == pytest.approx(whole.losses, abs=1e-5)


def test_a_mixture_of_lines_with_isolated_documents_resumes_bit_for_bit(
    corpus_files, tokenizer_folder, dataset_folder, tmp_path
):
    build_dataset([corpus_files.jsonl], tokenizer_folder, tmp_path / "other", BuildOptions(holdout=0.2), show_progress=False)
    data = ["--data", f"{dataset_folder}:0.7", f"{tmp_path / 'other'}:0.3", "--sample_mode", "line", "--isolate_documents"]
    run = pretrain(tmp_path / "run", "--recipe", RECIPE, *data)
    assert run.code == 0, run.err
    assert "70.00% of the sequences" in run.out
    assert run.losses[-1] < run.losses[0] - 0.1
    record = json.loads((run.folder / "run.json").read_text())
    assert [share for _, share in record["identity"]["dataset"]] == ["7/10", "3/10"]
    assert record["recipe"]["data"]["sample_mode"] == "line"
    before = run.repeatable
    (run.newest_checkpoint / "manifest.json").unlink()
    again = pretrain(tmp_path / "run", "--recipe", RECIPE, *data)
    assert again.code == 0, again.err
    assert again.repeatable == before
    data[1] = f"{dataset_folder}:0.6"
    other = pretrain(tmp_path / "run", "--recipe", RECIPE, *data)
    assert other.code == 2
    assert "holds another run (dataset" in other.err


def test_isolated_documents_train_alike_with_checkpointed_layers(dataset_folder, tmp_path):
    arguments = ["--recipe", RECIPE, "--data", dataset_folder, "--isolate_documents"]
    arguments += ["--sample_mode", "document", "--max_steps", 3]
    plain = pretrain(tmp_path / "plain", *arguments)
    checkpointed = pretrain(tmp_path / "checkpointed", *arguments, config="activation_checkpointing")
    assert plain.code == checkpointed.code == 0, plain.err + checkpointed.err
    assert checkpointed.losses == pytest.approx(plain.losses, abs=1e-5)


def test_the_bare_command_is_a_demo_and_says_how_to_pass_data(tmp_path):
    words = ["--max_steps", 12, "--output_dir", "runs/mpnet-tiny"]
    run = pretrain(tmp_path / "runs" / "mpnet-tiny", *words, cwd=tmp_path, ranks=1)
    assert run.code == 0, run.err
    assert "This is the demo: recipe mpnet-tiny" in run.out
    assert "--data my-data" in run.out
    assert (tmp_path / "runs" / "mpnet-tiny" / "checkpoints" / "latest").exists()
    assert run.eval_losses[-1] < run.eval_losses[0]


def test_without_an_output_folder_each_finished_run_gets_a_new_one(dataset_folder, tmp_path):
    for _ in range(2):
        arguments = ["--recipe", RECIPE, "--data", dataset_folder, "--max_steps", 2]
        done = pretrain(tmp_path / "unused", *arguments, "--output_dir=", cwd=tmp_path)
        assert done.code == 0, done.err
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["recipe", "recipe-2"]


def test_a_finished_run_is_not_trained_again(trained, dataset_folder):
    run = trained()
    before = (run.folder / "metrics.jsonl").read_bytes()
    again = pretrain(run.folder, "--recipe", RECIPE, "--data", dataset_folder)
    assert again.code == 0
    assert "already trained to step 8" in again.out
    assert (run.folder / "metrics.jsonl").read_bytes() == before


def test_dry_run_prints_the_resolved_settings_and_writes_nothing(dataset_folder, tmp_path):
    run = pretrain(tmp_path / "run", "--recipe", RECIPE, "--data", dataset_folder, "--dry_run")
    assert run.code == 0, run.err
    engine, end = json.JSONDecoder().raw_decode(run.out, run.out.index("\n{") + 1)
    assert engine["train_micro_batch_size_per_gpu"] == 8
    assert "auto" not in json.dumps(engine)
    assert run.out[end:].strip().startswith("All checks passed")
    for part in ("parameters", "gradients", "optimizer states", "activations", "epochs of the data", "Checkpoints of about"):
        assert part in run.out, part
    assert not (tmp_path / "run").exists()


def test_init_from_starts_with_the_weights_of_a_hugging_face_folder(trained, dataset_folder, tmp_path):
    from mpnet_ds.hub.export import export_huggingface

    source = trained()
    export_huggingface(source.folder, tmp_path / "hf")
    unused = shutil.copytree(tmp_path / "hf", tmp_path / "unused")
    arguments = ["--deepspeed_config", ROOT / "ds_configs" / "zero2.json", "--recipe", RECIPE, "--data", dataset_folder]
    first = [*arguments, "--max_steps", 1, "--init_from", tmp_path / "hf"]
    resumed = [*arguments, "--max_steps", 2, "--init_from", unused]
    runs = {tmp_path / "run": first, unused / ".." / "run": resumed}  # the same folder
    run, again = pretrain_all(tmp_path, runs, ranks=1).values()
    assert run.code == again.code == 0, run.err
    assert f"\nWeights of {tmp_path / 'hf'}\n" in run.out
    assert "--init_from is not used" in again.out
    assert "Weights of" not in again.out
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert {start["init_from"] for start in (record, *record["starts"])} == {str(tmp_path / "hf")}
    assert {start["base_model"] for start in (record, *record["starts"])} == {"hf"}
    assert run.eval_losses[0] == pytest.approx(source.eval_losses[-1], abs=1e-5)
