"""Every head of transformers' MPNet starts from one export."""

import pytest
import torch
import transformers
from safetensors.torch import load_file

B, N, CHOICES, LABELS = 2, 12, 3, 4
POOLER = {"pooler.dense.weight", "pooler.dense.bias"}
TWO_LAYERS = {f"classifier.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("weight", "bias")}
CLASSIFIER = {"classifier.weight", "classifier.bias"}
HEADS = {
    "MPNetModel": POOLER,
    "MPNetForMaskedLM": set(),
    "MPNetForSequenceClassification": TWO_LAYERS,
    "MPNetForMultipleChoice": CLASSIFIER | {f"mpnet.{name}" for name in POOLER},
    "MPNetForTokenClassification": CLASSIFIER,
    "MPNetForQuestionAnswering": {"qa_outputs.weight", "qa_outputs.bias"},
}
"""Class → weights that the export does not have, for pre-training has none."""
UNMOVED = {"MPNetForMultipleChoice": {"classifier.bias"}}  # the same for all choices: it decides nothing


def batch_for(name: str) -> dict:
    torch.manual_seed(1)
    shape = (B, CHOICES, N) if name == "MPNetForMultipleChoice" else (B, N)
    ids = torch.randint(5, 900, shape)
    labels = {
        "MPNetForMaskedLM": {"labels": ids},
        "MPNetForSequenceClassification": {"labels": torch.tensor([0, 3])},
        "MPNetForMultipleChoice": {"labels": torch.tensor([2, 0])},
        "MPNetForTokenClassification": {"labels": torch.randint(0, LABELS, (B, N))},
        "MPNetForQuestionAnswering": {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 9])},
    }
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | labels.get(name, {})


@pytest.mark.parametrize("name", HEADS)
def test_head_starts_from_the_very_encoder_and_learns(exported, name):
    has_labels = name in ("MPNetForSequenceClassification", "MPNetForTokenClassification")
    options = {"num_labels": LABELS} if has_labels else {}
    kind = getattr(transformers, name)
    model, loading = kind.from_pretrained(exported, output_loading_info=True, **options)
    assert set(loading["missing_keys"]) == HEADS[name]
    # The encoder alone is told of the head that it has no use for; nothing else is left over.
    assert all(key.startswith("lm_head.") for key in loading["unexpected_keys"])
    assert not loading["mismatched_keys"]
    assert not loading["error_msgs"]

    file = {name: tensor for name, tensor in load_file(exported / "model.safetensors").items() if name.startswith("mpnet.")}
    encoder = model.base_model.state_dict(prefix="mpnet.")
    assert len(file) == 37
    assert encoder.keys() - {f"mpnet.{name}" for name in POOLER} == file.keys()
    assert all(torch.equal(encoder[key], tensor) for key, tensor in file.items())

    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    out = model(**batch_for(name))
    loss = out.loss if "loss" in out else (out.last_hidden_state.mean(dim=1) * out.pooler_output).square().mean()
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    for parameter in ("encoder.layer.0.attention.attn.q.weight", "embeddings.word_embeddings.weight"):
        assert model.base_model.get_parameter(parameter).grad.abs().max() > 0
    still = [key for key, tensor in model.state_dict().items() if torch.equal(tensor, before[key])]
    assert set(still) <= UNMOVED.get(name, set())
