import json
from dataclasses import replace

import pytest
import torch

from mpnet_ds.config.recipe import DataRecipe, Recipe
from mpnet_ds.errors import UserError
from mpnet_ds.objectives.model_section import MPNetSection
from mpnet_ds.ranks.disks import Disks
from mpnet_ds.ranks.process_group import Ranks
from mpnet_ds.run.run_folder import Setting, decide_start, identity

ALONE = Disks(Ranks(0, 0, 1, torch.device("cpu"), ("here",)))


def start_of(folder, recipe: Recipe):
    return decide_start(folder, "auto", identity(recipe, "tokenizer", "dataset"), Setting(1, 2, "fp32"), ALONE)


def test_a_run_is_continued_with_its_own_options_only(tmp_path):
    recipe = Recipe("mine")
    (tmp_path / "run.json").write_text(json.dumps({"identity": identity(recipe, "tokenizer", "dataset")}))
    assert start_of(tmp_path, recipe).checkpoint is None
    with pytest.raises(UserError, match=r'data\.sample_mode was "stream", is now "line"'):
        start_of(tmp_path, replace(recipe, data=DataRecipe(sample_mode="line")))
    with pytest.raises(UserError, match=r"model\.layer_norm_eps was 1e-05, is now 1e-12"):
        start_of(tmp_path, replace(recipe, model=MPNetSection(layer_norm_eps=1e-12)))


def test_a_run_of_a_version_without_initial_values_is_continued_by_usual_ones_only(tmp_path):
    recipe = Recipe("mine")
    older = identity(recipe, "tokenizer", "dataset")
    assert not older["model"].keys() & {"start", "start_strength"}
    (tmp_path / "run.json").write_text(json.dumps({"identity": older}))
    assert start_of(tmp_path, replace(recipe, model=MPNetSection(start="usual"))).checkpoint is None
    near = replace(recipe, model=MPNetSection(start="near"))
    with pytest.raises(UserError, match=r'holds another run \(model\.start was null, is now "near"'):
        start_of(tmp_path, near)
    (tmp_path / "run.json").write_text(json.dumps({"identity": identity(near, "tokenizer", "dataset")}))
    assert start_of(tmp_path, near).checkpoint is None
    with pytest.raises(UserError, match=r"model\.start_strength was 2\.0, is now 3\.0"):
        start_of(tmp_path, replace(recipe, model=MPNetSection(start="near", start_strength=3.0)))
    with pytest.raises(UserError, match=r"model\.start"):
        start_of(tmp_path, recipe)
