"""How a run is computed may change on the way; what it trains and its checkpoints do not."""

import json
import shutil

import pytest

from mpnet_ds.model.attention import BACKENDS
from tests.runs import RECIPE, pretrain


def test_a_run_goes_on_with_another_attention_and_says_which(trained, dataset_folder, tmp_path):
    output = shutil.copytree(trained().folder, tmp_path / "run")
    shutil.rmtree(output / "checkpoints" / "step-00000008")
    flags = ["--recipe", RECIPE, "--data", dataset_folder]
    run = pretrain(output, *flags, "--attention", "sdpa")
    assert run.code == 0, run.err
    assert "at update 6" in run.out
    assert ", attention by sdpa\n" in run.out
    assert run.losses == pytest.approx(trained().losses, abs=1e-5)
    record = json.loads((output / "run.json").read_text())
    assert record["execution"]["attention"] == "sdpa"
    before = json.loads((trained().folder / "run.json").read_text())
    assert before["arguments"]["attention"] == "auto"
    assert before["execution"]["attention"] in set(BACKENDS) - {"auto"}
    assert record["identity"] == before["identity"]
