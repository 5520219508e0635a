import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers

from mpnet_ds.config.overrides import read_overrides
from mpnet_ds.config.recipe import RECIPES, DataRecipe, OptimizationRecipe, load_recipe, recipe_from_dict
from mpnet_ds.errors import UserError
from mpnet_ds.objectives.model_section import MPNetSection

SIZES = {
    "bert-base": (30_522, 110),
    "convbert-base": (30_522, 106),
    "ctrl": (246_534, 1_630),
    "deberta-base": (128_100, 184),
    "deberta-v2-xlarge": (128_100, 900),
    "deberta-v2-xxlarge": (128_100, 1_500),
    "distilbert-base": (30_522, 66),
    "ernie-base": (30_522, 110),
    "flaubert-base": (68_729, 138),
    "funnel-small": (30_522, 131),
    "gpt2": (50_257, 124),
    "longformer-base": (50_265, 149),
    "modernbert-base": (50_368, 149),
    "mpnet-mlm": (30_527, 110),
    "openai-gpt": (40_478, 117),
    "reformer-enwik8": (258, 149),
    "roberta-base": (50_265, 125),
    "xlm-clm": (64_139, 142),
    "xlm-mlm": (95_000, 250),
    "xlm-roberta-base": (250_002, 270),
}
"""Published recipes of families → pieces of the vocabulary, and millions of parameters as published."""
COARSE = {"deberta-v2-xlarge": 0.02, "deberta-v2-xxlarge": 0.05, "distilbert-base": 0.02, "xlm-roberta-base": 0.04}
"""Relative error of published figures that leave out the head, or are round; of the others it is 0.01."""


def tokenizer_of(pieces: int) -> SimpleNamespace:
    """What a configuration asks of a tokenizer."""
    return SimpleNamespace(vocab_size=pieces, begin_id=0, pad_id=1, end_id=2, unknown_id=3, mask_id=4)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.json")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_has_the_published_size(path):
    recipe = load_recipe(path.stem)
    assert recipe.name == path.stem
    assert len(recipe.description) > 20
    assert recipe.optimization.warmup_steps < recipe.optimization.max_steps
    if isinstance(recipe.model, MPNetSection):
        assert recipe.model.config(30527).layer_norm_eps == 1e-5
        return
    pieces, millions = SIZES[recipe.name]
    is_causal = recipe.objective.name == "clm"
    config = recipe.model.config(tokenizer_of(pieces), recipe.data.seq_length, is_causal)
    with torch.device("meta"):
        model = getattr(transformers, recipe.model.family.class_name(is_causal))(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == pytest.approx(millions * 1e6, rel=COARSE.get(recipe.name, 0.01))


@pytest.mark.parametrize(
    ("section", "key", "follows"),
    [
        ({"model_type": "modernbert", "num_hidden_layers": 2}, "layer_types", ["full_attention", "sliding_attention"]),
        ({"model_type": "funnel", "block_sizes": [2, 2]}, "block_repeats", [1, 1]),
        ({"model_type": "bert", "hidden_size": 24, "num_hidden_layers": 12}, "num_hidden_layers", 12),
    ],
)
def test_what_follows_from_a_key_is_not_the_default_of_another(section, key, follows):
    recipe = recipe_from_dict({"name": "mine", "objective": "mlm", "model": section}, "mine.json")
    assert getattr(recipe.model.config(tokenizer_of(100), 64, False), key) == follows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"modle": {}}, "unknown key 'modle'. Did you mean 'model'"),
        ({"objective": {"name": "mlm", "masking": {"whole_wrd": True}}},
         r"unknown key 'objective\.masking\.whole_wrd'. Did you mean 'whole_word'"),
        ({"data": {"masking": {}}}, r"unknown key 'data\.masking'. Did you mean 'objective\.masking'"),
        ({"learning_rate": 1.0}, r"unknown key 'learning_rate'. Did you mean 'optimization\.learning_rate'"),
        ({"model": {"masking": {}}}, r"unknown key 'model\.masking'. Did you mean 'objective\.masking'"),
        ({"optimization": {"max_steps": 1.5}}, r"optimization\.max_steps is 1\.5; it must be a whole number"),
        ({"optimization": {"max_steps": True}}, r"optimization\.max_steps is true; it must be a whole number"),
        ({"optimization": {"learning_rate": "fast"}}, r"optimization\.learning_rate is \"fast\"; it must be a number"),
        ({"optimization": {"learning_rate": float("inf")}}, r"learning_rate is Infinity; it must be a finite number"),
        ({"optimization": {"betas": [0.9]}}, r"optimization\.betas\.1 is missing"),
        ({"optimization": {"betas": [0.9, 1]}}, r"optimization\.betas\.1 is 1; it must be less than 1\."),
        ({"run": 3}, "run is 3; it must be an object"),
        ({"run": {"log_interval": 0}}, r"run\.log_interval is 0; it must be greater than 0\."),
        ({"run": {"seed": -1}}, r"run\.seed is -1; it must be at least 0\."),
        ({"run": {"seed": 2**63}}, r"run\.seed is 9223372036854775808; it must be at most 9223372036854775807\."),
        ({"optimization": {"learning_rate": -1.0}}, r"optimization\.learning_rate is -1\.0; it must be greater than 0\."),
        ({"model": {"layer_norm_eps": 0.0}}, r"model\.layer_norm_eps is 0\.0; it must be greater than 0\."),
        ({"optimization": {"weight_decay": -0.1}}, r"optimization\.weight_decay is -0\.1; it must be at least 0\."),
        ({"objective": "mlmm"}, "unknown objective 'mlmm'. Did you mean 'mlm'"),
        ({"objective": {"name": "mlm", "nmae": "mlm"}}, r"unknown key 'objective\.nmae'. Did you mean 'name'"),
        ({"objective": 3}, "objective is 3; it must be a name, or an object"),
        ({"objective": {"masking": {}}}, "an objective without a name"),
        ({"data": {"seq_length": 1024}},
         r"seq_length is 1024, but .*max_position_embeddings is 514: raise model\.max_position_embeddings to 1026, or"),
        ({"objective": {"name": "mpnet", "masking": {"predicted_fraction": 1.5}}},
         r"objective\.masking\.predicted_fraction is 1\.5; it must be less than 1\."),
        ({"objective": {"name": "mpnet", "masking": {"mask_probability": 0.9, "keep_probability": 0.9}}}, "sum to 1"),
        ({"objective": {"name": "mpnet", "masking": {"max_ngram": 99}}}, "max_ngram is 99; it must be at most 16"),
        ({"data": {"sample_mode": "documents"}}, r"unknown data\.sample_mode \"documents\". Did you mean 'document'"),
        ({"data": {"seq_length": 4}}, r"data\.seq_length is 4; it must be at least 8\."),
        ({"data": {"sample_mode": 3}}, r"unknown data\.sample_mode 3. Known: document, line, stream"),
        ({"data": {"isolate_documents": "yes"}}, r"data\.isolate_documents is \"yes\"; it must be true or false"),
        ({"data": {"packing": 1}}, r"data\.packing is 1; it must be true or false"),
        ({"optimization": {"precision": "fp16"}}, r"ds_configs/fp16\.json"),
        ({"optimization": {"precision": "bf61"}}, r"unknown optimization\.precision \"bf61\". Did you mean 'bf16'"),
        ({"name": 3}, "name is 3; it must be text"),
        ({"model": {"start": "nera"}}, r"unknown model\.start \"nera\"\. Did you mean 'near'"),
        ({"model": {"start": "near", "start_strength": -1}}, r"model\.start_strength is -1; it must be greater than 0\."),
        ({"model": {"start": "near", "start_strength": 0}}, r"model\.start_strength is 0; it must be greater than 0\."),
        ({"model": {"start": "near", "start_strength": float("nan")}}, r"start_strength is NaN; it must be a finite number"),
        ({"model": {"start": "near", "start_strength": float("inf")}}, r"start_strength is Infinity; it must be a finite"),
        ({"model": {"start": "near", "start_strength": "much"}}, r"model\.start_strength is \"much\"; it must be a number"),
        ({"model": {"start_strength": 2}}, r"start_strength is for model\.start 'near': set that too, or leave it out"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_place(content, message):
    with pytest.raises(UserError, match=message) as caught:
        recipe_from_dict({"name": "mine"} | content, "mine.json")
    assert len(caught.value.findings) == 1
    assert str(caught.value).startswith("mine.json: ")


def test_all_mistakes_of_a_file_are_said_at_once():
    content = {"objective": "mlmm", "data": {"masking": {}, "packing": 1}, "run": {"seed": -1, "keep": 0}, "modle": {}}
    with pytest.raises(UserError) as caught:
        recipe_from_dict({"name": "mine"} | content, "mine.json")
    for place in ("mlmm", "data.masking", "data.packing", "run.seed", "run.keep", "modle"):
        assert sum(place in text for text in caught.value.findings) == 1, place


@pytest.mark.parametrize(
    ("content", "places"),
    [
        ({"model": {"max_position_embeddings": 66, "hidden_size": 0}, "data": {"seq_length": 600}},
         ["model.hidden_size", "data.seq_length is 600"]),
        ({"model": {"max_position_embeddings": -1}, "data": {"seq_length": 600}}, ["model.max_position_embeddings"]),
        ({"model": {"max_position_embedings": 1000}, "data": {"seq_length": 600}}, ["model.max_position_embedings"]),
        ({"objective": {"name": "mpnet", "masking": {"mask_probability": 2, "keep_probability": 1}}}, ["mask_probability"]),
        ({"objective": {"name": "mpnet", "masking": {"max_ngram": 99, "mask_probability": 0.9, "keep_probability": 0.9}}},
         ["max_ngram is 99", "sum to 1"]),
        ({"objective": "of_a_plugin", "run": {"plugins": ["no_such_a", "no_such_b"]}}, ["no_such_a", "no_such_b"]),
        ({"objective": "mlmm", "run": {"keep": 0}}, ["mlmm", "run.keep"]),
    ],
)  # fmt: skip
def test_what_follows_from_a_mistake_is_not_said_and_what_does_not_is(content, places):
    with pytest.raises(UserError) as caught:
        recipe_from_dict({"name": "mine"} | content, "mine.json")
    assert len(caught.value.findings) == len(places), caught.value
    assert all(place in str(caught.value) for place in places), caught.value


def test_a_section_refuses_bad_values_however_it_is_made():
    with pytest.raises(ValueError, match="greater than 0"):
        replace(OptimizationRecipe(), max_steps=0)
    with pytest.raises(ValueError, match="max_position_embeddings"):
        replace(load_recipe("mpnet-base"), data=DataRecipe(seq_length=4096))


def test_files_and_names_that_do_not_exist(tmp_path):
    with pytest.raises(UserError, match=r"unknown recipe 'mpnet-bsae'\. Did you mean 'mpnet-base'"):
        load_recipe("mpnet-bsae")
    with pytest.raises(UserError, match="no recipe file"):
        load_recipe(str(tmp_path / "mine.json"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_recipe(str(tmp_path / "broken.json"))


def test_a_key_that_is_given_twice_is_named_wherever_it_is(tmp_path):
    (tmp_path / "twice.json").write_text(
        '{"optimization": {"max_steps": 10, "eps": 0, "max_steps": 20}, "run": 1, "run": {}}'
    )
    with pytest.raises(
        UserError, match=r"twice\.json: 'max_steps' is given 2 times in one object \(10, 20\): keep one"
    ) as told:
        load_recipe(str(tmp_path / "twice.json"))
    assert len(told.value.findings) == 3, "the other key, and the value that is wrong, too"
    (text,) = read_overrides(['objective={"name": "mlm", "name": "plm"}'], {})[1]
    assert re.match(r"--set objective: 'name' is given 2 times .* keep one", text)


def test_whole_numbers_are_fine_where_a_fraction_is_expected(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"optimization": {"learning_rate": 1, "betas": [0, 0.98]}}))
    recipe = load_recipe(str(path))
    assert recipe.name == "mine"
    assert recipe.optimization.learning_rate == 1.0
    assert recipe.optimization.betas == (0.0, 0.98)
