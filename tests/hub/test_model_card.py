"""The model card says what is known, and nothing else; its code runs."""

import json
import re
import shutil

import pytest
from huggingface_hub import ModelCard

from mpnet_ds.hub.export import export_huggingface
from mpnet_ds.hub.model_card import FOLDER
from tests.runs import ROOT


def rows_of(folder) -> dict[str, str]:
    text = (folder / "README.md").read_text()
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]*) \|$", text, re.MULTILINE))


def test_front_matter_is_what_the_hub_reads(exported, encoder_folder):
    card = ModelCard.load(exported / "README.md").data.to_dict()
    assert card == {"library_name": "transformers", "pipeline_tag": "fill-mask", "tags": ["mpnet", "mpnet_ds"]}
    assert ModelCard.load(encoder_folder / "README.md").data.tags[-1] == "sentence-transformers"


def test_card_tells_of_the_run_and_its_data(trained, encoder_folder, dataset_folder):
    run, rows = trained(), rows_of(encoder_folder)
    assert rows["steps"] == "8"
    assert rows["highest learning rate"] == "0.005"
    assert rows["sequences"] == "64 of up to 32 tokens"
    assert rows["tokens"] == "2,048"
    assert rows["training loss"] == f"{run.losses[-1]:.4f} nats per predicted token (step 8)"
    assert rows["validation loss"] == f"{run.eval_losses[-1]:.4f} nats per predicted token (step 8)"
    assert rows["predicted"] == "15% of the tokens, whole words: 80% masked, 10% left as they are, 10% random"
    assert rows["parameters"] == "52,391"
    assert "transformers 5" in rows["made with"]
    manifest, text = json.loads((dataset_folder / "dataset.json").read_text()), (encoder_folder / "README.md").read_text()
    assert f"{manifest['documents']:,} documents, {manifest['tokens']:,} tokens, from `sample.txt`" in text
    assert str(dataset_folder.parent) not in text
    assert "* License: not stated\n* Languages: not stated\n* Sources: not stated\n" in text
    assert "started from" not in rows
    assert all(value.strip() for value in rows.values())


def test_a_checkpoint_without_its_run_says_what_its_manifest_knows(trained, tmp_path):
    run = shutil.copytree(trained().folder / "checkpoints", tmp_path / "checkpoints")
    export_huggingface(run, tmp_path / "model")
    rows, text = rows_of(tmp_path / "model"), (tmp_path / "model" / "README.md").read_text()
    assert rows["tokens"] == "2,048"
    assert "validation loss" in rows
    assert not {"training loss", "made with", "highest learning rate"} & rows.keys()
    assert "checksum of the dataset" in text
    assert "None" not in text
    assert "documents" not in text


def test_an_older_checkpoint_tells_the_losses_of_its_own_step(trained, tmp_path):
    export_huggingface(trained().folder / "checkpoints" / "step-00000006", tmp_path / "model")
    rows = rows_of(tmp_path / "model")
    assert rows["training loss"].endswith("(step 6)")
    assert rows["validation loss"].endswith("(step 4)")


def test_run_json_of_another_run_is_not_believed(trained, tmp_path):
    run = shutil.copytree(trained().folder, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["identity"]["seed"] = 1
    (run / "run.json").write_text(json.dumps(record))
    export_huggingface(run, tmp_path / "model")
    assert "training loss" not in rows_of(tmp_path / "model")


def test_sources_of_a_mixture_are_named_without_their_folders(trained, tmp_path):
    run = shutil.copytree(trained().folder, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    files = [f"/home/someone/corpus/part-{i}.txt" for i in range(20)]
    count = {"documents": 5_000, "sequences": 9_000, "tokens": 70_000}
    stated = {"licenses": ["CC-BY-SA-4.0"], "languages": ["no", "pt-BR"], "sources": ["owner/texts", "our crawl"]}
    record["data"]["training"] = [
        {"folder": "a", "share": 0.7, "sources": files, "num_sources": 64, "provenance": stated} | count,
        {"folder": "b", "share": 0.3, "sources": ["owner/texts"], "num_sources": 1} | count,
    ]
    (run / "run.json").write_text(json.dumps(record))
    export_huggingface(run, tmp_path / "model")
    text = (tmp_path / "model" / "README.md").read_text()
    assert "* 70.00% of the sequences: 5,000 documents, 70,000 tokens, from `part-0.txt`, " in text
    assert "`part-9.txt`, 54 more\n" in text
    assert "* 30.00% of the sequences: 5,000 documents, 70,000 tokens, from `owner/texts`\n" in text
    assert "someone" not in text
    assert (
        "* License: CC-BY-SA-4.0, unknown\n* Languages: no, pt-BR, unknown\n* Sources: owner/texts, our crawl, unknown\n"
        in text
    )
    card = ModelCard.load(tmp_path / "model" / "README.md").data
    assert (card.license, card.language, card.datasets) == (None, ["no", "pt-BR"], ["owner/texts"])


def test_card_tells_the_history_of_the_run(trained, tmp_path):
    """Three starts: from the weights of a base, with another learning rate, and one that a later one withdrew."""
    run = shutil.copytree(trained().folder, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    (first,) = record["starts"]
    first |= {"init_from": "/home/someone/base-model", "base_model": "base-model"}
    rates, begins = [0.003, 0.9, 0.001, 0.001], [0, 6, 4, 5]
    record["starts"] = [json.loads(json.dumps(first | {"from_step": step})) for step in begins]
    for start, rate in zip(record["starts"], rates, strict=True):
        start["recipe"]["optimization"]["learning_rate"] = rate
    record["starts"][-1]["recipe"]["data"]["license"] = "Our own licence 2.0"
    (run / "run.json").write_text(json.dumps(record))
    export_huggingface(run, tmp_path / "model")
    rows, text = rows_of(tmp_path / "model"), (tmp_path / "model" / "README.md").read_text()
    assert rows["highest learning rate"] == "0.003 (then 0.001 from step 4 on)"
    assert rows["started from"].startswith("the weights of `base-model`")
    assert "someone" not in text
    card = ModelCard.load(tmp_path / "model" / "README.md").data
    assert (card.base_model, card.license, card.license_name) == ("base-model", "other", "our-own-licence-2.0")


def test_a_model_of_which_little_is_known_has_no_empty_rows(saved, tmp_path):
    export_huggingface(saved / "padded", tmp_path / "model")
    rows, text = rows_of(tmp_path / "model"), (tmp_path / "model" / "README.md").read_text()
    assert all(value.strip() for value in rows.values())
    assert "None" not in text
    assert "Not known" in text


def test_code_in_the_readme_runs_as_written(encoder_folder):
    pytest.importorskip("sentence_transformers")
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    found: dict = {}
    exec(code.replace("my-model", str(encoder_folder)), found)
    assert all(word["sequence"].endswith("of the list.") for word in found["words"])
    assert found["classifier"].num_labels == 3
    assert found["embeddings"].shape == (2, 32)


@pytest.mark.process  # not one, but as long as many
@pytest.mark.parametrize("kind", ["exported", "encoder_folder"])
def test_code_in_the_card_runs_as_written(kind, request, capsys):
    if kind == "encoder_folder":
        pytest.importorskip("sentence_transformers")
    folder = request.getfixturevalue(kind)
    blocks = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    found = {}
    for block in blocks:
        assert FOLDER in block
        names: dict = {}
        exec(block.replace(FOLDER, str(folder)), names)
        found |= names
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert found["hidden"].shape[::2] == found["embeddings"].shape == (2, 32)
