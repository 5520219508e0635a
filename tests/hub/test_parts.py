"""Export and --init_from serve a module that the package does not know, with one part and with several."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForTokenClassification, BertForTokenClassification

from mpnet_ds.checkpoint import load_consolidated
from mpnet_ds.checkpoint.store import find_checkpoint
from mpnet_ds.config.recipe import Recipe
from mpnet_ds.errors import UserError
from mpnet_ds.hub.export import export_huggingface
from mpnet_ds.hub.exportable import TrainedModel
from mpnet_ds.hub.init_from import check_start, load_pretrained_weights
from mpnet_ds.hub.parity import check_batches, compare
from mpnet_ds.hub.part_weights import SumOfStored, contents_of, find_sources
from mpnet_ds.models.module import Part
from mpnet_ds.zero import torch_file
from mpnet_ds.zero.torch_file import TensorFile
from tests.hub.two_parts import TABLE, TwoParts
from tests.toy import ToyModule

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def single(saved, tmp_path_factory):
    """The export of the toy, whose vocabulary is padded; not to be changed."""
    return exported(saved / "spot", tmp_path_factory.mktemp("single") / "model")


@pytest.fixture(scope="module")
def pair(saved, tmp_path_factory):
    """The export of the module with two parts; not to be changed."""
    return exported(saved / "pair", tmp_path_factory.mktemp("pair") / "model")


def exported(source, folder):
    export_huggingface(source, folder)
    return folder


def trained(saved, name: str) -> TrainedModel:
    return TrainedModel.of(find_checkpoint(saved / name))


def test_a_model_of_ones_own_becomes_a_folder_of_its_class(saved, single):
    weights = load_consolidated(saved / "spot")
    model, loading = AutoModelForTokenClassification.from_pretrained(single, output_loading_info=True)
    assert not any(loading.values())
    assert type(model) is BertForTokenClassification
    assert weights[f"model.{TABLE}"].shape[0] == 1024
    assert model.get_parameter(TABLE).shape[0] == 999
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[f"model.{name}"][: len(parameter)]), name
    assert (single / "vocab.txt").exists()


def test_its_card_claims_nothing_that_it_cannot_do(single, pair):
    text = (single / "README.md").read_text()
    assert "# BertForTokenClassification\n" in text
    assert "| objective | spot: Tell which tokens were replaced by random ones. |" in text
    for absent in ("| predicted |", "<mask>", "fill-mask", "None", "embedding is the mean"):
        assert absent not in text
    assert "spot-twice" in (pair / "second" / "README.md").read_text()


def test_each_part_is_a_folder_that_computes_what_training_does(saved, pair):
    assert sorted(path.name for path in pair.iterdir()) == ["first", "second"]
    module = trained(saved, "pair").recipe.objective.build(*building_blocks(saved)).eval()
    module.load_state_dict(load_consolidated(saved / "pair"))
    for number, name in enumerate(("first", "second")):
        model = AutoModelForTokenClassification.from_pretrained(pair / name).eval()
        for batch in check_batches(pair / name, 32):
            with torch.no_grad():
                expected, found = module.logits(**batch)[number], model(**batch).logits
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def building_blocks(saved) -> tuple:
    model = trained(saved, "pair")
    return model.recipe.model, model.tokenizer, 32


def test_sums_and_files_beside_the_model_hold_what_parts_say(saved, pair):
    weights, stored = load_consolidated(saved / "pair"), load_file(pair / "second" / WEIGHTS)
    assert torch.equal(stored[TABLE], weights[f"first.{TABLE}"] + weights[f"second.{TABLE}"])
    assert torch.equal(stored["classifier.weight"], weights["second.answer.weight"])
    beside = load_file(pair / "second" / "temperature.safetensors")
    assert {name: torch.equal(tensor, weights["temperature"]) for name, tensor in beside.items()} == {"t": True}


def test_half_precision_rounds_the_sum(saved, tmp_path):
    comparison = export_huggingface(saved / "pair", tmp_path / "model", dtype="bf16")
    assert 0 < comparison.rounding < 0.1
    assert comparison.differences.keys() == {
        f"{part}: {kind}" for part in ("first", "second") for kind in ("logits", "hidden_states")
    }
    weights = load_consolidated(saved / "pair")
    total = (weights[f"first.{TABLE}"] + weights[f"second.{TABLE}"]).bfloat16()
    assert torch.equal(load_file(tmp_path / "model" / "second" / WEIGHTS)[TABLE], total)


def test_a_sum_is_read_in_step_however_its_tensors_are_cut(tmp_path, monkeypatch):
    tensors = {"a": torch.randn(7, 5), "b": torch.randn(9, 5)[:7], "c": torch.randn(5, 7).T}
    torch.save(tensors, tmp_path / "x.pt")
    monkeypatch.setattr(torch_file, "CHUNK", 44)
    file = TensorFile(tmp_path / "x.pt")
    a, b, c = (file.tensor(tensor) for tensor in file.content.values())
    for other, name in ((b, "b"), (c, "c")):
        found = torch.cat(list(SumOfStored(a, other).rows(4).chunks()))
        assert torch.equal(found.view(4, 5), (tensors["a"] + tensors[name])[:4])


def change(path, name: str, tensor: Tensor | None) -> None:
    weights = load_file(path)
    weights.pop(name, None)
    save_file(weights | ({name: tensor} if tensor is not None else {}), path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("file", "name", "tensor", "finding"),
    [
        (f"first/{WEIGHTS}", "classifier.bias", torch.ones(2), "differs from the training model: a logit"),
        (f"second/{WEIGHTS}", "classifier.bias", None, "classifier.bias"),
        (f"second/{WEIGHTS}", "strange", torch.ones(1), "strange"),
        ("second/temperature.safetensors", "t", torch.ones(3), "t is not temperature of the training model"),
    ],
)
def test_a_changed_weight_of_any_part_is_found(saved, pair, tmp_path, file, name, tensor, finding):
    copy = shutil.copytree(pair, tmp_path / "model")
    change(copy / file, name, tensor)
    with pytest.raises(UserError, match=finding):
        compare(saved / "pair", copy)


def test_a_module_that_computes_otherwise_than_its_class_is_not_exported(saved, tmp_path, monkeypatch):
    def own_outputs(module: ToyModule, name: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": module.model(**batch).logits + 1e-3}

    monkeypatch.setattr(ToyModule, "reference_outputs", own_outputs)
    with pytest.raises(UserError, match=r"differs from the training model: a logit by 1\.0e-03"):
        export_huggingface(saved / "spot", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("prefix", "settings", "finding"),
    [
        ("first.", {"rename": {"classifier.bias": "bias"}}, "nothing gives .* its classifier.bias"),
        ("second.", {}, "has no weight answer.weight"),
        ("first.", {"sums": {TABLE: ("a", "b")}}, "a is not a weight of the module"),
        ("first.", {"sums": {"classifier.bias": ("temperature", "temperature")}}, r"temperature is \[3\], classifier.bias"),
    ],
)
def test_parts_that_do_not_fit_the_module_are_named(saved, prefix, settings, finding):
    module = trained(saved, "pair").module
    part = Part(prefix, BertForTokenClassification, module.config, **settings)
    with pytest.raises(UserError, match=rf"TwoParts\.parts\(\): .*{finding}"):
        find_sources(part, module, contents_of(part))


def recipe_of(saved, name: str) -> tuple[Recipe, TwoParts]:
    model = trained(saved, name)
    return model.recipe, model.recipe.objective.build(model.recipe.model, model.tokenizer, 32)


def test_a_run_starts_from_the_folders_of_all_parts(saved, pair, single):
    recipe, module = recipe_of(saved, "pair")
    check_start(pair, recipe, trained(saved, "pair").tokenizer)
    load_pretrained_weights(module, pair)
    for name, tensor in load_consolidated(saved / "pair").items():
        torch.testing.assert_close(module.state_dict()[name], tensor, atol=1e-6, rtol=0)
    recipe, module = recipe_of(saved, "spot")
    check_start(single, recipe, trained(saved, "spot").tokenizer)
    load_pretrained_weights(module, single)
    assert torch.equal(module.model.get_parameter(TABLE), load_consolidated(saved / "spot")[f"model.{TABLE}"][:999])


def change_family(folder) -> None:
    (folder / "first" / "config.json").write_text('{"model_type": "mpnet"}')


@pytest.mark.parametrize(
    ("spoil", "finding"),
    [
        (lambda f: shutil.rmtree(f / "second"), "no folder .*second"),
        (lambda f: change(f / "second" / WEIGHTS, "classifier.bias", None), "second: classifier.bias is missing"),
        (lambda f: change(f / "first" / WEIGHTS, TABLE, torch.ones(998, 32)), r"is \[998, 32\] there, \[999, 32\] here"),
        (lambda f: change(f / "first" / WEIGHTS, "bert.encoder.layer.2.x", torch.ones(1)), "has no bert.encoder.layer.2.x"),
        (change_family, "model_type is 'mpnet', the run trains 'bert'"),
    ],
    ids=["no folder", "missing", "shape", "strange", "family"],
)
def test_init_from_names_the_part_that_does_not_fit(saved, pair, tmp_path, spoil, finding):
    copy = shutil.copytree(pair, tmp_path / "model")
    change(copy / "first" / WEIGHTS, "bert.pooler.dense.bias", torch.ones(1))  # of another head: ignored
    spoil(copy)
    with pytest.raises(UserError, match=finding):
        check_start(copy, recipe_of(saved, "pair")[0], trained(saved, "pair").tokenizer)
