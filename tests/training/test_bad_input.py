"""Bad input: exit code 2, one or two lines that name the thing and the cure, nothing overwritten."""

import json
import os
import shutil
import socket

import pytest
import torch

from mpnet_ds.files import fast_checksum
from mpnet_ds.zero.torch_file import load_shard
from tests import runs
from tests.manifests import write_manifest
from tests.runs import RECIPE, ROOT, launch, pretrain, recipe_with


def assert_refused(run, *parts: str) -> None:
    assert run.code == 2, run.out + run.err
    assert "Traceback" not in run.err
    lines = [line for line in run.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    for part in parts:
        assert part in lines[0]


def config_with(folder, **changes):
    content = json.loads((ROOT / "ds_configs" / "zero2.json").read_text()) | changes
    path = folder / "config.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_unknown_recipe(dataset_folder, tmp_path):
    run = pretrain(tmp_path / "run", "--recipe", "mpnet-tinny", "--data", dataset_folder)
    assert_refused(run, "unknown recipe 'mpnet-tinny'", "Did you mean 'mpnet-tiny'?")
    assert not (tmp_path / "run").exists()


def test_missing_data_folder(tmp_path):
    run = pretrain(tmp_path / "run", "--recipe", RECIPE, "--data", tmp_path / "nowhere")
    assert_refused(run, f"no dataset folder {tmp_path / 'nowhere'}", "tools/build_dataset.py")


def test_tokenizer_that_is_not_the_datasets(dataset_folder, tmp_path):
    from mpnet_ds.tokenizer_training import train_tokenizer

    data = tmp_path / "data"
    shutil.copytree(dataset_folder, data)
    shutil.rmtree(data / "tokenizer")
    train_tokenizer(["another text altogether, with other words"], 64).save(data / "tokenizer")
    run = pretrain(tmp_path / "run", "--recipe", RECIPE, "--data", data)
    assert_refused(run, "is not the tokenizer", "fingerprint", "dataset.json", "build the dataset again")


def test_unknown_key_in_a_recipe(dataset_folder, tmp_path):
    recipe = recipe_with(tmp_path, optimization={"learning_rte": 1.0})
    run = pretrain(tmp_path / "run", "--recipe", recipe, "--data", dataset_folder)
    assert_refused(run, "unknown key 'optimization.learning_rte'", "Did you mean 'learning_rate'?")


def test_unknown_key_at_the_top_of_the_deepspeed_json(dataset_folder, tmp_path):
    config = config_with(tmp_path, gradient_clipp1ng=1.0)
    run = pretrain(tmp_path / "run", "--recipe", RECIPE, "--data", dataset_folder, config=config)
    assert_refused(run, "unknown key 'gradient_clipp1ng'", "Did you mean 'gradient_clipping'?")


def test_fp16_on_a_cpu(dataset_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    run = pretrain(tmp_path / "run", "--recipe", RECIPE, "--data", dataset_folder, config="fp16")
    assert_refused(run, "fp16 is enabled, but this device does not support it", "ds_configs/")


def test_output_folder_with_another_run(trained, dataset_folder, tmp_path):
    before = trained()
    content = {path: path.read_bytes() for path in before.folder.rglob("*") if path.is_file()}
    recipe = recipe_with(tmp_path, model={"hidden_size": 48})
    run = pretrain(before.folder, "--recipe", recipe, "--data", dataset_folder)
    assert_refused(run, "holds another run (model.hidden_size was 32, is now 48)", "--output_dir")
    run = pretrain(before.folder, "--recipe", RECIPE, "--data", dataset_folder, "--resume", "never")
    assert_refused(run, "holds a run", "--resume auto")
    assert {path: path.read_bytes() for path in before.folder.rglob("*") if path.is_file()} == content


def test_output_folder_with_something_else(dataset_folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    run = pretrain(tmp_path / "run", "--recipe", RECIPE, "--data", dataset_folder)
    assert_refused(run, "holds no run", "--output_dir")
    assert (tmp_path / "run" / "thesis.tex").read_text() == "precious"


def test_output_folder_that_is_a_file_or_below_one(dataset_folder, tmp_path):
    (tmp_path / "file").write_text("precious")
    arguments = ["--recipe", RECIPE, "--data", dataset_folder]
    assert_refused(pretrain(tmp_path / "file", *arguments), "cannot write to", "it is a file", "--output_dir")
    assert_refused(pretrain(tmp_path / "file" / "run", *arguments), "cannot write to", "--output_dir")


def test_batch_sizes_that_do_not_fit(dataset_folder, tmp_path):
    arguments = ["--recipe", RECIPE, "--data", dataset_folder, "--micro_batch_size", 3]
    assert_refused(pretrain(tmp_path / "run", *arguments), "global_batch_size 8", "micro_batch_size 3", "take 6 or 9")


def test_value_in_the_json_that_contradicts_the_recipe(dataset_folder, tmp_path):
    config = config_with(tmp_path, gradient_clipping=0.5)
    run = pretrain(tmp_path / "run", "--recipe", RECIPE, "--data", dataset_folder, config=config)
    assert_refused(run, "gradient_clipping is 0.5", "says 1.0", '"auto"')


def test_misspelt_flag(tmp_path):
    assert_refused(pretrain(tmp_path / "run", "--max_step", 3), "--max_step", "Did you mean --max_steps?")


def test_missing_deepspeed_configuration(tmp_path):
    assert_refused(
        pretrain(tmp_path / "run", config="./nowhere.json"), "no DeepSpeed configuration ./nowhere.json", "ds_configs/"
    )


def test_eval_data_without_data(dataset_folder, tmp_path):
    assert_refused(pretrain(tmp_path / "run", "--eval_data", dataset_folder), "--eval_data without --data")


def test_mixture_with_and_without_weights(dataset_folder, tmp_path):
    arguments = ["--recipe", RECIPE, "--data", f"{dataset_folder}:0.5", dataset_folder]
    assert_refused(pretrain(tmp_path / "run", *arguments), f"{dataset_folder} has no weight", "give all of them a weight")


def test_shard_that_is_damaged_while_training(dataset_folder, tmp_path):
    data = shutil.copytree(dataset_folder, tmp_path / "data")
    path = data / "shard-00000.bin"
    path.write_bytes(bytes([0xFF]) * path.stat().st_size)
    run = pretrain(tmp_path / "run", "--recipe", RECIPE, "--data", data, "--eval_data", dataset_folder)
    assert_refused(run, f"{path}: token ", "has id 65,535", "--verify", "build it again")


def test_checkpoint_of_another_model(trained, dataset_folder, tmp_path):
    recipe = recipe_with(tmp_path, model={"hidden_size": 48})
    arguments = ["--recipe", recipe, "--data", dataset_folder, "--resume", trained().folder]
    assert_refused(pretrain(tmp_path / "run", *arguments), "of another run (model.hidden_size was 32, is now 48)")


def test_init_from_a_model_of_other_sizes(trained, dataset_folder, tmp_path):
    from mpnet_ds.hub.export import export_huggingface

    export_huggingface(trained().folder, tmp_path / "hf")
    recipe = recipe_with(tmp_path, model={"hidden_size": 48})
    run = pretrain(tmp_path / "run", "--recipe", recipe, "--data", dataset_folder, "--init_from", tmp_path / "hf")
    assert_refused(run, "hidden_size is 32 there, 48 here")


def test_a_port_that_another_run_has_is_named(monkeypatch):
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setattr(runs, "free_port", lambda: port)
        done = launch([ROOT / "launch" / "pretrain.py", "--deepspeed_config", ROOT / "ds_configs" / "zero2.json"], ranks=1)
    assert done.returncode == 2
    assert f"error: port {port} is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_ranks_have_one_voice(tmp_path):
    run = pretrain(tmp_path / "run", "--recipe", "mpnet-tinny", ranks=2)
    assert_refused(run, "unknown recipe")


def test_going_back_in_a_run_that_has_gone_on(trained, dataset_folder, tmp_path):
    run = shutil.copytree(trained().folder, tmp_path / "run")
    arguments = ["--recipe", RECIPE, "--data", dataset_folder, "--resume", run / "checkpoints" / "step-00000006"]
    assert_refused(pretrain(run, *arguments, "--max_steps", 9), "has continued to step 8", "choose another --output_dir")
    assert (run / "checkpoints" / "step-00000008" / "manifest.json").exists()


def test_checkpoint_with_foreign_code_is_not_resumed(trained, dataset_folder, tmp_path):
    class Malice:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'pwned'}",)

    run = shutil.copytree(trained().folder, tmp_path / "run")
    checkpoint = run / "checkpoints" / "step-00000008"
    name = "mp_rank_00_model_states.pt"
    content = load_shard(checkpoint / name)
    torch.save(content | {"innocent": [Malice()]}, tmp_path / name)  # not over the file, which is mapped into memory
    os.replace(tmp_path / name, checkpoint / name)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": (checkpoint / name).stat().st_size, "xxh3_64": fast_checksum(checkpoint / name)}
    write_manifest(checkpoint, manifest)
    arguments = ["--recipe", RECIPE, "--data", dataset_folder, "--max_steps", 9]
    assert_refused(pretrain(tmp_path / "other", *arguments, "--resume", checkpoint), name, "foreign code")
    assert "set aside" in pretrain(run, *arguments).out
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zero_optimization": {"stage": 7}}, "zero_optimization.stage is 7; it must be at most 3"),
        ({"zero_optimization": "2"}, "'zero_optimization' must be an object"),
        ({"train_micro_batch_size_per_gpu": 0}, "train_micro_batch_size_per_gpu is 0; it must be greater than 0"),
    ],
)
def test_what_deepspeed_would_not_take_is_found_before_anything_is_written(dataset_folder, tmp_path, changes, message):
    config = config_with(tmp_path, **changes)
    run = pretrain(tmp_path / "run", "--recipe", RECIPE, "--data", dataset_folder, config=config)
    assert_refused(run, message)
    assert not (tmp_path / "run").exists()


def test_unknown_attention(dataset_folder, tmp_path):
    run = pretrain(tmp_path / "run", "--recipe", RECIPE, "--data", dataset_folder, "--attention", "sdpaa")
    assert_refused(run, "unknown attention 'sdpaa'", "Did you mean 'sdpa'?")
    assert not (tmp_path / "run").exists()
