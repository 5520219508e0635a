"""--init_from takes a complete MPNet as it is, or says what differs or how to convert it (for parts see test_parts.py)."""

import re
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import MPNetForMaskedLM, MPNetModel

from mpnet_ds.config.recipe import load_recipe
from mpnet_ds.errors import UserError
from mpnet_ds.hub.init_from import check_start, load_pretrained_weights
from mpnet_ds.objectives.mpnet import MPNet
from tests.checkpoint.models import random_model, saved
from tests.hub.test_import_model import change_weights, save_pickled
from tests.runs import RECIPE


@pytest.fixture
def recipe():
    return load_recipe(str(RECIPE))


def test_init_from_takes_any_whole_model_in_safetensors(tmp_path, tokenizer, recipe):
    check_start(saved(random_model(), tmp_path / "one", tokenizer), recipe, tokenizer)
    change_weights(tmp_path / "one", mpnet__pooler__dense__bias=torch.ones(32))  # microsoft/mpnet-base has one: ignored
    check_start(tmp_path / "one", recipe, tokenizer)
    check_start(saved(random_model(), tmp_path / "several", tokenizer, max_shard_size="50KB"), recipe, tokenizer)


def test_the_module_gets_every_bit_of_the_folder(tmp_path, tokenizer, recipe):
    model = random_model()
    module = MPNet().build(recipe.model, tokenizer, recipe.data.seq_length)
    load_pretrained_weights(module, saved(model, tmp_path / "model", tokenizer))
    found = module.state_dict()
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("why", ["pre-training head", "sentence-transformers", "model.safetensors is missing"])
def test_init_from_names_the_command_that_makes_a_start(tmp_path, tokenizer, recipe, why):
    folder = tmp_path / "model"
    if why == "pre-training head":
        saved(random_model(MPNetModel), folder)
    elif why == "sentence-transformers":
        saved(random_model(), folder / "0_Transformer")
    else:
        save_pickled(random_model(), folder, shards=1, archive=True)
    command = re.escape(f"python tools/convert_from_hf.py {folder} OUT")
    with pytest.raises(UserError, match=rf"{why}\D*{command}$"):
        check_start(folder, recipe, tokenizer)


def test_init_from_says_what_differs_and_the_cure(tmp_path, tokenizer, recipe, save_word_tokenizer):
    other = save_word_tokenizer(tmp_path / "words", 993)
    folder = saved(random_model(), tmp_path / "model")
    for path in other.iterdir():
        shutil.copy(path, folder)
    resize = re.escape(f"convert_from_hf.py {folder} OUT --resize_vocabulary {tokenizer.origin};")
    with pytest.raises(UserError, match=f"its vocabulary is not the data's.*{resize}"):
        check_start(folder, recipe, tokenizer)
    folder = saved(random_model(layer_norm_eps=1e-12), tmp_path / "eps", tokenizer)
    with pytest.raises(UserError, match="layer_norm_eps is 1e-12 there, 1e-05 here: set it in the recipe's section 'model'"):
        check_start(folder, recipe, tokenizer)
    for layers in (1, 3):
        folder = saved(random_model(num_hidden_layers=layers), tmp_path / f"layers{layers}", tokenizer)
        with pytest.raises(UserError, match=f"num_hidden_layers is {layers} there, 2 here"):
            check_start(folder, recipe, tokenizer)


def test_init_from_does_not_take_an_untied_head(tmp_path, tokenizer, recipe):
    folder = saved(random_model(MPNetForMaskedLM), tmp_path / "model", tokenizer)
    change_weights(folder, lm_head__decoder__weight=torch.ones(999, 32))
    with pytest.raises(UserError, match=r"decoder\.weight is not mpnet"):
        check_start(folder, recipe, tokenizer)


def test_init_from_and_initial_values_exclude_each_other(tmp_path, tokenizer, recipe):
    folder = saved(random_model(), tmp_path / "model", tokenizer)
    near = replace(recipe, model=replace(recipe.model, start="near"))
    cure = re.escape(f"model.start is 'near', but the weights of --init_from {folder} count: --set model.start=usual")
    with pytest.raises(UserError, match=f"^{cure}$"):
        check_start(folder, near, tokenizer)
