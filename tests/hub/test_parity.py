"""An export that does not compute what the training model does is found out, wherever the difference lies."""

import json
import shutil
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file

from mpnet_ds.errors import UserError
from mpnet_ds.hub.export import export_huggingface
from mpnet_ds.hub.parity import check_batches, compare


@pytest.fixture(scope="module")
def long(saved, tmp_path_factory):
    """An export of a model with rows of 160 tokens: farther than the last bucket's edge."""
    folder = tmp_path_factory.mktemp("long") / "model"
    export_huggingface(saved / "padded", folder)
    return folder


def test_the_text_fills_a_row_and_has_padding(long):
    short, full, random = check_batches(long, 160)
    assert full["attention_mask"].sum(dim=1).tolist() == [160, 80]
    assert len(set(short["attention_mask"].sum(dim=1).tolist())) > 1
    assert len(full["input_ids"][0].unique()) > 40
    assert random["input_ids"].shape == (1, 160)
    assert len(random["input_ids"].unique()) > 120


@contextmanager
def changed_copy(export, folder):
    """A copy of an export, and its weights, which are written back when they have been changed."""
    copy = shutil.copytree(export, folder)
    weights = load_file(copy / "model.safetensors")
    yield copy, weights
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("mpnet.encoder.layer.0.attention.attn.q.bias", 3),
        ("mpnet.embeddings.position_embeddings.weight", 161),  # of the last token of a full row
        ("mpnet.encoder.relative_attention_bias.weight", 15),  # of tokens 91 and more before
        ("mpnet.encoder.relative_attention_bias.weight", 31),  # of tokens 91 and more behind
        ("lm_head.bias", 998),
    ],
)
def test_a_change_of_one_row_of_a_weight_is_found(saved, long, tmp_path, name, row):
    with changed_copy(long, tmp_path / "model") as (copy, weights):
        weights[name].view(len(weights[name]), -1)[row, 0] += 0.05
    with pytest.raises(UserError, match="differs from the training model"):
        compare(saved / "padded", copy)


def test_a_model_that_computes_nan_is_no_agreement(saved, long, tmp_path):
    with changed_copy(long, tmp_path / "model") as (copy, weights):
        weights["lm_head.bias"][7] = torch.nan
    with pytest.raises(UserError, match="a logit by nan"):
        compare(saved / "padded", copy)


def test_a_weight_that_transformers_does_not_find_is_named(saved, long, tmp_path):
    with changed_copy(long, tmp_path / "model") as (copy, weights):
        del weights["lm_head.dense.bias"]
    with pytest.raises(UserError, match=r"lm_head\.dense\.bias"):
        compare(saved / "padded", copy)


def test_a_configuration_that_changes_the_numbers_is_found(saved, long, tmp_path):
    copy = shutil.copytree(long, tmp_path / "model")
    config = json.loads((copy / "config.json").read_text()) | {"layer_norm_eps": 1e-3}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="differs from the training model"):
        compare(saved / "padded", copy)


def test_a_tokenizer_that_cuts_otherwise_is_found(saved, long, tmp_path):
    copy = shutil.copytree(long, tmp_path / "model")
    content = json.loads((copy / "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = False
    (copy / "tokenizer.json").write_text(json.dumps(content))
    settings = json.loads((copy / "tokenizer_config.json").read_text()) | {"do_lower_case": False}
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="the tokenizer in"):
        compare(saved / "padded", copy)
