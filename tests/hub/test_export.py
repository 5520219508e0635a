import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, MPNetConfig, MPNetForMaskedLM

from mpnet_ds.checkpoint import load_consolidated
from mpnet_ds.errors import UserError
from mpnet_ds.hub.export import export_huggingface
from mpnet_ds.hub.fill_mask import top_words
from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.tokenizer import PretrainingTokenizer

TEXTS = ["Return the number of items.", "A much longer sentence, which says (among other things) that files are closed."]


def test_folder_is_complete(exported):
    files = {path.name for path in exported.iterdir()}
    wanted = {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert files == wanted | {"vocab.txt", "README.md"}
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["MPNetForMaskedLM"]
    assert config["layer_norm_eps"] == 1e-5
    assert config["max_position_embeddings"] == 34
    assert config["vocab_size"] == 999
    assert config["dtype"] == "float32"


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
    assert max(comparison.differences.values()) < 1e-5
    kinds = {tensor.dtype for tensor in load_file(tmp_path / "model" / "model.safetensors").values()}
    assert kinds == {torch.bfloat16 if dtype == "bf16" else torch.float16}


def test_existing_output_is_left_alone(trained, tmp_path):
    (tmp_path / "precious").write_text("text")
    with pytest.raises(UserError, match="exists and is not empty"):
        export_huggingface(trained().folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_weights_are_those_that_transformers_itself_would_write(exported, tmp_path):
    model = MPNetForMaskedLM.from_pretrained(exported)
    model.save_pretrained(tmp_path)
    theirs, ours = load_file(tmp_path / "model.safetensors"), load_file(exported / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with safe_open(exported / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    written, expected = (json.loads((folder / "config.json").read_text()) for folder in (exported, tmp_path))
    assert written == expected


def test_files_are_as_readable_as_the_umask_says(trained, tmp_path):
    before = os.umask(0o027)
    try:
        export_huggingface(trained().folder, tmp_path / "model", sentence_transformers=True)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert modes == dict.fromkeys(modes, 0o640)


def test_a_divided_export_loads_too(trained, exported, tmp_path):
    comparison = export_huggingface(trained("zero3", 2).folder, tmp_path / "model", max_shard_size=80_000)
    files = sorted(path.name for path in (tmp_path / "model").glob("model*"))
    assert files == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)] + ["model.safetensors.index.json"]
    assert comparison.differences["hidden_states"] <= 1e-5
    model, loading = AutoModelForMaskedLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(loading.values())
    expected = AutoModelForMaskedLM.from_pretrained(exported).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_padding_rows_of_the_vocabulary_are_cut_off(saved, tmp_path):
    checkpoint, folder = saved / "padded", tmp_path / "model"
    comparison = export_huggingface(checkpoint, folder)
    assert (comparison.padding_rows, comparison.longest) == (25, 160)
    assert "25 padding row(s) of the vocabulary were cut off" in comparison.describe()
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 999
    before, after = load_consolidated(checkpoint), load_file(folder / "model.safetensors")
    for name in ("mpnet.embeddings.word_embeddings.weight", "lm_head.bias"):
        assert before[name].shape[0] == 1024
        assert torch.equal(before[name][:999], after[name])
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.get_output_embeddings().weight.shape == (len(tokenizer), 32)


def test_the_program_says_what_it_found(saved, tmp_path, program):
    options = ["--dtype", "bf16", "--max_shard_size", "100KB", "--sentence_transformers"]
    said = program("convert_to_hf", saved / "padded", tmp_path / "model", *options)
    for expected in ("sequences of up to 160", "rounded to bfloat16", "25 padding row(s)"):
        assert expected in said.out
    assert "warning" not in said.err.lower()
    assert (tmp_path / "model" / "model.safetensors.index.json").exists()
    assert (tmp_path / "model" / "modules.json").exists()


def test_shards_of_another_program_are_refused_with_the_cure(trained, tmp_path):
    shutil.copytree(trained().newest_checkpoint, tmp_path / "foreign" / "global_step8")
    (tmp_path / "foreign" / "global_step8" / "manifest.json").unlink()
    for source in (tmp_path / "foreign", tmp_path / "foreign" / "global_step8"):
        with pytest.raises(UserError, match=r"another program wrote them.*tools/consolidate\.py"):
            export_huggingface(source, tmp_path / "model")
    with pytest.raises(UserError, match="no checkpoint in"):
        export_huggingface(tmp_path / "nowhere", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_run_checkpoints_folder_and_checkpoint_are_the_same_source(trained, tmp_path):
    run = trained()
    for number, source in enumerate((run.folder, run.folder / "checkpoints", run.newest_checkpoint)):
        export_huggingface(source, tmp_path / str(number))
    files = [(tmp_path / str(number) / "model.safetensors").read_bytes() for number in range(3)]
    assert files[0] == files[1] == files[2]


def test_unknown_dtype_is_named(trained, tmp_path):
    with pytest.raises(UserError, match=r"unknown dtype 'fp61'\. Did you mean 'fp16'"):
        export_huggingface(trained().folder, tmp_path / "model", dtype="fp61")


def test_a_tokenizer_that_frames_no_text_does_so_in_the_export(saved, tmp_path):
    export_huggingface(saved / "bpe", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    first, second = tokenizer("the fox")["input_ids"], tokenizer("the fox", "a dog")["input_ids"]
    assert (first[0], first[-1]) == (0, 2)
    assert second[: len(first) + 1] == [*first, 2]
    assert PretrainingTokenizer.load(tmp_path / "model").encode(["the fox"])[0].tolist() == first[1:-1]
    assert len(top_words(tmp_path / "model", "the <mask> fox", 5)) == 5
