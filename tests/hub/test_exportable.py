"""A checkpoint whose records or weights are not those of a known model does not become a folder."""

import pytest
import torch
from transformers import MPNetConfig

from mpnet_ds.errors import UserError
from mpnet_ds.hub.export import export_huggingface
from mpnet_ds.hub.exportable import check_weights
from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.zero.torch_file import TensorFile
from tests.checkpoint.fixtures import WEIGHT


def assert_refused(source, output, *texts, **options):
    with pytest.raises(UserError) as refusal:
        export_huggingface(source, output, **options)
    for text in texts:
        assert text in str(refusal.value)
    assert not output.exists()
    assert not output.with_name(output.name + ".partial").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"relative_attention_num_buckets": 64}, "unknown key 'model.relative_attention_num_buckets'"),
        ({"norm_first": True}, "unknown key 'model.norm_first'"),
        ({"hidden_act": "relu"}, "unknown key 'model.hidden_act'"),
        ({"hidden_size": "wide"}, 'model.hidden_size is "wide"'),
        ({"num_attention_heads": 3}, "not a multiple of num_attention_heads"),
        ({"max_position_embeddings": 32}, "data.seq_length is 32, but model.max_position_embeddings is 32"),
        ({"vocab_size": 998}, "998 rows for the tokenizer's 999 pieces"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_model_that_this_program_does_not_build_is_refused_with_the_reason(with_manifest, tmp_path, changes, reason):
    assert_refused(with_manifest(**changes), tmp_path / "model", reason)


def test_all_that_is_wrong_is_said_at_once(with_manifest, tmp_path):
    checkpoint = with_manifest(hidden_act="relu", pre_layer_norm=True, rotary_base=1)
    assert_refused(checkpoint, tmp_path / "model", "3 problems to fix", "hidden_act", "pre_layer_norm", "rotary_base")


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"num_hidden_layers": 3}, "the weight mpnet.encoder.layer.2.attention.attn.q.weight is missing"),
        ({"num_hidden_layers": 1}, f"{WEIGHT} is not a weight of MPNetForPretraining as the checkpoint describes it"),
        ({"intermediate_size": 96}, f"{WEIGHT} is [32, 64], its configuration says [32, 96]"),
        ({"vocab_size": 1024}, "word_embeddings.weight is [999, 32], its configuration says [1024, 32]"),
    ],
)
def test_weights_that_do_not_fit_the_model_are_named(with_manifest, tmp_path, changes, finding):
    assert_refused(with_manifest(**changes), tmp_path / "model", finding)


@pytest.mark.parametrize("name", ["nan", "infinite"])
def test_a_weight_that_is_not_finite_is_named(saved, tmp_path, name):
    assert_refused(saved / name, tmp_path / "model", WEIGHT, "NaN or infinite", "choose an earlier checkpoint")


def test_a_number_that_fp16_cannot_hold_is_named(saved, tmp_path):
    assert_refused(saved / "large", tmp_path / "model", WEIGHT, "--dtype bf16 or fp32", dtype="fp16")
    export_huggingface(saved / "large", tmp_path / "model", dtype="bf16")


def test_a_head_of_its_own_is_not_dropped_in_silence(tmp_path):
    config = MPNetConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=99)
    module = MPNetForPretraining(config)
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    check_weights(stored(weights, tmp_path / "same.pt"), module, "here")
    weights["lm_head.decoder.weight"][5, 5] += 1
    with pytest.raises(UserError, match=r"lm_head\.decoder\.weight is not mpnet\.embeddings\.word_embeddings\.weight"):
        check_weights(stored(weights, tmp_path / "other.pt"), module, "here")


def stored(weights, path):
    torch.save(weights, path)
    file = TensorFile(path)
    return {name: file.tensor(tensor) for name, tensor in file.content.items()}
