"""The original implementation's numbers (fixtures/parity_tiny.npz), on every device and attention back-end there is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import MPNetConfig, MPNetForMaskedLM

from mpnet_ds.models import MPNetForPretraining

NUMBERS = np.load(Path(__file__).parent.parent / "fixtures" / "parity_tiny.npz")
CASES = {"mpnet": "mpnet", "token": "mpnet", "ngram3": "mpnet", "plm": "plm", "mlm": "mlm"}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
ON_GPUS_ALONE = ("flex", "triton")  # their tests without a GPU are in test_flex.py and test_triton.py
PAIRS = [(attention, "cpu") for attention in ("auto", "eager", "cpu", "sdpa")]
PAIRS += [(attention, device) for device in DEVICES[1:] for attention in ("eager", "sdpa", *ON_GPUS_ALONE)]
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def exact_matrix_products():
    torch.backends.cuda.matmul.allow_tf32 = False


def tensor(name: str, device: str = "cpu") -> torch.Tensor:
    return torch.from_numpy(NUMBERS[name]).to(device)


def tiny_config() -> MPNetConfig:
    layers, width, inner, heads, vocabulary, positions = NUMBERS["config"].tolist()
    return MPNetConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=heads,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def original_weights() -> dict[str, torch.Tensor]:
    return {name.removeprefix("w/"): tensor(name) for name in NUMBERS.files if name.startswith("w/")}


def model_of(objective: str, attention: str = "auto", device: str = "cpu") -> MPNetForPretraining:
    model = MPNetForPretraining(tiny_config(), objective=objective, attention=attention)
    model.load_state_dict(original_weights())
    return model.to(device)


def run(model: MPNetForPretraining, case: str, device: str = "cpu"):
    names = ("input_ids", "predicted_positions", "predicted_inputs")
    return model(*(tensor(f"{case}/{name}", device) for name in names))


@pytest.mark.parametrize(("attention", "device"), PAIRS)
@pytest.mark.parametrize("case", CASES)
def test_logits_and_loss_are_the_originals(case, attention, device):
    out = run(model_of(CASES[case], attention, device), case, device)
    torch.testing.assert_close(out.logits.cpu(), tensor(f"{case}/logits"), atol=TOLERANCE, rtol=0)
    assert out.num_targets == NUMBERS[f"{case}/predicted_positions"].size
    assert out.loss.item() == pytest.approx(float(NUMBERS[f"{case}/loss_sum"]) / out.num_targets.item(), abs=TOLERANCE)


@pytest.mark.parametrize(("attention", "device"), PAIRS)
@pytest.mark.parametrize("case", ["mpnet", "plm", "mlm"])
def test_gradients_are_the_originals(case, attention, device):
    model = model_of(case, attention, device)
    out = run(model, case, device)
    (out.loss * out.num_targets).backward()
    gradients = {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}
    compared = [name for name in NUMBERS.files if name.startswith(f"{case}/grad/")]
    assert compared
    for name in compared:
        expected = tensor(name)
        torch.testing.assert_close(gradients[name.removeprefix(f"{case}/grad/")], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_gradient_norms_of_the_tables_are_the_originals(case):
    model = model_of(CASES[case])
    out = run(model, case)
    (out.loss * out.num_targets).backward()
    q, k, v = (getattr(model.mpnet.encoder.layer[0].attention.attn, name).weight.grad for name in "qkv")
    found = {
        "relative_attention_bias.weight": model.mpnet.encoder.relative_attention_bias.weight.grad,
        "embed_tokens.weight": model.mpnet.embeddings.word_embeddings.weight.grad,
        "embed_positions.weight": model.mpnet.embeddings.position_embeddings.weight.grad,
        "layers.0.self_attn.in_proj_weight": torch.cat([q, k, v]),
    }
    for name, gradient in found.items():
        assert gradient.norm().item() == pytest.approx(float(NUMBERS[f"{case}/grad_norm/{name}"]), rel=1e-5)


@pytest.mark.parametrize(("attention", "device"), PAIRS)
def test_plain_encoder_gives_the_originals_features(attention, device):
    features = model_of("mpnet", attention, device).encode(tensor("plain/input_ids", device))
    torch.testing.assert_close(features.cpu(), tensor("plain/features"), atol=TOLERANCE, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: SDPA in bf16 on CPU is not used")
@pytest.mark.parametrize("attention", ["sdpa", *ON_GPUS_ALONE])
@pytest.mark.parametrize("case", CASES)
def test_bf16_on_a_gpu_stays_near_the_original(case, attention):
    model = model_of(CASES[case], attention, "cuda").bfloat16()
    logits = run(model, case, "cuda").logits.float().cpu()
    torch.testing.assert_close(logits, tensor(f"{case}/logits"), atol=0.05, rtol=0)


def test_names_are_those_of_transformers():
    ours, theirs = MPNetForPretraining(tiny_config()), MPNetForMaskedLM(tiny_config())
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes
    theirs.load_state_dict(ours.state_dict())


def test_tied_copies_may_be_missing_but_nothing_else():
    weights = original_weights()
    assert "lm_head.decoder.weight" not in weights
    MPNetForPretraining(tiny_config()).load_state_dict(weights)
    del weights["lm_head.dense.weight"]
    with pytest.raises(RuntimeError, match=r"lm_head\.dense\.weight"):
        MPNetForPretraining(tiny_config()).load_state_dict(weights)


def test_plain_encoder_equals_transformers_with_padding():
    ours = model_of("mpnet").eval()
    theirs = MPNetForMaskedLM(tiny_config()).eval()
    theirs.load_state_dict(ours.state_dict())
    input_ids, attention_mask = tensor("plain/input_ids").clone(), torch.ones(3, 32, dtype=torch.bool)
    input_ids[0, 20:], attention_mask[0, 20:] = 1, False
    input_ids[2, 7:], attention_mask[2, 7:] = 1, False
    with torch.no_grad():
        expected = theirs.mpnet(input_ids, attention_mask.long()).last_hidden_state
        found = ours.encode(input_ids, attention_mask)
    torch.testing.assert_close(found[attention_mask], expected[attention_mask], atol=TOLERANCE, rtol=0)
