"""An objective and a model of a user's own, those of docs/add_a_model.md, through the unchanged package."""

import shutil
import sys

import pytest
from transformers import BertForTokenClassification

from tests.runs import ROOT, Run, command, pretrain, pretrain_all, recipe_with

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DROPOUT = dict.fromkeys(NO_DROPOUT, 0.1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, dataset_folder) -> dict[str, tuple[Run, Run]]:
    """By name: a run of eight steps on two ranks, and what became of it when it was cut back to step 6 and started again."""
    folder, arguments = tmp_path_factory.mktemp("own"), {}
    for name, dropout, more in (
        ("resumed", DROPOUT, ["--deepspeed_config", ROOT / "ds_configs" / "zero2.json"]),
        ("converted", NO_DROPOUT, ["--deepspeed_config", ROOT / "ds_configs" / "zero1.json"]),
    ):
        (folder / f"{name}-recipe").mkdir()
        recipe = recipe_with(folder / f"{name}-recipe", model=dropout)
        plugin = ["--set", "run.plugins=tests.toy", "objective.name=spot", "objective.share=0.3"]
        arguments[folder / name] = ["--recipe", recipe, "--data", dataset_folder, "--micro_batch_size", 2, *plugin, *more]
    first = pretrain_all(folder, arguments, ranks=2)
    assert all(run.code == 0 for run in first.values()), "\n".join(run.out + run.err for run in first.values())
    whole = {output: (run, run.repeatable) for output, run in first.items()}
    for output in arguments:
        shutil.rmtree(output / "checkpoints" / "step-00000008")
    arguments[folder / "converted"][-1] = ROOT / "ds_configs" / "zero3.json"
    again = pretrain_all(folder, arguments, ranks=2)
    return {output.name: (whole[output][1], again[output]) for output in arguments}


def test_it_learns_and_says_so_by_the_name_of_its_term(runs):
    lines, _ = runs["resumed"]
    losses = [line["loss/spot"] for line in lines if "loss/spot" in line]
    assert len(losses) == 8
    assert losses == [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    assert {"eval_loss", "eval_loss/spot", "eval_accuracy/spot"} <= lines[0].keys()


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(runs):
    whole, again = runs["resumed"]
    assert "step-00000006 at step 6" in again.out, again.out + again.err
    assert again.repeatable == whole


def test_its_checkpoints_are_converted_between_zero_stages(runs):
    whole, again = runs["converted"]
    assert "ZeRO 1 → ZeRO 3" in again.out, again.out + again.err
    assert again.losses == pytest.approx([line["loss"] for line in whole if "loss" in line], abs=1e-5)


def test_its_export_loads_with_transformers(runs, tmp_path):
    arguments = ["tools/convert_to_hf.py", runs["converted"][1].folder, tmp_path / "model"]
    unknown = command(sys.executable, *arguments)
    assert unknown.returncode == 2
    assert "unknown objective 'spot'" in unknown.stderr
    assert "--plugins" in unknown.stderr
    done = command(sys.executable, *arguments, "--plugins", "tests.toy")
    assert done.returncode == 0, done.stderr
    model, loading = BertForTokenClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(loading.values())
    assert model.config.num_labels == 2


def test_a_wrong_key_of_it_is_named(dataset_folder, tmp_path):
    plugin = ["--set", "run.plugins=tests.toy", "objective.name=spot", "objective.shar=0.3"]
    run = pretrain(tmp_path / "run", "--recipe", "mpnet-tiny", "--data", dataset_folder, *plugin)
    assert run.code == 2
    assert "unknown key 'objective.shar'. Did you mean 'share'?" in run.err
    assert not (tmp_path / "run").exists()
