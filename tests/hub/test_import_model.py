"""Any Hugging Face MPNet becomes a start, bit for bit, or is refused with the reason."""

import json
import os
import shutil

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, MPNetModel

from mpnet_ds.errors import UserError
from mpnet_ds.hub.import_model import compare, make_start
from mpnet_ds.hub.pretrained_mpnet import read_pretrained
from tests.checkpoint.models import assert_same_bits, loaded, random_model, saved


@pytest.fixture
def start(tmp_path):
    """A function (folder, …): makes a start of it; gives the start's folder and what was noted."""

    def make(folder, **options):
        made = make_start(tmp_path / "start", folder, **options)
        assert made.difference < 1e-5
        return tmp_path / "start", " ".join(made.notes)

    return make


def test_a_start_holds_the_sources_bits_names_and_tokenizer(tmp_path, start, tokenizer):
    model = random_model()
    source = saved(model, tmp_path / "source", tokenizer)
    output, notes = start(source)
    assert notes == ""
    assert_same_bits(loaded(output), model.state_dict())
    with safe_open(source / "model.safetensors", "pt") as theirs, safe_open(output / "model.safetensors", "pt") as ours:
        assert sorted(ours.keys()) == sorted(theirs.keys())
    assert json.loads((output / "config.json").read_text()) == json.loads((source / "config.json").read_text())
    text = "Return the number of items."
    assert AutoTokenizer.from_pretrained(output)(text)["input_ids"] == [0, *tokenizer.encode([text])[0].tolist(), 2]


def test_an_encoder_alone_gets_a_fresh_head_that_is_always_the_same(tmp_path, start):
    model = random_model(MPNetModel)
    source = saved(model, tmp_path / "source")
    output, notes = start(source)
    assert "Dropped, pre-training has no such head: pooler.dense.bias, pooler.dense.weight." in notes
    assert "a fresh one was drawn (N(0, 0.02), seed 0)" in notes
    weights, encoder = loaded(output), model.state_dict()
    assert_same_bits(
        {name.removeprefix("mpnet."): tensor for name, tensor in weights.items() if name.startswith("mpnet.")},
        {name: tensor for name, tensor in encoder.items() if not name.startswith("pooler.")},
    )
    assert weights["lm_head.dense.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert weights["lm_head.layer_norm.weight"].eq(1).all()
    assert all(weights[f"lm_head.{name}"].eq(0).all() for name in ("bias", "dense.bias", "layer_norm.bias"))
    make_start(tmp_path / "again", source)
    assert_same_bits(loaded(tmp_path / "again"), weights)


@pytest.mark.parametrize("kind", ["SequenceClassification", "MultipleChoice", "TokenClassification", "QuestionAnswering"])
def test_heads_of_other_tasks_are_dropped_by_name(tmp_path, start, kind):
    model = random_model(getattr(transformers, f"MPNetFor{kind}"))
    output, notes = start(saved(model, tmp_path / "source"))
    heads = [name for name in model.state_dict() if not name.startswith("mpnet.")]
    assert heads
    assert all(name in notes for name in heads)
    weights = loaded(output)
    for name, tensor in model.mpnet.state_dict().items():
        assert "pooler" in name or torch.equal(weights[f"mpnet.{name}"], tensor), name


def save_pickled(model, folder, shards: int, archive: bool) -> None:
    """Weights as old versions of transformers saved them: all names, and the buffer that is none of the weights."""
    folder.mkdir()
    model.config.save_pretrained(folder)
    weights = model.state_dict() | {"mpnet.embeddings.position_ids": torch.arange(34)[None]}
    names = sorted(weights)
    files = {f"pytorch_model-{i + 1:05}-of-{shards:05}.bin": names[i::shards] for i in range(shards)}
    if shards == 1:
        files = {"pytorch_model.bin": names}
    else:
        weight_map = {name: file for file, inside in files.items() for name in inside}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for file, inside in files.items():
        part = {name: weights[name].clone() for name in inside}
        torch.save(part, folder / file, _use_new_zipfile_serialization=archive)


@pytest.mark.parametrize("form", ["several safetensors", "bin", "several bin", "bin before PyTorch 1.6"])
def test_every_form_of_weights_gives_the_same_start(tmp_path, start, form):
    model, source = random_model(), tmp_path / "source"
    if form == "several safetensors":
        saved(model, source, max_shard_size="50KB")
        assert len(list(source.glob("*.safetensors"))) > 2
    else:
        save_pickled(model, source, shards=3 if "several" in form else 1, archive="1.6" not in form)
    output, _ = start(source)
    assert_same_bits(loaded(output), model.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_keep_their_values_and_are_stored_in_32(tmp_path, start, dtype):
    model = random_model().to(dtype)
    output, _ = start(saved(model, tmp_path / "source"))
    assert_same_bits(loaded(output), {name: tensor.float() for name, tensor in model.state_dict().items()})
    assert {tensor.dtype for tensor in load_file(output / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("layout", ["", "0_Transformer"])
def test_folders_of_sentence_transformers_are_found_out(tmp_path, start, tokenizer, layout):
    model, source = random_model(MPNetModel), tmp_path / "source"
    saved(model, source / layout, tokenizer)
    (source / "modules.json").write_text("[]")
    if layout:
        (source / "config.json").write_text('{"__version__": "1.0.0"}')
    output, _ = start(source)
    assert torch.equal(loaded(output)["mpnet.encoder.layer.1.output.dense.bias"], model.encoder.layer[1].output.dense.bias)
    assert (output / "vocab.txt").read_text().splitlines() == tokenizer.pieces


def test_the_eps_of_a_model_is_kept(tmp_path, start):
    output, _ = start(saved(random_model(layer_norm_eps=1e-12), tmp_path / "source"))
    assert json.loads((output / "config.json").read_text())["layer_norm_eps"] == 1e-12


@pytest.mark.parametrize("lower_case", [True, False])
def test_vocab_txt_alone_is_a_tokenizer(tmp_path, start, tokenizer, lower_case):
    source = saved(random_model(), tmp_path / "source")
    shutil.copy(saved(random_model(), tmp_path / "other", tokenizer) / "vocab.txt", source)
    (source / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower_case}))
    output, notes = start(source)
    assert notes == ""
    cut = AutoTokenizer.from_pretrained(output).tokenize("The File")
    assert ("".join(cut).replace("##", "") == "thefile") == lower_case


def test_rows_that_pad_the_table_are_cut_off_and_said(tmp_path, start, tokenizer):
    model = random_model(vocab_size=1024)
    output, notes = start(saved(model, tmp_path / "source", tokenizer))
    assert "25 row(s) that pad the token table beyond 999 pieces were cut off" in notes
    assert torch.equal(loaded(output)["lm_head.bias"], model.lm_head.bias[:999])


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("shards", "archive"), [(1, True), (1, False), (2, True)])
def test_code_in_a_bin_is_refused_by_name_and_does_not_run(tmp_path, nested, shards, archive):
    source = tmp_path / "source"
    save_pickled(random_model(), source, shards, archive)
    victim = sorted(source.glob("*.bin"))[-1]
    malice = Malice(tmp_path / "pwned")
    content = torch.load(victim, weights_only=True) | {"innocent": [{"deep": (malice,)}] if nested else malice}
    torch.save(content, victim, _use_new_zipfile_serialization=archive)
    with pytest.raises(UserError, match=rf"{victim.name} asks for \w+\.system.*nothing of it was run"):
        make_start(tmp_path / "start", source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(folder, **tensors):
    """Sets tensors by the end of their names; None takes one away."""
    weights = load_file(folder / "model.safetensors")
    for end, tensor in tensors.items():
        name = next((name for name in weights if name.endswith(end.replace("__", "."))), end.replace("__", "."))
        weights.pop(name, None)
        if tensor is not None:
            weights[name] = tensor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SPOILT = {
    "another model": (lambda f: change_config(f, model_type="bert"), "model_type is 'bert', only 'mpnet'"),
    "buckets": (
        lambda f: change_config(f, relative_attention_num_buckets=64),
        r"config\.json: relative_attention_num_buckets is 64",
    ),
    "activation": (lambda f: change_config(f, hidden_act="gelu_new"), r"config\.json: hidden_act is 'gelu_new'"),
    "heads": (lambda f: change_config(f, num_attention_heads=5), "hidden_size 32 is not a multiple"),
    "type": (lambda f: change_config(f, hidden_size="wide"), r"config\.json: .*hidden_size"),
    "width": (lambda f: change_config(f, intermediate_size=96), r"is \[64.*\]; by the config it should be \[96.*\]"),
    "too few layers": (lambda f: change_config(f, num_hidden_layers=3), r"mpnet\.encoder\.layer\.2\S* is missing"),
    "too many layers": (lambda f: change_config(f, num_hidden_layers=1), "is not a weight of an MPNet with 1 layers"),
    "no json": (lambda f: (f / "config.json").write_text("{"), r"config\.json is not JSON"),
    "no config": (lambda f: (f / "config.json").unlink(), r"has no config\.json"),
    "missing": (lambda f: change_weights(f, layer__1__attention__attn__q__bias=None), r"q\.bias is missing"),
    "half a head": (lambda f: change_weights(f, lm_head__dense__bias=None), r"lm_head\.dense\.bias is missing"),
    "strange": (
        lambda f: change_weights(f, mpnet__encoder__rotary=torch.ones(2)),
        r"encoder\.rotary is not a weight",
    ),
    "untied": (lambda f: change_weights(f, lm_head__decoder__weight=torch.ones(999, 32)), "decoder.weight is not mpnet.emb"),
    "integers": (lambda f: change_weights(f, lm_head__dense__bias=torch.ones(32, dtype=torch.int8)), r"is torch\.int8"),
    "nan": (lambda f: change_weights(f, lm_head__dense__bias=torch.full((32,), float("nan"))), "are NaN or infinite"),
    "other names": (lambda f: save_file({"h.0": torch.ones(1)}, f / "model.safetensors"), "the weights are not an MPNet's"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
    "truncated": (lambda f: cut_in_half(f / "model.safetensors"), r"model\.safetensors is damaged"),
    "added pieces": (lambda f: (f / "added_tokens.json").write_text('{"newest piece": 999}'), "adds pieces to vocab.txt"),
    "tokenizer": (lambda f: (f / "vocab.txt").write_text("<s>\n<pad>\n</s>\n[UNK]\n<mask>\n"), "999 rows, .* 5 pieces"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_cannot_be_represented_or_read_is_refused_with_the_reason(tmp_path, tokenizer, how):
    source = saved(random_model(), tmp_path / "source", tokenizer)
    (source / "tokenizer.json").unlink()  # vocab.txt stays
    spoil, message = SPOILT[how]
    spoil(source)
    with pytest.raises(UserError, match=message) as caught:
        make_start(tmp_path / "start", source)
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_missing_shard_and_a_truncated_bin_are_named(tmp_path):
    save_pickled(random_model(), tmp_path / "source", shards=2, archive=True)
    shards = sorted((tmp_path / "source").glob("*.bin"))
    cut_in_half(shards[1])
    with pytest.raises(UserError, match=f"{shards[1].name} is damaged"):
        make_start(tmp_path / "start", tmp_path / "source")
    shards[0].unlink()
    with pytest.raises(UserError, match=f"{shards[0].name} is missing"):
        make_start(tmp_path / "start", tmp_path / "source")


def test_a_start_that_is_not_what_was_written_is_found_out(tmp_path, start):
    source = saved(random_model(), tmp_path / "source")
    output, _ = start(source)
    change_weights(output, layer__0__attention__attn__q__bias=torch.ones(32))
    with pytest.raises(UserError, match=r"q\.bias is not what .*source holds"):
        compare(read_pretrained(source), output)
    change_config(source, layer_norm_eps=1e-2)
    shutil.copy(source / "model.safetensors", output)
    with pytest.raises(UserError, match="hidden states differ by"):
        compare(read_pretrained(source), output)


def test_existing_output_is_left_alone(tmp_path):
    source = saved(random_model(), tmp_path / "source")
    with pytest.raises(UserError, match="exists and is not empty"):
        make_start(source, source)
