"""DeBERTa's enhanced mask decoder: the paper's equations, what it leaves of the plain model, starts, sizes, refusals."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mpnet_ds.config.recipe import Recipe, recipe_from_dict
from mpnet_ds.errors import UserError
from mpnet_ds.hub.init_from import check_start, load_pretrained_weights
from mpnet_ds.models import enhanced_mask_decoder
from mpnet_ds.models.counting import count
from mpnet_ds.models.enhanced_mask_decoder import FILE, NAME, EnhancedMaskDecoder
from mpnet_ds.models.families import FAMILIES
from mpnet_ds.models.targets import corrupt
from mpnet_ds.models.transformers_model import Inputs, MaskedLanguageModel
from mpnet_ds.objectives import objective_of
from mpnet_ds.tokenizer_layouts import DEBERTA
from tests.models.test_transformers_model import SIZES, TOKENIZER, B, N, batch_of, config_of, gradients

HEADS, SPAN, EPS = 2, 4, 1e-7
EMD = {"name": "mlm", "head": "emd"}
each_length = pytest.mark.parametrize("documents", [False, True], ids=["padded", "documents"])


def module_of(kind=EnhancedMaskDecoder, dropout: float = 0.0, **values) -> MaskedLanguageModel:
    torch.manual_seed(0)
    module = kind(FAMILIES["deberta-v2"], config_of("deberta-v2", False, dropout, **values), TOKENIZER.mask_id)
    for parameter in module.parameters():  # so that biases and norms matter, and logits differ
        parameter.data += 0.3 * torch.randn(parameter.shape)
    return module


def loss_by_the_paper(w: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """Sum of losses, in fp64: equations 2 to 4 with distances clipped at SPAN, and section 3.2.

    The term from position to content has δ(i, j), as in the authors' code; the paper says δ(j, i).
    """
    documents = batch.get("document_ids", torch.zeros(B, N, dtype=torch.int64))
    real, index = batch["attention_mask"], torch.arange(N)
    sees = (documents[:, :, None] == documents[:, None]) & real[:, :, None] & real[:, None]
    positions = torch.stack([index - torch.searchsorted(numbers, numbers) for numbers in documents])
    delta = (index[:, None] - index + SPAN).clamp(0, 2 * SPAN - 1)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def layer(at: str, states: Tensor, queries: Tensor) -> Tensor:
        def heads(x: Tensor, name: str) -> Tensor:
            return linear(x, f"{at}.attention.self.{name}").unflatten(-1, (HEADS, -1)).transpose(-3, -2)

        distances = norm(w["encoder.rel_embeddings.weight"], "encoder.LayerNorm")
        q, k, v = heads(queries, "query_proj"), heads(states, "key_proj"), heads(states, "value_proj")
        to_distance = q @ heads(distances, "key_proj").mT
        from_distance = k @ heads(distances, "query_proj").mT
        scores = q @ k.mT + to_distance.take_along_dim(delta[None, None], -1)
        scores = scores + from_distance.take_along_dim(delta.T[None, None], -1).mT
        weights = (scores / math.sqrt(3 * q.shape[-1])).masked_fill(~sees[:, None], -1e30).softmax(-1)
        mixed = linear((weights @ v).transpose(1, 2).flatten(2), f"{at}.attention.output.dense")
        mixed = norm(mixed + queries, f"{at}.attention.output.LayerNorm")
        inner = F.gelu(linear(mixed, f"{at}.intermediate.dense"))
        return norm(linear(inner, f"{at}.output.dense") + mixed, f"{at}.output.LayerNorm")

    table = w["embeddings.word_embeddings.weight"]
    ids = corrupt(batch["input_ids"], batch["predicted_positions"], batch["predicted_inputs"])
    hidden = norm(table[ids] + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm") * real[:, :, None]
    hidden = layer("encoder.layer.0", hidden, hidden)
    first = layer("encoder.layer.1", hidden, hidden + w["position_embeddings.weight"][positions])
    second = layer("encoder.layer.1", hidden, first)
    sequences, entries = (batch["predicted_positions"] >= 0).nonzero(as_tuple=True)
    where = batch["predicted_positions"][sequences, entries]
    predicted = norm(F.gelu(linear(second[sequences, where], "head.dense")), "head.LayerNorm")
    scores = (predicted @ table.T + w["head.bias"]).log_softmax(-1)
    return -scores[torch.arange(len(where)), batch["input_ids"][sequences, where]].sum()


def short(name: str) -> str:
    return name.replace("model.lm_predictions.lm_head", "head").removeprefix("model.deberta.")


@each_length
def test_loss_and_gradients_are_those_of_the_papers_equations(documents):
    module = module_of(position_buckets=-1, max_relative_positions=SPAN, type_vocab_size=1, layer_norm_eps=EPS).double()
    batch = batch_of(False, documents=documents)
    weights = {short(name): one.detach().clone().requires_grad_() for name, one in module.named_parameters()}
    expected = loss_by_the_paper(weights, batch)
    expected.backward()
    loss = module(**batch).sums[0]
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5, check_dtype=False)
    found = gradients(module)
    assert {short(name) for name in found} == weights.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, weights[short(name)].grad, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize(
    "values", [{}, {"conv_kernel_size": 3}, {"share_att_key": False}, {"num_hidden_layers": 4}], ids=lambda v: "".join(v)
)
def test_one_pass_without_positions_is_the_plain_model(monkeypatch, values):
    monkeypatch.setattr(enhanced_mask_decoder, "PASSES", 1)
    module, plain = module_of(**values), module_of(MaskedLanguageModel, **values)
    module.position_embeddings.weight.data.zero_()
    batch = batch_of(False, documents="conv_kernel_size" not in values)
    inputs = Inputs(batch["input_ids"], batch["attention_mask"], batch.get("document_ids"))
    plain.model.load_state_dict(module.model.state_dict())
    assert torch.equal(module.hidden_states(inputs), plain.hidden_states(inputs))


def test_positions_matter_and_the_input_has_none_of_them():
    module, batch = module_of(), batch_of(False)
    inputs = Inputs(batch["input_ids"])
    before = module.hidden_states(inputs)
    module.position_embeddings.weight.data[5] += 1
    after = module.hidden_states(inputs)
    changed = (before - after).abs().amax(dim=(0, 2)) > 0
    assert changed.tolist() == [position == 5 for position in range(N)], "only the query at that position"


@each_length
def test_recomputed_layers_have_the_same_gradients_to_the_last_bit(documents):
    module, batch = module_of(dropout=0.1), batch_of(False, documents=documents)
    found = []
    for is_recomputed in (False, True):
        for layer in module.layers() if is_recomputed else ():
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        torch.manual_seed(2)
        module(**batch).sums.sum().backward()
        found.append(gradients(module))
    assert found[0].keys() == dict(module.named_parameters()).keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_it_is_counted_as_one_layer_more():
    batch = {key: tensor.numpy() for key, tensor in batch_of(False).items()}
    batch |= {"sequence_numbers": np.arange(B), "step": np.array(0)}
    plan = count(module_of, batch)
    three = count(partial(module_of, MaskedLanguageModel, num_hidden_layers=3), batch)
    assert plan.parameters == sum(parameter.numel() for parameter in module_of().parameters())
    assert plan.flops_per_sequence == pytest.approx(three.flops_per_sequence, rel=1e-3)


def recipe_of(objective: dict | str = EMD, **model) -> Recipe:
    sections = {"model_type": "deberta-v2", **SIZES["deberta-v2"], **model}
    return recipe_from_dict({"name": "x", "objective": objective, "model": sections, "data": {"seq_length": N}}, "x.json")


def saved(module: MaskedLanguageModel, folder):
    """Write what an export writes, but the tokenizer."""
    (part,) = module.parts().values()
    weights = module.state_dict()
    module.model.save_pretrained(folder)
    for file, inside in part.extra_files.items():
        save_file({inner: weights[name] for name, inner in inside.items()}, folder / file)
    return folder


def test_a_run_starts_from_the_model_and_the_file_beside_it(tmp_path):
    recipe = recipe_of()
    module, folder = module_of(), saved(module_of(), tmp_path / "model")
    assert load_file(folder / FILE)[NAME].shape == (N + 2, 16)
    check_start(folder, recipe, TOKENIZER)
    started = recipe.objective.build(recipe.model, TOKENIZER, N)
    load_pretrained_weights(started, folder)
    assert type(started) is EnhancedMaskDecoder
    assert started.state_dict().keys() == module.state_dict().keys()
    assert all(torch.equal(started.state_dict()[name], one) for name, one in module.state_dict().items())
    check_start(folder, recipe_of("mlm"), TOKENIZER)


@pytest.mark.parametrize(
    ("beside", "finding"),
    [
        (None, r"emd\.safetensors is missing. DebertaV2ForMaskedLM has no such weights: an export of a run"),
        (
            {NAME: torch.ones(N, 16)},
            rf"position_embeddings\.weight of emd\.safetensors is \[{N}, 16\] there, \[{N + 2}, 16\]",
        ),
        ({"other": torch.ones(N + 2, 16)}, r"position_embeddings\.weight of emd\.safetensors is missing there"),
    ],
    ids=["no file", "shape", "name"],
)
def test_a_start_without_the_table_of_positions_is_refused(tmp_path, beside, finding):
    folder = saved(module_of(MaskedLanguageModel), tmp_path / "model")
    if beside is not None:
        save_file(beside, folder / FILE)
    with pytest.raises(UserError, match=f"--init_from {folder}: .*{finding}"):
        check_start(folder, recipe_of(), TOKENIZER)


@pytest.mark.parametrize(
    ("model", "finding"),
    [
        ({"model_type": "bert"}, "which model_type bert does not have: set model.model_type to 'deberta-v2'"),
        ({}, "which model_type mpnet does not have: set model.model_type to 'deberta-v2'"),
        ({"model_type": "deberta-v2"}, "but absolute positions are in the input already: set model.position_biased_input"),
        (
            {"model_type": "deberta-v2", "position_biased_input": False, "num_hidden_layers": 1},
            "num_hidden_layers is 1: give",
        ),
        ({"model_type": "deberta-v2", "position_biased_input": False}, ""),
    ],
)
def test_models_without_a_decoder_are_refused_by_name(model, finding):
    recipe = recipe_from_dict({"name": "x", "objective": EMD, "model": model}, "x.json")
    tokenizer = SimpleNamespace(**vars(TOKENIZER), layout=DEBERTA, origin="t", misfit_of_mpnet="")
    data = SimpleNamespace(seq_length=64, isolate_documents=False)
    texts = [found.text for found in recipe.objective.findings(recipe.model, tokenizer, data)]
    own = [text for text in texts if text.startswith("objective.head is 'emd', ")]
    assert len(own) == bool(finding), texts
    assert all(finding in text and text.endswith(", or take objective.head 'plain'.") for text in own)


def test_the_section_of_a_plain_head_is_that_of_older_runs():
    assert objective_of("mlm").section().keys() == {"name", "masking"}
    assert objective_of(EMD).section()["head"] == "emd"
    assert objective_of(objective_of(EMD).section()) == objective_of(EMD)
    with pytest.raises(UserError, match=r"unknown objective\.head \"edm\"\. Did you mean 'emd'"):
        objective_of({"name": "mlm", "head": "edm"})
