"""What the two streams may and may not see."""

import pytest
import torch

from mpnet_ds.models.mpnet.visibility import plain_layout, prediction_order, two_stream_layout
from tests.models.test_parity import model_of, tensor

PREDICTED = torch.tensor([[5, 2, 7], [0, 1, -1]])
ALL_REAL = torch.ones(2, 8, dtype=torch.bool)


def query_logits(objective: str, input_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        model = model_of(objective)
        return model(input_ids, tensor("mpnet/predicted_positions"), tensor("mpnet/predicted_inputs")).logits


@pytest.mark.parametrize("objective", ["mpnet", "plm"])
@pytest.mark.parametrize("number", range(5))
def test_a_true_token_does_not_reach_its_own_or_earlier_predictions(objective, number):
    input_ids, positions = tensor("mpnet/input_ids").clone(), tensor("mpnet/predicted_positions")
    before = query_logits(objective, input_ids)
    rows = torch.arange(3)
    input_ids[rows, positions[:, number]] = (input_ids[rows, positions[:, number]] + 50) % 200
    after = query_logits(objective, input_ids)
    torch.testing.assert_close(after[:, : number + 1], before[:, : number + 1], atol=0, rtol=0)


@pytest.mark.parametrize("objective", ["mpnet", "plm"])
@pytest.mark.parametrize("number", range(4))
def test_a_true_token_changes_later_predictions(objective, number):
    input_ids, positions = tensor("mpnet/input_ids").clone(), tensor("mpnet/predicted_positions")
    before = query_logits(objective, input_ids)
    rows = torch.arange(3)
    input_ids[rows, positions[:, number]] = (input_ids[rows, positions[:, number]] + 50) % 200
    changed = (query_logits(objective, input_ids) - before).abs().amax(dim=(0, 2))
    assert (changed[number + 1 :] > 1e-4).all()


def test_mlm_sees_the_corrupted_tokens_only():
    input_ids, positions = tensor("mpnet/input_ids").clone(), tensor("mpnet/predicted_positions")
    before = query_logits("mlm", input_ids)
    input_ids.scatter_(1, positions, 77)
    torch.testing.assert_close(query_logits("mlm", input_ids), before, atol=0, rtol=0)


def test_the_order_numbers_the_predicted_tokens_and_skips_unused_entries():
    assert prediction_order(PREDICTED, 8).tolist() == [[0, 0, 2, 0, 0, 1, 0, 3], [1, 2, 0, 0, 0, 0, 0, 0]]


def test_every_row_sees_every_position_once():
    layout = two_stream_layout(PREDICTED, ALL_REAL, has_mask_rows=True)
    for row_visible, key_indices in zip(layout.visible, layout.key_indices, strict=True):
        for visible in row_visible:
            assert sorted(key_indices[visible].tolist()) == list(range(8))


def test_rows_see_what_their_level_allows():
    visible = two_stream_layout(PREDICTED, ALL_REAL, has_mask_rows=True).visible[0]
    # z = 5, 2, 7. Columns: tokens 0 … 7, mask rows 8 … 10. Rows: tokens, mask rows, query rows 11 … 13.
    seen = {row: visible[row].nonzero().flatten().tolist() for row in (0, 2, 8, 11, 12, 13)}
    assert seen[0] == [0, 1, 3, 4, 6, 8, 9, 10]  # not predicted: no predicted token
    assert seen[2] == [0, 1, 2, 3, 4, 5, 6, 10]  # z_2: z_1 and itself as they are
    assert seen[8] == seen[0]  # mask rows: plain masked language modelling
    assert seen[11] == [0, 1, 3, 4, 6, 8, 9, 10]  # query 1 sees its mask row, not its token
    assert seen[12] == [0, 1, 3, 4, 5, 6, 9, 10]
    assert seen[13] == [0, 1, 2, 3, 4, 5, 6, 10]


def test_padding_and_unused_entries_are_not_keys():
    mask = ALL_REAL.clone()
    mask[1, 5:] = False
    visible = two_stream_layout(PREDICTED, mask, has_mask_rows=True).visible[1]
    assert not visible[:, 5:8].any()
    assert not visible[:, 10].any()
    assert not plain_layout(mask).visible[1, :, 5:].any()


@pytest.mark.parametrize("objective", ["mpnet", "plm", "mlm"])
def test_padding_changes_neither_loss_nor_logits(objective):
    model = model_of(objective).eval()
    batch = [tensor(f"mpnet/{name}") for name in ("input_ids", "predicted_positions", "predicted_inputs")]
    padded_ids = torch.nn.functional.pad(batch[0][:, :26], (0, 6), value=1)
    mask = torch.arange(32).expand(3, -1) < 26
    short_positions = torch.where(batch[1] < 26, batch[1], -1)
    with torch.no_grad():
        short = model(batch[0][:, :26], short_positions, batch[2])
        padded = model(padded_ids, short_positions, batch[2], mask)
        wide_positions = torch.nn.functional.pad(short_positions, (0, 2), value=-1)
        unused = model(padded_ids, wide_positions, torch.nn.functional.pad(batch[2], (0, 2)), mask)
    used = short_positions >= 0
    assert 0 < used.sum() < used.numel()
    torch.testing.assert_close(padded.logits[used], short.logits[used], atol=1e-5, rtol=0)
    torch.testing.assert_close(padded.loss, short.loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(unused.loss, short.loss, atol=1e-5, rtol=0)
    assert padded.num_targets == used.sum()


@pytest.mark.parametrize("objective", ["mpnet", "plm", "mlm"])
def test_a_row_of_padding_only_stays_finite(objective):
    model = model_of(objective)
    mask = torch.ones(3, 32, dtype=torch.bool)
    mask[1] = False
    predicted = tensor("mpnet/predicted_positions").clone()
    predicted[1] = -1
    out = model(tensor("mpnet/input_ids"), predicted, tensor("mpnet/predicted_inputs"), mask)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
