import json
from dataclasses import replace

import pytest
import torch

from mpnet_ds.config.recipe import DataRecipe, Recipe
from mpnet_ds.errors import UserError
from mpnet_ds.objectives.model_section import ModelSection
from mpnet_ds.ranks.disks import Disks
from mpnet_ds.ranks.process_group import Ranks
from mpnet_ds.run.run_folder import Setting, decide_start, identity

ALONE = Disks(Ranks(0, 0, 1, torch.device("cpu"), ("here",)))


def saved_before_newer_options(folder, recipe: Recipe) -> None:
    """What a run of the first release wrote."""
    before = json.loads(json.dumps(identity(recipe, "tokenizer", "dataset")))
    for name in ("sample_mode", "packing", "isolate_documents"):
        del before["data"][name]
    del before["data"]["masking"]["max_ngram"]
    del before["model"]["layer_norm_eps"]
    (folder / "run.json").write_text(json.dumps({"identity": before}))


def start_of(folder, recipe: Recipe):
    return decide_start(folder, "auto", identity(recipe, "tokenizer", "dataset"), Setting(1, 2, "fp32"), ALONE)


def test_a_run_of_an_older_version_can_be_continued(tmp_path):
    recipe = Recipe("mine")
    saved_before_newer_options(tmp_path, recipe)
    assert start_of(tmp_path, recipe).checkpoint is None


def test_but_not_with_other_options(tmp_path):
    recipe = Recipe("mine")
    saved_before_newer_options(tmp_path, recipe)
    with pytest.raises(UserError, match=r'data\.sample_mode was "stream", is now "line"'):
        start_of(tmp_path, replace(recipe, data=DataRecipe(sample_mode="line")))
    with pytest.raises(UserError, match=r"model\.layer_norm_eps was 1e-05, is now 1e-12"):
        start_of(tmp_path, replace(recipe, model=ModelSection(layer_norm_eps=1e-12)))
