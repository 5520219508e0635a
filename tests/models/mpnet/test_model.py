import pytest
import torch
from transformers import MPNetConfig

from mpnet_ds.deepspeed_workarounds import wrap_call
from mpnet_ds.errors import UserError
from mpnet_ds.models import MPNetForPretraining
from tests.models.test_parity import model_of, run, tiny_config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relative_attention_num_buckets": 64}, "relative_attention_num_buckets is 64"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"num_attention_heads": 7}, "not a multiple of num_attention_heads"),
    ],
)
def test_what_transformers_cannot_represent_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        MPNetForPretraining(MPNetConfig(**{**tiny_config().to_diff_dict(), **change}))


def test_unknown_objective_and_attention_are_named_with_a_suggestion():
    with pytest.raises(UserError, match="Did you mean 'mpnet'"):
        MPNetForPretraining(tiny_config(), objective="mpnett")
    with pytest.raises(UserError, match="Did you mean 'eager'"):
        MPNetForPretraining(tiny_config(), attention="eagar")


def test_weights_start_normal_with_zero_padding_rows():
    torch.manual_seed(0)
    model = MPNetForPretraining(MPNetConfig(vocab_size=4000, hidden_size=96, num_attention_heads=4, num_hidden_layers=1))
    table = model.mpnet.embeddings.word_embeddings.weight
    assert table[1].abs().max() == 0
    assert model.mpnet.embeddings.position_embeddings.weight[1].abs().max() == 0
    for matrix in (table, model.mpnet.encoder.layer[0].attention.attn.q.weight, model.lm_head.dense.weight):
        assert matrix.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.lm_head.decoder.weight is table


def test_untrained_loss_is_about_log_vocabulary():
    torch.manual_seed(0)
    model = MPNetForPretraining(tiny_config())
    assert run(model, "mpnet").loss.item() == pytest.approx(torch.tensor(200.0).log().item(), abs=0.2)


def test_accuracy_counts_used_slots_only():
    model = model_of("mpnet").eval()
    out = run(model, "mpnet")
    expected = (out.logits.argmax(-1) == labels_of("mpnet")).sum()
    assert out.num_correct == expected
    assert out.num_targets == 15


def labels_of(case: str) -> torch.Tensor:
    from tests.models.test_parity import tensor

    return tensor(f"{case}/input_ids").gather(1, tensor(f"{case}/predicted_positions"))


def test_layers_can_be_recomputed_and_nothing_changes():
    calls = []

    def recompute(call, *arguments):
        calls.append(call)
        return torch.utils.checkpoint.checkpoint(call, *arguments, use_reentrant=True)

    plain, checkpointed = model_of("mpnet"), model_of("mpnet")
    for layer in checkpointed.layers():
        wrap_call(layer, recompute)
    for model in (plain, checkpointed):
        run(model, "mpnet").loss.backward()
    assert len(calls) == 2
    for (name, ours), theirs in zip(checkpointed.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=0, msg=name)
