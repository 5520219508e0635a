import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, MPNetConfig, MPNetForSequenceClassification

from mpnet_ds.checkpoint import load_consolidated
from mpnet_ds.checkpoint.fill_mask import top_words
from mpnet_ds.checkpoint.huggingface import compare, export_huggingface
from mpnet_ds.checkpoint.store import read_info
from mpnet_ds.errors import UserError
from mpnet_ds.model import MPNetForPretraining
from mpnet_ds.tokenizer import PretrainingTokenizer

TEXTS = ["Return the number of items.", "A much longer sentence, which says (among other things) that files are closed."]


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    export_huggingface(trained("zero3", 2).folder, folder)
    return folder


def test_folder_is_complete(exported):
    files = {path.name for path in exported.iterdir()}
    wanted = {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert files == wanted | {"vocab.txt", "README.md"}
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["MPNetForMaskedLM"]
    assert config["layer_norm_eps"] == 1e-5
    assert config["max_position_embeddings"] == 34
    assert "held-out loss" in (exported / "README.md").read_text()


def test_hidden_states_and_logits_are_the_training_models(exported, trained):
    weights = load_consolidated(trained("zero3", 2).folder)
    own = MPNetForPretraining(MPNetConfig.from_pretrained(exported)).eval()
    own.load_state_dict(weights)
    theirs = AutoModelForMaskedLM.from_pretrained(exported).eval()
    batch = AutoTokenizer.from_pretrained(exported)(TEXTS, padding=True, return_tensors="pt")
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        out = theirs(**batch, output_hidden_states=True)
        hidden = own.encode(batch["input_ids"], batch["attention_mask"])
        logits = own.lm_head(hidden)
    torch.testing.assert_close(out.hidden_states[-1][real], hidden[real], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.logits[real], logits[real], atol=1e-4, rtol=0)


def test_a_classifier_starts_from_the_same_encoder(exported):
    classifier = MPNetForSequenceClassification.from_pretrained(exported)
    weights = load_file(exported / "model.safetensors")
    compared = {name: tensor for name, tensor in classifier.state_dict().items() if name.startswith("mpnet.")}
    assert len(compared) > 30
    assert all(torch.equal(tensor, weights[name]) for name, tensor in compared.items())


def test_tokenizer_cuts_text_as_in_training(exported, tokenizer_folder):
    theirs, ours = AutoTokenizer.from_pretrained(exported), PretrainingTokenizer.load(tokenizer_folder)
    assert type(theirs).__name__ == "MPNetTokenizer"
    for text, ids in zip(TEXTS, ours.encode(TEXTS), strict=True):
        assert theirs(text)["input_ids"] == [0, *ids.tolist(), 2]
    assert PretrainingTokenizer.load(exported).fingerprint == ours.fingerprint
    assert (exported / "vocab.txt").read_text().splitlines() == ours.pieces


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_exports_are_checked_too(trained, tmp_path, dtype):
    comparison = export_huggingface(trained().folder, tmp_path / "model", dtype=dtype)
    assert comparison.hidden_states < 1e-5
    kinds = {tensor.dtype for tensor in load_file(tmp_path / "model" / "model.safetensors").values()}
    assert kinds == {torch.bfloat16 if dtype == "bf16" else torch.float16}


def test_an_export_that_differs_is_found_out(trained, tmp_path):
    run = trained()
    export_huggingface(run.folder, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    changed = load_file(file)
    changed["mpnet.encoder.layer.0.attention.attn.q.bias"] += 0.05
    save_file(changed, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="differs from the training model"):
        compare(load_consolidated(run.folder), read_info(run.newest_checkpoint), tmp_path / "model")


def test_existing_output_is_left_alone(trained, tmp_path):
    (tmp_path / "precious").write_text("text")
    with pytest.raises(UserError, match="exists and is not empty"):
        export_huggingface(trained().folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_top_words_are_those_of_the_fill_mask_pipeline(exported):
    from transformers import pipeline

    sentence = "return the <mask> of the list."
    expected = pipeline("fill-mask", model=str(exported), tokenizer=str(exported))(sentence, top_k=5)
    found = top_words(exported, sentence)
    assert [round(probability, 5) for _, probability in found] == [round(row["score"], 5) for row in expected]
    with pytest.raises(UserError, match="must have one <mask>"):
        top_words(exported, "no mask here")
