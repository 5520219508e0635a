"""Documents of a row that are to be kept apart: nothing of one reaches another."""

from functools import partial

import pytest
import torch

from mpnet_ds.deepspeed_workarounds import wrap_call
from tests.models.test_parity import model_of

LENGTHS = (9, 14, 5)  # of the documents in a sequence, followed by padding
N, P, V = 32, 9, 200
PREDICTED_IN_DOCUMENTS = ((2, 7, 4), (12, 20, 15, 10), (25,))
OBJECTIVES = ["mpnet", "plm", "mlm"]


def row(seed: int) -> dict[str, torch.Tensor]:
    """A sequence of three documents and padding, predicted in an order that mixes the documents."""
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.tensor([index for predicted in PREDICTED_IN_DOCUMENTS for index in predicted])
    predicted = predicted[torch.randperm(len(predicted), generator=generator)]
    document_ids = torch.tensor(
        [number for number, length in enumerate((*LENGTHS, N - sum(LENGTHS))) for _ in range(length)]
    )
    return {
        "input_ids": torch.randint(5, V, (1, N), generator=generator),
        "predicted_positions": torch.cat([predicted, torch.tensor([-1])])[None],
        "predicted_inputs": torch.randint(5, V, (1, P), generator=generator),
        "attention_mask": torch.arange(N)[None] < sum(LENGTHS),
        "document_ids": document_ids[None],
    }


def document_of_predicted(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    documents = batch["document_ids"].gather(1, batch["predicted_positions"].clamp(min=0))
    return torch.where(batch["predicted_positions"] >= 0, documents, -1)


def alone(batch: dict[str, torch.Tensor], document: int) -> dict[str, torch.Tensor]:
    """One document of the row as a row of its own, without document ids."""
    tokens, predicted = batch["document_ids"] == document, document_of_predicted(batch) == document
    return {
        "input_ids": batch["input_ids"][tokens][None],
        "predicted_positions": batch["predicted_positions"][predicted][None] - int(tokens[0].int().argmax()),
        "predicted_inputs": batch["predicted_inputs"][predicted][None],
    }


def logits_of(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("attention", ["auto", "eager", "sdpa"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_document_gives_the_same_logits_packed_as_alone(objective, attention):
    model = model_of(objective, attention).eval()
    batch = row(0)
    together = logits_of(model, batch)
    for document in range(len(LENGTHS)):
        found = together[document_of_predicted(batch) == document]
        torch.testing.assert_close(found, logits_of(model, alone(batch, document))[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nothing_of_a_document_leaks_into_another(objective):
    model, batch, other = model_of(objective).eval(), row(0), row(1)
    before = logits_of(model, batch)
    for document in range(len(LENGTHS)):
        predicted, tokens = document_of_predicted(batch) == document, batch["document_ids"] == document
        others = (document_of_predicted(batch) >= 0) & ~predicted
        first, last = (int(tokens[0].nonzero()[end]) for end in (0, -1))
        changed = {name: tensor.clone() for name, tensor in batch.items()}
        changed["input_ids"][tokens] = other["input_ids"][tokens]
        changed["predicted_inputs"][predicted] = other["predicted_inputs"][predicted]
        for indices in (batch["predicted_positions"], first + last - batch["predicted_positions"], -1):
            changed["predicted_positions"] = torch.where(predicted, indices, batch["predicted_positions"])
            after = logits_of(model, changed)
            assert torch.equal(after[others], before[others])
            assert not torch.equal(after[predicted], before[predicted])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_without_document_ids_documents_do_see_each_other(objective):
    model, batch = model_of(objective).eval(), row(0)
    isolated = logits_of(model, batch)
    del batch["document_ids"]
    assert (logits_of(model, batch) - isolated).abs().max() > 0.01


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_document_in_a_row_is_the_plain_row(objective):
    model, batch = model_of(objective).eval(), row(0)
    batch["document_ids"][:] = 4
    isolated = logits_of(model, batch)
    del batch["document_ids"]
    assert torch.equal(logits_of(model, batch), isolated)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_with_checkpointed_layers_are_those_of_the_documents_alone(objective):
    packed, separate = model_of(objective), model_of(objective)
    for layer in packed.layers():
        wrap_call(layer, partial(torch.utils.checkpoint.checkpoint, use_reentrant=True))
    batch = row(2)
    out = packed(**batch)
    (out.loss * out.num_targets).backward()
    for document in range(len(LENGTHS)):
        out = separate(**alone(batch, document))
        (out.loss * out.num_targets).backward()
    for (name, ours), theirs in zip(packed.named_parameters(), separate.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-5, rtol=0, msg=name)
