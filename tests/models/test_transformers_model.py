"""Families of transformers: losses and gradients, isolated documents, recomputed layers, exported parts, sizes."""

import copy
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from mpnet_ds.errors import UserError
from mpnet_ds.hub.part_weights import add_up, contents_of, find_sources
from mpnet_ds.models.counting import count
from mpnet_ds.models.families import FAMILIES, build_config, configuration_keys, family_of, longest_sequence
from mpnet_ds.models.targets import corrupt
from mpnet_ds.models.transformers_model import CausalLanguageModel, Inputs, MaskedLanguageModel

B, N, P, V = 2, 16, 4, 60
TOKENIZER = SimpleNamespace(vocab_size=V, pad_id=1, begin_id=0, end_id=2, mask_id=4, unknown_id=3)
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
BERT |= {"max_position_embeddings": N + 2}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": N}
XLM = {"emb_dim": 16, "n_layers": 2, "n_heads": 2, "max_position_embeddings": N}
DEBERTA = {"relative_attention": True, "pos_att_type": "p2c|c2p", "position_buckets": 4, "share_att_key": True}
DEBERTA |= {"norm_rel_ebd": "layer_norm", "position_biased_input": False}
SIZES = {
    "bert": BERT,
    "convbert": BERT | {"embedding_size": 12, "num_attention_heads": 4, "conv_kernel_size": 3},
    "ctrl": GPT | {"dff": 24},
    "deberta-v2": BERT | DEBERTA,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": N},
    "electra": BERT | {"embedding_size": 12},
    "ernie": BERT | {"use_task_id": True},
    "flaubert": XLM,
    "funnel": {"block_sizes": [1, 1], "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24, "num_decoder_layers": 1},
    "gpt2": GPT,
    "longformer": BERT | {"attention_window": 4},
    "modernbert": BERT | {"local_attention": 4, "global_attn_every_n_layers": 2},
    "mpnet": BERT,
    "openai-gpt": GPT,
    "reformer": {"attention_head_size": 8, "num_attention_heads": 2, "hidden_size": 16, "feed_forward_size": 24}
    | {"attn_layers": ["local", "lsh"], "axial_pos_shape": [4, 4], "axial_pos_embds_dim": [8, 8]}
    | {"local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "max_position_embeddings": N},
    "roberta": BERT,
    "xlm": XLM | {"n_langs": 3},
    "xlm-roberta": BERT,
}
CASES = [
    (name, causal)
    for name, family in FAMILIES.items()
    for causal in (False, True)
    if (family.causal if causal else family.masked)
]
each_case = pytest.mark.parametrize(("name", "causal"), CASES, ids=[f"{n}-{'clm' if c else 'mlm'}" for n, c in CASES])


def test_every_family_has_tiny_sizes():
    assert SIZES.keys() == FAMILIES.keys()


def config_of(name: str, causal: bool, dropout: float = 0.0, **values):
    family = FAMILIES[name]
    dropouts = {key: dropout for key in configuration_keys(family) if "drop" in key and key not in family.only}
    return build_config(family, SIZES[name] | dropouts | values, TOKENIZER, N, causal)


def module_of(name: str, causal: bool, dropout: float = 0.0, attention: str = "auto", **values):
    torch.manual_seed(0)
    config = config_of(name, causal, dropout, **values)
    module = (
        CausalLanguageModel(FAMILIES[name], config, attention)
        if causal
        else MaskedLanguageModel(FAMILIES[name], config, 4, attention)
    )
    for parameter in module.parameters():  # so that biases and norms matter, and logits differ
        parameter.data += 0.3 * torch.randn(parameter.shape)
    return module


def batch_of(causal: bool, padded: bool = True, documents: bool = False) -> dict[str, torch.Tensor]:
    """Two sequences, the second with padding; with documents of 6, 5 and 5 tokens, or of 6, 5 and padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, V, (B, N), generator=generator)
    batch = {"input_ids": ids}
    if padded:
        batch["attention_mask"] = torch.arange(N) < torch.tensor([[N], [11]])
        batch["input_ids"] = ids.masked_fill(~batch["attention_mask"], TOKENIZER.pad_id)
    if documents:
        batch["document_ids"] = torch.tensor([0] * 6 + [1] * 5 + [2] * 5).expand(B, -1)
    if causal:
        following = F.pad(batch["input_ids"][:, 1:], (0, 1), value=-1)
        return batch | {"next_ids": following.masked_fill(following == TOKENIZER.pad_id, -1)}
    positions = torch.tensor([[9, 2, 12, 5], [7, 1, 10, -1]])
    return batch | {"predicted_positions": positions, "predicted_inputs": torch.tensor([[4, 33, 4, 4], [4, 4, 20, 0]])}


def labels_of(module, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers reads, and its labels [B, n], of each token itself."""
    ids = batch["input_ids"]
    if module.is_causal:
        labels = F.pad(batch["next_ids"][:, :-1], (1, 0), value=-1)
        return ids, torch.where(labels < 0, -100, labels)
    positions = batch["predicted_positions"]
    labels = torch.full((B, N + 1), -100).scatter(
        1, positions.where(positions >= 0, N), ids.gather(1, positions.clamp(min=0))
    )
    return corrupt(ids, positions, batch["predicted_inputs"]), labels[:, :-1].contiguous()


def loss_of_transformers(name: str, module, batch) -> torch.Tensor:
    """The loss that the family's class computes by itself; XLM's and FlauBERT's does not shift labels."""
    ids, labels = labels_of(module, batch)
    options = {"attention_mask": batch["attention_mask"].long()} if "attention_mask" in batch else {}
    if name == "longformer":
        options["global_attention_mask"] = (torch.arange(N) == 0).long().expand(B, -1)
    if name in ("xlm", "flaubert") and module.is_causal:
        logits = module.model(input_ids=ids, **options).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return module.model(input_ids=ids, labels=labels, **options).loss


def gradients(module) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None}
    module.zero_grad()
    return found


@pytest.mark.parametrize("padded", [True, False])
@each_case
def test_loss_and_gradients_are_transformers(name, causal, padded):
    module, batch = module_of(name, causal), batch_of(causal, padded)
    torch.manual_seed(3)  # Reformer hashes at random
    expected = loss_of_transformers(name, module, batch)
    expected.backward()
    of_transformers = gradients(module)
    torch.manual_seed(3)
    scores = module(**batch)
    loss = scores.sums[0] / (batch["next_ids"] if causal else batch["predicted_positions"]).ge(0).sum()
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    ours = gradients(module)
    assert ours.keys() == of_transformers.keys()
    for key, gradient in of_transformers.items():
        torch.testing.assert_close(ours[key], gradient, atol=1e-5, rtol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


@each_case
def test_targets_read_as_mask_are_counted_apart(name, causal):
    module, batch = module_of(name, causal), batch_of(causal)
    scores = module(**batch)
    assert scores.correct.dtype == torch.int64
    if not causal:
        masked = scores.counts["masked"]
        assert masked[2] == 5
        assert 0 < masked[0] < scores.sums[0]


def embedded(module, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states [B, n, d], and the token embeddings [B, n, d] that they come from."""
    kept = []
    hook = module.model.get_input_embeddings().register_forward_hook(lambda _, __, output: kept.append(output))
    ids = (
        corrupt(batch["input_ids"], batch["predicted_positions"], batch["predicted_inputs"])
        if "predicted_positions" in batch
        else batch["input_ids"]
    )
    hidden = module.hidden_states(Inputs(ids, batch.get("attention_mask"), batch.get("document_ids"), batch.get("language")))
    hook.remove()
    return hidden, kept[0]


@pytest.mark.parametrize("attention", ["auto", "eager"])
@each_case
def test_documents_are_kept_apart_or_refused_by_name(name, causal, attention):
    module, batch = module_of(name, causal, attention=attention), batch_of(causal, documents=True)
    family = FAMILIES[name]
    if family.not_isolated:
        with pytest.raises(UserError, match=f"{name} cannot keep documents apart: "):
            module(**batch)
        return
    hidden, embeddings = embedded(module, batch)
    (hidden[:, 6:11] * torch.randn(5, hidden.shape[2])).sum().backward(inputs=[embeddings])
    assert embeddings.grad[:, 6:11].abs().min() > 0
    outside = embeddings.grad.clone()
    outside[:, 6:11] = 0
    assert outside.abs().max() == 0
    alone, _ = embedded(
        module,
        {"input_ids": batch["input_ids"][:, 6:11]}
        if causal
        else {"input_ids": corrupt(batch["input_ids"], batch["predicted_positions"], batch["predicted_inputs"])[:, 6:11]},
    )
    torch.testing.assert_close(hidden[:, 6:11], alone, atol=1e-5, rtol=1e-5)
    assert torch.isfinite(module(**batch).sums).all()


@each_case
def test_nothing_comes_from_padding_or_from_what_follows(name, causal):
    module, batch = module_of(name, causal), batch_of(causal)
    hidden, embeddings = embedded(module, batch)
    last = 8 if causal else 11
    if name == "convbert":
        return  # its convolutions reach into the padding, in transformers too
    hidden[1, :last].sum().backward(inputs=[embeddings])
    assert embeddings.grad[1, last:].abs().max() == 0
    assert embeddings.grad[1, :last].abs().max(dim=1).values.min() > 0
    assert torch.equal(embeddings.grad[0], torch.zeros_like(embeddings.grad[0]))


@each_case
def test_recomputed_layers_have_the_same_gradients_to_the_last_bit(name, causal):
    if FAMILIES[name].not_recomputed:
        return
    module, batch = module_of(name, causal, dropout=0.1), batch_of(causal)
    found = []
    for is_recomputed in (False, True):
        for layer in module.layers() if is_recomputed else ():
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        torch.manual_seed(2)
        module(**batch).sums.sum().backward()
        found.append(gradients(module))
    assert any(not torch.equal(gradient, torch.zeros_like(gradient)) for gradient in found[0].values())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    torch.manual_seed(2)
    module(**batch).sums.sum().backward()
    assert all(torch.equal(found[0][key], gradient) for key, gradient in gradients(module).items())


@each_case
def test_the_part_is_the_familys_class_with_its_tied_weights(name, causal, tmp_path):
    module, batch = module_of(name, causal), batch_of(causal)
    (part,) = module.parts().values()
    weights, sources = module.state_dict(), find_sources(part, module, contents_of(part))
    model = part.model_class(copy.deepcopy(part.config))
    found = model.load_state_dict({key: add_up(weights, source) for key, source in sources.items()}, strict=False)
    assert not found.unexpected_keys
    model.save_pretrained(tmp_path)
    loaded = part.model_class.from_pretrained(tmp_path).eval()
    assert getattr(loaded.config, "use_cache", True)  # off in training alone
    logits = []
    for one in (loaded, module.eval().model):
        torch.manual_seed(3)  # Reformer hashes at random
        with torch.no_grad():
            logits.append(one(labels_of(module, batch)[0], attention_mask=batch["attention_mask"].long()).logits)
    assert torch.equal(*(found[batch["attention_mask"]] for found in logits))
    for copied, source in loaded.all_tied_weights_keys.items():
        assert module.model.get_parameter(copied) is module.model.get_parameter(source), copied
    files = {
        f"model.{key}": tensor for key, tensor in loaded.state_dict().items() if key not in loaded.all_tied_weights_keys
    }
    module.load_state_dict(files)
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load_state_dict(dict(list(files.items())[1:]))


@each_case
def test_hidden_matrices_are_the_linear_maps_below_the_head(name, causal):
    module = module_of(name, causal)
    names = {id(parameter): key for key, parameter in module.named_parameters()}
    hidden = [names[id(matrix)] for matrix in module.hidden_matrices()]
    assert len(hidden) == len(set(hidden))
    prefix = f"model.{module.model.base_model_prefix}."
    assert all(key.startswith(prefix) for key in hidden)
    assert all(V not in module.get_parameter(key).shape for key in hidden)
    maps = [m.weight for layer in module.layers() for m in layer.modules() if isinstance(m, torch.nn.Linear | Conv1D)]
    assert {names[id(weight)] for weight in maps} <= set(hidden)
    assert len(maps) >= 2 * 4


def test_muons_step_of_a_transposed_matrix_is_the_step_transposed():
    matrix, gradient = torch.randn(6, 18), torch.randn(6, 18)
    steps = []
    for turned in (False, True):
        parameter = torch.nn.Parameter((matrix.T if turned else matrix).clone())
        parameter.grad = (gradient.T if turned else gradient).clone()
        torch.optim.Muon([parameter], lr=0.1, adjust_lr_fn="match_rms_adamw").step()
        steps.append(parameter.detach().T if turned else parameter.detach())
    torch.testing.assert_close(*steps, atol=1e-6, rtol=1e-2)


@pytest.mark.parametrize(("name", "causal"), dict(reversed(CASES)).items())
def test_sizes_are_counted_on_tensors_without_numbers(name, causal):
    if FAMILIES[name].not_counted:
        return
    batch = {key: tensor.numpy() for key, tensor in batch_of(causal).items()}
    plan = count(lambda: module_of(name, causal), batch | {"sequence_numbers": np.arange(B), "step": np.array(0)})
    module = module_of(name, causal)
    assert plan.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert plan.flops_per_sequence > 4 * N * plan.hidden_numbers
    assert plan.activation_bytes > 0


@pytest.mark.parametrize(("name", "causal", "rows"), [("bert", False, P), ("gpt2", True, N)])
def test_the_map_to_the_vocabulary_is_counted_for_the_rows_of_targets(name, causal, rows):
    family, batch, found = FAMILIES[name], {key: tensor.numpy() for key, tensor in batch_of(causal).items()}, []
    for size in (V, 3 * V):
        config = build_config(family, SIZES[name], SimpleNamespace(**vars(TOKENIZER) | {"vocab_size": size}), N, causal)
        module_class = CausalLanguageModel if causal else MaskedLanguageModel
        sizes = batch | {"sequence_numbers": np.arange(B), "step": np.array(0)}
        found.append(count(partial(module_class, family, config), sizes).flops_per_sequence)
    assert found[1] - found[0] == 6 * rows * 2 * V * 16


@each_case
def test_ids_and_vocabulary_are_the_tokenizers(name, causal):
    config = config_of(name, causal)
    assert config.vocab_size == V
    roles = {"pad": 1, "bos": 0, "eos": 2, "cls": 0, "sep": 2, "mask": 4}
    for role, token in roles.items():
        assert getattr(config, f"{role}_token_id", None) in (None, token)


@each_case
def test_an_unknown_key_is_refused_with_the_nearest(name, causal):
    near = next(key for key in configuration_keys(FAMILIES[name]) if key.startswith("init"))
    with pytest.raises(UserError, match=f"unknown key 'model.{near[:-1]}' for {name}. Did you mean '{near}'"):
        config_of(name, causal, **{near[:-1]: 3})
    for taken in ("vocab_size", "pad_token_id", "use_cache", "is_decoder"):
        with pytest.raises(UserError, match=f"unknown key 'model.{taken}'"):
            config_of(name, causal, **{taken: 1})


@each_case
def test_sizes_that_do_not_fit_are_refused(name, causal):
    family = FAMILIES[name]
    keys = {key: key for key in configuration_keys(family)}
    aliases = {ours: theirs for ours, theirs in type(config_of(name, causal)).attribute_map.items() if theirs in keys}
    heads = (keys | aliases).get("num_attention_heads")
    if family.heads_divide_width:
        with pytest.raises(UserError, match=f"is not a multiple of model.{heads} 3"):
            config_of(name, causal, **{heads: 3})
    with pytest.raises(UserError, match=f"model.{heads} is 0"):
        config_of(name, causal, **{heads: 0})
    with pytest.raises(UserError, match=f"Field '{heads}' expected int, got str"):
        config_of(name, causal, **{heads: "three"})


@each_case
def test_a_sequence_longer_than_the_positions_is_refused(name, causal):
    family, config = FAMILIES[name], config_of(name, causal)
    longest = longest_sequence(family, config)
    if longest is not None:
        with pytest.raises(UserError, match=f"data.seq_length {longest + 1} is longer than model.{family.positions}"):
            build_config(family, SIZES[name], TOKENIZER, longest + 1, causal)


def test_families_and_classes_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match=r"unknown model\.model_type 'robertta'\. Did you mean 'roberta'"):
        family_of("robertta")
    with pytest.raises(UserError, match=r"'gpt2' has no class for masked language modelling\. With one: bert"):
        build_config(family_of("gpt2"), GPT, TOKENIZER, N)


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("flaubert", {"pre_norm": True}, "model.pre_norm is True; flaubert can only be trained with False: transformers"),
        ("flaubert", {"layerdrop": 0.1}, "model.layerdrop is 0.1; flaubert can only be trained with 0.0: every rank"),
        ("mpnet", {"relative_attention_num_buckets": 64}, "model.relative_attention_num_buckets is 64; mpnet can only"),
        ("mpnet", {"hidden_act": "gleu"}, "transformers refuses these values: .*gleu"),
        ("xlm", {"hidden_size": 32}, "unknown key 'model.hidden_size' for xlm. xlm calls it 'emb_dim'"),
        ("reformer", {"axial_pos_shape": [4, 8]}, "seq_length 16 is not the product of model.axial_pos_shape .4, 8., as"),
        ("reformer", {"lsh_attn_chunk_length": 5}, "seq_length 16 is not a multiple of model.lsh_attn_chunk_length 5"),
        ("reformer", {"axial_pos_embds_dim": [4, 8]}, "transformers refuses these values: .* sum to config.hidden_size: 16"),
        ("reformer", {"attn_layers": ["locl"]}, "transformers refuses these values: .*locl"),
        ("deberta-v2", {"norm_rel_ebd": 3}, "transformers refuses these values: .*lower"),
        ("longformer", {"attention_window": 5}, "transformers refuses these values: .*attention_window"),
        ("convbert", {"hidden_size": 15}, "transformers refuses these values: hidden_size should be divisible"),
    ],
)
def test_what_a_family_refuses_is_refused_in_words(name, values, text):
    with pytest.raises(UserError, match=text):
        config_of(name, causal=False, **values)


def test_mpnet_pads_with_the_id_that_its_class_knows():
    with pytest.raises(UserError, match="mpnet of transformers pads with id 1, the tokenizer with 5"):
        build_config(FAMILIES["mpnet"], BERT, SimpleNamespace(**vars(TOKENIZER) | {"pad_id": 5}), N)


def test_positions_of_roberta_begin_after_padding():
    assert longest_sequence(FAMILIES["roberta"], config_of("roberta", False)) == BERT["max_position_embeddings"] - 2
    assert longest_sequence(FAMILIES["bert"], config_of("bert", False)) == BERT["max_position_embeddings"]


def test_a_convolution_in_deberta_leaks_between_documents_and_is_refused():
    with pytest.raises(UserError, match="deberta-v2 cannot keep documents apart: its convolution crosses their borders"):
        module_of("deberta-v2", False, conv_kernel_size=3)(**batch_of(False, documents=True))
    assert torch.isfinite(module_of("deberta-v2", False, conv_kernel_size=3)(**batch_of(False)).sums).all()


@pytest.mark.parametrize("causal", [False, True])
def test_languages_reach_xlm_as_its_own_langs(causal):
    module, batch = module_of("xlm", causal), batch_of(causal)
    ids, language, real = labels_of(module, batch)[0], torch.tensor([2, 1]), batch["attention_mask"]
    ours = module.hidden_states(Inputs(ids, real, language=language))
    theirs = module.model.transformer(ids, attention_mask=real.long(), langs=language[:, None].expand(B, N))[0]
    torch.testing.assert_close(ours[real], theirs[real], atol=1e-5, rtol=1e-5)
    assert module(**batch, language=language).sums != module(**batch).sums


def test_layers_are_in_the_order_in_which_they_run():
    for name, causal in CASES:
        module, order = module_of(name, causal), []
        for number, layer in enumerate(module.layers()):
            layer.register_forward_pre_hook(lambda *_, number=number, order=order: order.append(number))
        module(**batch_of(causal))
        assert order == list(range(len(order))), name


@each_case
def test_the_dtype_of_the_weights_is_that_of_the_masks(name, causal):
    for documents in (False, True)[: 1 if FAMILIES[name].not_isolated else 2]:
        module, batch = module_of(name, causal), batch_of(causal, documents=documents)
        torch.manual_seed(3)
        expected = module(**batch).sums.item()
        torch.manual_seed(3)
        assert module.bfloat16()(**batch).sums.item() == pytest.approx(expected, rel=0.02)


@pytest.mark.long
@each_case
def test_layers_are_compiled_as_one_graph_each(name, causal):
    if FAMILIES[name].not_compiled:
        return
    module, batch = module_of(name, causal), batch_of(causal, documents=not FAMILIES[name].not_isolated)
    expected = module(**batch).sums.item()
    for layer in module.layers():
        layer.compile(backend="aot_eager", fullgraph=True)
    scores = module(**batch)
    scores.sums.sum().backward()
    assert scores.sums.item() == pytest.approx(expected, rel=1e-5)
    torch._dynamo.reset()


def test_modernberts_output_may_have_no_bias():
    module, batch = module_of("modernbert", False, decoder_bias=False), batch_of(False)
    loss_of_transformers("modernbert", module, batch).backward()
    expected = gradients(module)
    (module(**batch).sums[0] / 7).backward()
    for key, gradient in gradients(module).items():
        torch.testing.assert_close(gradient, expected[key], atol=1e-5, rtol=1e-5)


def test_attention_is_sdpa_where_the_family_has_it():
    assert module_of("bert", False).model.config._attn_implementation == "sdpa"
    assert module_of("bert", False, attention="eager").model.config._attn_implementation == "eager"
    with pytest.raises(UserError, match="--attention triton is MPNet's own; bert has auto, eager, sdpa"):
        module_of("bert", False, attention="triton")
