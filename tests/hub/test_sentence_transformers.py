"""An export with ``sentence_transformers`` is a model of that library, and still one of transformers."""

import json
import logging
import warnings

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mpnet_ds.hub.export import export_huggingface
from tests.runs import ROOT

TEXTS = ["Return the number of items.", "A longer sentence, which says (among other things) that files are closed.", "Yes."]


def test_the_folder_names_its_modules(encoder_folder):
    modules = json.loads((encoder_folder / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling"]
    assert {module["type"].rpartition(".")[0] for module in modules} == {"sentence_transformers.models"}
    pooling = json.loads((encoder_folder / "1_Pooling" / "config.json").read_text())
    assert next(key for key, value in pooling.items() if value is True) == "pooling_mode_mean_tokens"  # as vLLM reads it
    encoder = json.loads((encoder_folder / "sentence_bert_config.json").read_text())
    assert {"max_seq_length", "do_lower_case"} <= encoder.keys()
    json.loads((encoder_folder / "config_sentence_transformers.json").read_text())


def test_the_export_itself_does_without_the_library():
    for path in (ROOT / "mpnet_ds").rglob("*.py"):
        assert "import sentence_transformers" not in path.read_text()


def test_embeddings_are_the_mean_over_the_real_tokens(encoder_folder, caplog, capfd):
    library = pytest.importorskip("sentence_transformers")
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        logging.getLogger("transformers").propagate = True  # so that caplog sees it
        try:
            encoder = library.SentenceTransformer(str(encoder_folder), device="cpu")
        finally:
            logging.getLogger("transformers").propagate = False
        found = torch.from_numpy(encoder.encode(TEXTS))
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert "LOAD REPORT" not in capfd.readouterr().err
    assert found.shape == (3, 32)
    assert encoder.max_seq_length == 32
    torch.testing.assert_close(found, mean_by_hand(encoder_folder), atol=1e-5, rtol=0)


def mean_by_hand(folder) -> torch.Tensor:
    """[texts, width] with transformers alone, text by text."""
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer(text, truncation=True, return_tensors="pt") for text in TEXTS]
    with torch.no_grad():
        return torch.stack([model.base_model(**row).last_hidden_state[0].mean(dim=0) for row in rows])


def test_it_can_be_fine_tuned_and_saved(encoder_folder, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    encoder = library.SentenceTransformer(str(encoder_folder), device="cpu")
    before = encoder.encode(TEXTS[0])
    encoder(encoder.preprocess(TEXTS))["sentence_embedding"].square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    torch.optim.SGD(encoder.parameters(), lr=0.01).step()
    changed = encoder.encode(TEXTS[0])
    assert abs(changed - before).max() > 1e-3
    encoder.save(str(tmp_path / "tuned"))
    again = library.SentenceTransformer(str(tmp_path / "tuned"), device="cpu")
    assert abs(again.encode(TEXTS[0]) - changed).max() < 1e-6


def test_the_head_stays_where_transformers_finds_it(encoder_folder, tmp_path, trained):
    export_huggingface(trained().folder, tmp_path / "plain")
    batch = AutoTokenizer.from_pretrained(encoder_folder)(TEXTS, padding=True, truncation=True, return_tensors="pt")
    logits = []
    for folder in (encoder_folder, tmp_path / "plain"):
        model, loading = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
        assert not any(loading.values())
        logits.append(model.eval()(**batch).logits)
    assert torch.equal(*logits)
