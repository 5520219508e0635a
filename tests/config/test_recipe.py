import json

import pytest

from mpnet_ds.config.recipe import RECIPES, load_recipe, recipe_from_dict
from mpnet_ds.errors import UserError


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.json")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_describes_itself(path):
    recipe = load_recipe(path.stem)
    assert recipe.name == path.stem
    assert len(recipe.description) > 20
    assert recipe.optimization.warmup_steps < recipe.optimization.max_steps
    assert recipe.model.config(30527).layer_norm_eps == 1e-5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"modle": {}}, "unknown key 'modle'. Did you mean 'model'"),
        ({"data": {"masking": {"whole_wrd": True}}}, r"unknown key 'data\.masking\.whole_wrd'. Did you mean 'whole_word'"),
        ({"optimization": {"max_steps": 1.5}}, r"'optimization\.max_steps' is 1\.5; it must be of type int"),
        ({"optimization": {"learning_rate": "fast"}}, "'optimization.learning_rate' is \"fast\"; it must be of type float"),
        ({"optimization": {"betas": [0.9]}}, "'optimization.betas' is"),
        ({"run": 3}, "'run' must be an object"),
        ({"run": {"log_interval": 0}}, "log_interval is 0; it must be greater than 0"),
        ({"optimization": {"learning_rate": -1.0}}, r"learning_rate is -1\.0; it must be greater than 0"),
        ({"model": {"layer_norm_eps": 0.0}}, r"layer_norm_eps is 0\.0; it must be greater than 0"),
        ({"optimization": {"weight_decay": -0.1}}, r"weight_decay is -0\.1; it must be at least 0"),
        ({"objective": "mlmm"}, "unknown objective 'mlmm'. Did you mean 'mlm'"),
        ({"data": {"seq_length": 1024}}, r"raise model\.max_position_embeddings to 1026"),
        ({"data": {"masking": {"predicted_fraction": 1.5}}}, "must lie between 0 and 1"),
        ({"data": {"masking": {"mask_probability": 0.9}}}, "sum to 1"),
        ({"data": {"masking": {"max_ngram": 99}}}, "max_ngram is 99; it must lie between 1 and 16"),
        ({"data": {"sample_mode": "documents"}}, "unknown sample_mode 'documents'. Did you mean 'document'"),
        ({"data": {"sample_mode": 3}}, r"'data\.sample_mode' is 3; it must be of type str"),
        ({"data": {"isolate_documents": "yes"}}, r"'data\.isolate_documents' is \"yes\"; it must be of type bool"),
        ({"data": {"packing": 1}}, r"'data\.packing' is 1; it must be of type bool"),
        ({"optimization": {"precision": "fp16"}}, r"ds_configs/fp16\.json"),
    ],
)
def test_mistakes_are_named_with_their_place(content, message):
    with pytest.raises(UserError, match=message):
        recipe_from_dict({"name": "mine"} | content, "mine.json")


def test_files_and_names_that_do_not_exist(tmp_path):
    with pytest.raises(UserError, match=r"unknown recipe 'mpnet-bsae'\. Did you mean 'mpnet-base'"):
        load_recipe("mpnet-bsae")
    with pytest.raises(UserError, match="no recipe file"):
        load_recipe(str(tmp_path / "mine.json"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_recipe(str(tmp_path / "broken.json"))


def test_whole_numbers_are_fine_where_a_fraction_is_expected(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"optimization": {"learning_rate": 1, "betas": [0, 0.98]}}))
    recipe = load_recipe(str(path))
    assert recipe.name == "mine"
    assert recipe.optimization.learning_rate == 1.0
    assert recipe.optimization.betas == (0.0, 0.98)
