"""What cannot be done with a family of transformers is refused by name, before anything is built."""

from types import SimpleNamespace

import pytest
import torch

from mpnet_ds.config.recipe import recipe_from_dict
from mpnet_ds.errors import UserError
from mpnet_ds.preflight.checks import check_layers
from mpnet_ds.tokenizer_layouts import LAYOUTS

BERT = {"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
BERT |= {"max_position_embeddings": 32}
GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32}


def recipe_of(objective: str | dict, model: dict, **data):
    return recipe_from_dict({"name": "x", "objective": objective, "model": model, "data": {"seq_length": 32} | data}, "x")


def findings_of(objective: str | dict, model: dict, layout: str, seq_length: int = 32, isolates: bool = False) -> list[str]:
    recipe = recipe_of(objective, model, seq_length=seq_length)
    tokenizer = SimpleNamespace(
        layout=LAYOUTS[layout], origin="my-data/tokenizer", vocab_size=99, pad_id=0, begin_id=2, end_id=3, unknown_id=1,
        mask_id=4 if LAYOUTS[layout].mask else None, misfit_of_mpnet=None,
    )  # fmt: skip
    data = SimpleNamespace(seq_length=seq_length, isolate_documents=isolates, folder="my-data")
    return [finding.text for finding in recipe.objective.findings(recipe.model, tokenizer, data)]


def test_what_fits_has_no_findings():
    assert findings_of("mlm", BERT, "bert", isolates=True) == []
    assert findings_of("clm", GPT2, "gpt2", isolates=True) == []


@pytest.mark.parametrize(
    ("objective", "model", "layout", "more", "words"),
    [
        ("mlm", BERT, "roberta", {}, ("special tokens of roberta, bert needs those of bert", "--layout bert")),
        ("mlm", BERT, "bert", {"seq_length": 33}, ("data.seq_length 33", "max_position_embeddings 32")),
        ("mlm", GPT2, "gpt2", {}, ("gpt2", "no class for masked language modelling")),
        ("clm", {}, "mpnet", {}, ("two-stream MPNet is none", "model.model_type")),
        ("mpnet", BERT, "bert", {}, ("objective mpnet is for the two-stream MPNet",)),
        ("mlm", BERT | {"hidden_size": 15}, "bert", {}, ("hidden_size 15 is not a multiple of", "num_attention_heads 2")),
        (
            "mlm",
            BERT | {"model_type": "convbert"},
            "bert",
            {"isolates": True},
            ("isolate_documents is not possible with convbert: its convolutions cross their borders",),
        ),
    ],
    ids=["layout", "length", "mlm of gpt2", "clm of MPNet", "mpnet of BERT", "heads", "isolation"],
)
def test_what_does_not_fit_is_named(objective, model, layout, more, words):
    text, *_ = findings_of(objective, model, layout, **more)
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"model_type": "bertt"}, "unknown model.model_type 'bertt'. Did you mean 'bert'"),
        (BERT | {"hidden_sizes": 3}, "unknown key 'model.hidden_sizes'. Did you mean 'hidden_size'"),
        (BERT | {"hidden_size": "16"}, 'model.hidden_size is "16"; it must be a whole number'),
        (
            BERT | {"implementation": "two_stream"},
            "model.implementation 'two_stream' is MPNet's; bert has 'transformers' only",
        ),
        (BERT | {"model_type": "convbert", "start": "near"}, 'unknown model.start "near".*usual'),
        (BERT | {"start_strength": 2.0}, "model.start_strength is for model.start 'near'"),
        (BERT | {"start": "near", "start_strength": -1.0}, "model.start_strength is -1.0; it must be greater than 0"),
        ("bert", "model is .bert.; it must be an object"),
    ],
)
def test_a_section_with_a_mistake_names_it(model, message):
    with pytest.raises(UserError, match=message):
        recipe_of("mlm", model)


def test_a_section_makes_another_run_and_names_its_family():
    bert = recipe_of("mlm", BERT).model
    assert bert.identity()["model_type"] == "bert"
    assert recipe_of("mlm", BERT | {"hidden_size": 32}).model.identity() != bert.identity()
    assert (bert.hidden_size, recipe_of("clm", GPT2).model.hidden_size) == (16, 16)


def test_a_near_start_changes_positions_words_queries_and_keys_alone():
    tokenizer = SimpleNamespace(vocab_size=99, pad_id=0, begin_id=2, end_id=3, unknown_id=1, mask_id=4)
    states = {}
    for start in ("usual", "near"):
        recipe = recipe_of("mlm", BERT | {"start": start})
        torch.manual_seed(0)
        states[start] = recipe.objective.build(recipe.model, tokenizer, 32).state_dict()
    changed = [name for name, tensor in states["usual"].items() if not torch.equal(tensor, states["near"][name])]
    ends = (
        "position_embeddings.weight",
        "word_embeddings.weight",
        "token_type_embeddings.weight",
        "query.weight",
        "key.weight",
    )
    assert all(name.endswith((*ends, "decoder.weight")) for name in changed)
    assert all(any(name.endswith(end) for name in changed) for end in ends)
    assert recipe.model.start_strength == 2.0
    assert recipe.model.identity()["start"] == "near"
    with torch.device("meta"):
        recipe.objective.build(recipe.model, tokenizer, 32)


@pytest.mark.parametrize(
    ("model_type", "section", "compiles", "words"),
    [
        ("bert", {"number_checkpoints": 1}, True, ()),
        ("bert", {"partition_activations": True}, False, ("activation_checkpointing.partition_activations", "bert")),
        ("bert", {"cpu_checkpointing": True}, False, ("activation_checkpointing.cpu_checkpointing",)),
        ("reformer", {}, False, ("activation_checkpointing is not possible with reformer",)),
        ("longformer", None, True, ("--compile is not possible with longformer",)),
        ("longformer", None, False, ()),
    ],
)
def test_layers_that_cannot_be_recomputed_or_compiled_are_named(model_type, section, compiles, words):
    engine = {} if section is None else {"activation_checkpointing": section}
    plan = SimpleNamespace(
        recipe=recipe_of("mlm", {"model_type": model_type}),
        engine=SimpleNamespace(engine=engine),
        execution=SimpleNamespace(compile=compiles),
    )
    found = [finding.text for finding in check_layers(plan, None, None)]
    assert len(found) == bool(words)
    assert all(word in found[0] for word in words)
