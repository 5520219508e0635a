"""Files of the original implementation and of annotated-mpnet, written here from their layouts alone, become starts."""

import argparse
import os
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import MPNetForMaskedLM

from mpnet_ds.errors import UserError
from mpnet_ds.hub.import_model import make_start
from tests.checkpoint.models import SIZES, assert_same_bits, loaded, random_model

NUMBERS = np.load(Path(__file__).parent.parent / "fixtures" / "parity_tiny.npz")
LAYER_NAMES = [
    ("self_attn.out_proj", "attention.attn.o"),
    ("self_attn_layer_norm", "attention.LayerNorm"),
    ("fc1", "intermediate.dense"),
    ("fc2", "output.dense"),
    ("final_layer_norm", "output.LayerNorm"),
]
ARGUMENTS = {"arch": "mpnet_rel_base", "activation_fn": "gelu", "normalize_before": False,
             "use_relative_positions": True, "dropout": 0.1, "attention_dropout": 0.1, "lr": [0.0005],
             "adam_betas": "(0.9, 0.98)", "max_positions": 32, "seed": 1}  # fmt: skip


def fairseq_names(weights: dict, prefix: str, in_proj: str = "in_proj_{}") -> OrderedDict:
    """Weights under transformers' names as the original's ``state_dict`` has them."""
    encoder, found = f"{prefix}sentence_encoder.", OrderedDict()
    found[f"{encoder}embed_tokens.weight"] = weights["mpnet.embeddings.word_embeddings.weight"]
    found[f"{encoder}embed_positions.weight"] = weights["mpnet.embeddings.position_embeddings.weight"]
    found[f"{encoder}relative_attention_bias.weight"] = weights["mpnet.encoder.relative_attention_bias.weight"]
    for kind in ("weight", "bias"):
        found[f"{encoder}emb_layer_norm.{kind}"] = weights[f"mpnet.embeddings.LayerNorm.{kind}"]
        for i in range(2):
            ours, theirs = f"mpnet.encoder.layer.{i}.", f"{encoder}layers.{i}."
            thirds = [weights[f"{ours}attention.attn.{letter}.{kind}"] for letter in "qkv"]
            found[f"{theirs}self_attn.{in_proj.format(kind)}"] = torch.cat(thirds)
            for their_name, our_name in LAYER_NAMES:
                found[f"{theirs}{their_name}.{kind}"] = weights[f"{ours}{our_name}.{kind}"]
        for part in ("dense", "layer_norm"):
            found[f"{prefix}lm_head.{part}.{kind}"] = weights[f"lm_head.{part}.{kind}"]
    found[f"{prefix}lm_head.weight"] = found[f"{encoder}embed_tokens.weight"]
    found[f"{prefix}lm_head.bias"] = weights["lm_head.bias"]
    return found


def heads_of(weights: dict) -> dict:
    return {"encoder_attention_heads": weights["mpnet.encoder.relative_attention_bias.weight"].shape[1]}


@pytest.fixture
def fairseq_meters(monkeypatch):
    """The module that a checkpoint's meters come from, for as long as a file is written; a function makes a meter."""
    module = types.ModuleType("fairseq.meters")
    exec("class AverageMeter: pass\nclass TimeMeter: pass\nclass StopwatchMeter: pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "fairseq", types.ModuleType("fairseq"))
    monkeypatch.setitem(sys.modules, "fairseq.meters", module)

    def meter(kind: str):
        made = getattr(module, kind)()
        made.__dict__.update(val=1.5, avg=2.5, sum=10.0, count=4)
        return made

    return meter


@pytest.fixture
def write_original(tmp_path, fairseq_meters):
    """A function (weights, archive, extra, **arguments): what fairseq's trainer saves, whole."""

    def write(weights: dict, archive: bool = True, extra=None, name: str = "checkpoint_last.pt", **arguments) -> Path:
        state = {
            "args": argparse.Namespace(**(ARGUMENTS | heads_of(weights) | arguments)),
            "model": fairseq_names(weights, "decoder."),
            "optimizer_history": [{"criterion_name": "MaskedPermutationCrossEntropyCriterion", "num_updates": 8}],
            "extra_state": {
                "train_iterator": {"epoch": 1, "iterations_in_epoch": 8},
                "val_loss": 3.5,
                "train_meters": OrderedDict(
                    train_loss=fairseq_meters("AverageMeter"),
                    wps=fairseq_meters("TimeMeter"),
                    train_wall=fairseq_meters("StopwatchMeter"),
                ),
            },
            "last_optimizer_state": {"state": {0: {"step": 8, "exp_avg": torch.zeros(3)}}, "param_groups": []},
        }
        state["extra_state"] |= extra or {}
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=archive)
        return tmp_path / name

    return write


@pytest.fixture
def write_annotated(tmp_path):
    """A function (weights, as_dict, **arguments): what annotated-mpnet saves."""

    def write(weights: dict, as_dict: bool = True, compiled: bool = False, **arguments) -> Path:
        arguments = {"relative_attention_num_buckets": 32, "pad_token_id": 1} | arguments
        arguments = ARGUMENTS | heads_of(weights) | arguments
        names = fairseq_names(weights, "_orig_mod." if compiled else "")
        state = {
            "args": arguments if as_dict else argparse.Namespace(**arguments),
            "model_states": names,
            "steps": 8,
            "best_loss": np.float64(3.5),
            "rng_state": {"torch": torch.get_rng_state(), "cuda": None, "numpy": np.random.get_state()},  # noqa: NPY002
        }
        torch.save(state, tmp_path / "checkpoint8.pt")
        return tmp_path / "checkpoint8.pt"

    return write


@pytest.fixture(params=["original", "original before PyTorch 1.6", "annotated", "annotated, Namespace, compiled"])
def write(request, write_original, write_annotated):
    """Every kind of file, without its options."""
    return {
        "original": write_original,
        "original before PyTorch 1.6": lambda weights: write_original(weights, archive=False),
        "annotated": write_annotated,
        "annotated, Namespace, compiled": lambda weights: write_annotated(weights, as_dict=False, compiled=True),
    }[request.param]


def test_a_file_of_the_originals_weights_gives_the_originals_features(tmp_path, write):
    weights = {name.removeprefix("w/"): torch.from_numpy(NUMBERS[name]) for name in NUMBERS.files if name.startswith("w/")}
    make_start(tmp_path / "start", fairseq_file=write(weights))
    model = MPNetForMaskedLM.from_pretrained(tmp_path / "start").eval()
    with torch.no_grad():
        features = model.mpnet(torch.from_numpy(NUMBERS["plain/input_ids"])).last_hidden_state
    torch.testing.assert_close(features, torch.from_numpy(NUMBERS["plain/features"]), atol=1e-5, rtol=0)


def test_every_kind_of_file_gives_the_same_bits(tmp_path, write):
    model = random_model()
    made = make_start(tmp_path / "start", fairseq_file=write(model.state_dict()))
    assert_same_bits(loaded(tmp_path / "start"), model.state_dict())
    assert made.notes == ("It has no tokenizer; --tokenizer DIR adds the one that the model was trained with.",)
    assert {path.name for path in (tmp_path / "start").iterdir()} == {"config.json", "model.safetensors"}


def test_in_proj_may_be_a_layer_args_a_part_of_cfg_and_tensors_fp16(tmp_path):
    model = random_model().half()
    names = fairseq_names(model.state_dict(), "module.decoder.", "in_proj.{}")
    torch.save({"args": None, "cfg": {"model": argparse.Namespace(**ARGUMENTS)}, "model": names}, tmp_path / "model.pt")
    make_start(tmp_path / "start", fairseq_file=tmp_path / "model.pt")
    assert_same_bits(loaded(tmp_path / "start"), {name: tensor.float() for name, tensor in model.state_dict().items()})


def test_sizes_are_those_of_the_tensors_and_settings_those_of_args(tmp_path, write_original):
    weights = random_model().state_dict()
    make_start(tmp_path / "start", fairseq_file=write_original(weights, dropout=0.2, attention_dropout=0.3))
    config = MPNetForMaskedLM.from_pretrained(tmp_path / "start").config
    assert {name: getattr(config, name) for name in SIZES} == SIZES
    assert (config.vocab_size, config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (999, 0.2, 0.3)


def test_the_named_tokenizer_comes_along_and_padding_goes(tmp_path, write_annotated, tokenizer_folder, tokenizer):
    model = random_model(vocab_size=1024)
    file = write_annotated(model.state_dict(), original_vocab_size=999, padded_vocab_size=1024)
    made = make_start(tmp_path / "start", fairseq_file=file, tokenizer=tokenizer_folder)
    assert made.notes == ("25 row(s) that pad the token table beyond 999 pieces were cut off.",)
    assert (tmp_path / "start" / "vocab.txt").read_text().splitlines() == tokenizer.pieces
    table = loaded(tmp_path / "start")["mpnet.embeddings.word_embeddings.weight"]
    assert torch.equal(table, model.mpnet.embeddings.word_embeddings.weight[:999])
    make_start(tmp_path / "without", fairseq_file=file)  # args say how many rows are pieces
    assert torch.equal(loaded(tmp_path / "without")["mpnet.embeddings.word_embeddings.weight"], table)


@pytest.mark.parametrize("vocab_size", [998, 1001, 2000])  # too few; no multiple of 8, so not padded; too many
def test_a_tokenizer_of_another_size_is_refused(tmp_path, write_original, tokenizer_folder, vocab_size):
    file = write_original(random_model(vocab_size=vocab_size).state_dict())
    with pytest.raises(UserError, match=f"has {vocab_size:,} rows, the tokenizer in .* 999 pieces"):
        make_start(tmp_path / "start", fairseq_file=file, tokenizer=tokenizer_folder)


def test_classification_heads_are_dropped_by_name(tmp_path):
    names = fairseq_names(random_model().state_dict(), "decoder.")
    names |= {"classification_heads.mnli.dense.weight": torch.ones(32, 32), "decoder.version": torch.ones(1)}
    torch.save({"args": argparse.Namespace(**ARGUMENTS), "model": names}, tmp_path / "model.pt")
    made = make_start(tmp_path / "start", fairseq_file=tmp_path / "model.pt")
    assert made.notes[0] == "Dropped, pre-training has no such head: classification_heads.mnli.dense.weight."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation_fn": "relu"}, "activation_fn was relu, MPNet here and in transformers always computes with gelu"),
        ({"activation_fn": "gelu_fast"}, "activation_fn was gelu_fast"),
        ({"normalize_before": True}, "normalize_before was True"),
        ({"encoder_attention_heads": 4}, "encoder_attention_heads was 4"),
        ({"relative_attention_num_buckets": 64}, "relative_attention_num_buckets was 64"),
        ({"relative_attention_max_distance": 256}, "relative_attention_max_distance was 256"),
        ({"relative_attention_max_distance": None, "max_positions": 1024}, "relative_attention_max_distance was 256"),
        ({"pad_token_id": 0}, "pad_token_id was 0"),
    ],
)
def test_arithmetic_that_is_not_mpnets_here_is_refused(tmp_path, write_annotated, arguments, message):
    with pytest.raises(UserError, match=message):
        make_start(tmp_path / "start", fairseq_file=write_annotated(random_model().state_dict(), **arguments))


def test_an_eps_in_args_is_kept_and_a_distance_that_was_not_set_is_worked_out(tmp_path, write_annotated):
    file = write_annotated(random_model().state_dict(), layer_norm_eps=1e-6, relative_attention_max_distance=None)
    make_start(tmp_path / "start", fairseq_file=file)
    assert MPNetForMaskedLM.from_pretrained(tmp_path / "start").config.layer_norm_eps == 1e-6


SPOILT = {
    "no positions": (
        lambda m: m.pop("decoder.sentence_encoder.embed_positions.weight"),
        "position_embeddings.weight is mis",
    ),
    "no relative": (lambda m: m.pop("decoder.sentence_encoder.relative_attention_bias.weight"), "bias.weight is missing"),
    "buckets": (
        lambda m: m.update({"decoder.sentence_encoder.relative_attention_bias.weight": torch.ones(64, 2)}),
        "relative_attention_num_buckets is 64",
    ),
    "missing": (lambda m: m.pop("decoder.sentence_encoder.layers.1.fc2.bias"), r"layer\.1\.output\.dense\.bias is missing"),
    "strange": (lambda m: m.update({"decoder.sentence_encoder.segment_embeddings.weight": torch.ones(2)}), "segment_embed"),
    "bias_k": (
        lambda m: m.update({"decoder.sentence_encoder.layers.0.self_attn.bias_k": torch.ones(2)}),
        "bias_k is not a w",
    ),
    "in_proj": (
        lambda m: m.update({"decoder.sentence_encoder.layers.0.self_attn.in_proj_bias": torch.ones(95)}),
        r"is \[31\]; by the config it should be \[32\]",
    ),
    "untied": (lambda m: m.update({"decoder.lm_head.weight": torch.ones(999, 32)}), "decoder.weight is not mpnet"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_tensors_that_are_not_mpnets_are_refused(tmp_path, how):
    names, (spoil, message) = fairseq_names(random_model().state_dict(), "decoder."), SPOILT[how]
    spoil(names)
    torch.save({"args": argparse.Namespace(**ARGUMENTS), "model": names}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=message) as caught:
        make_start(tmp_path / "start", fairseq_file=tmp_path / "model.pt")
    assert len(str(caught.value).splitlines()) == 1


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Stranger:
    """Harmless, but of a type that is not on the list."""


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("place", ["extra_state", "Namespace", "numpy"])
def test_code_in_a_file_is_refused_and_does_not_run(tmp_path, write_original, archive, place):
    malice = Malice(tmp_path / "pwned")
    weights, deep = random_model().state_dict(), [{"deep": (malice,)}]
    if place == "Namespace":
        file = write_original(weights, archive, innocent=argparse.Namespace(deep=deep))
    else:
        file = write_original(weights, archive, {"best": np.array(deep, dtype=object) if place == "numpy" else deep})
    with pytest.raises(UserError, match=rf"{file.name} asks for \w+\.system.*nothing of it was run"):
        make_start(tmp_path / "start", fairseq_file=file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_any_other_type_is_refused_by_its_name(tmp_path, write_original):
    file = write_original(random_model().state_dict(), extra={"best": Stranger()})
    with pytest.raises(UserError, match=r"asks for tests\.hub\.test_fairseq\.Stranger, which no weights need"):
        make_start(tmp_path / "start", fairseq_file=file)


@pytest.mark.parametrize("archive", [True, False])
def test_damaged_and_wrong_files_are_named_in_a_line(tmp_path, write_original, archive):
    file = write_original(random_model().state_dict(), archive)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in (file.name, "text.pt", "empty.pt"):
        with pytest.raises(UserError, match=rf"{name} is damaged, or not a file of torch\.save") as caught:
            make_start(tmp_path / "start", fairseq_file=tmp_path / name)
        assert len(str(caught.value).splitlines()) == 1
    torch.save({"model": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="does not hold a fairseq model"):
        make_start(tmp_path / "start", fairseq_file=tmp_path / "other.pt")
    torch.save({"model": {"a": torch.ones(1)}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="'args' is missing"):
        make_start(tmp_path / "start", fairseq_file=tmp_path / "other.pt")
