"""Tools take names of the hub and runs' folders; without the hub, only its cache is used."""

import shutil

import huggingface_hub
import pytest
from huggingface_hub import constants

from mpnet_ds.errors import UserError
from mpnet_ds.hub.fill_mask import top_words
from mpnet_ds.hub.locate import locate_model, locate_tokenizer, model_name

COMMIT = "0123456789" * 4


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """``cache(name, folder)``: the hub's cache holds ``folder`` as ``name``; the hub itself is out of reach."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(name: str, folder):
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        return shutil.copytree(folder, repository / "snapshots" / COMMIT)

    return put


def test_a_tokenizer_comes_from_the_cache_of_the_hub_a_dataset_or_a_folder(cache, tokenizer_folder, dataset_folder):
    kept = cache("somebody/words", tokenizer_folder)
    assert locate_tokenizer("somebody/words") == kept
    assert locate_tokenizer(tokenizer_folder) == tokenizer_folder
    assert locate_tokenizer(dataset_folder) == dataset_folder / "tokenizer"


def test_a_cache_with_some_files_alone_is_used(cache, tokenizer_folder, tmp_path):
    (tmp_path / "part").mkdir()
    shutil.copy(tokenizer_folder / "tokenizer.json", tmp_path / "part")
    assert (locate_tokenizer(str(cache("words", tmp_path / "part"))) / "tokenizer.json").is_file()
    assert locate_tokenizer("words").name == COMMIT


@pytest.mark.parametrize("name", ["somebody/nothing", "nothing"])
@pytest.mark.parametrize("locate", [locate_model, locate_tokenizer])
def test_a_name_that_cannot_be_had_is_refused_in_one_line(cache, name, locate):
    with pytest.raises(
        UserError, match=rf"{name} is not a folder here, .* nor can it be downloaded \(HF_HUB_OFFLINE is set\)"
    ) as refusal:
        locate(name)
    assert "\n" not in str(refusal.value)


def test_a_path_is_never_asked_of_the_hub(cache, tmp_path):
    for path in (tmp_path / "gone", "./gone", "../gone", "a/b/c"):
        assert str(locate_model(path)) == str(path).removeprefix("./")


def test_a_model_is_named_as_the_hub_may_know_it(cache, tmp_path, monkeypatch):
    (tmp_path / "my model").mkdir()
    (tmp_path / "base-model").mkdir()
    cached = cache("somebody/words", tmp_path / "base-model")
    monkeypatch.chdir(tmp_path / "base-model")
    names = ["microsoft/mpnet-base", tmp_path / "base-model", ".", "../base-model/", cached, tmp_path / "my model"]
    assert [model_name(name) for name in names] == ["microsoft/mpnet-base", *["base-model"] * 3, "somebody/words", None]


def test_a_run_is_answered_with_the_command_that_exports_it(trained):
    run = trained()
    for folder in (run.folder, run.folder / "checkpoints", run.newest_checkpoint):
        with pytest.raises(UserError, match=rf"Export it first: .*convert.to.hf.* {folder} MODEL"):
            locate_model(folder)
        with pytest.raises(UserError, match="Export it first"):
            top_words(folder, "the <mask>")
    assert locate_tokenizer(run.folder) == run.folder / "tokenizer"


def test_words_for_a_mask_come_from_a_model_in_the_cache(cache, exported):
    cache("somebody/small", exported)
    assert top_words("somebody/small", "the <mask>") == top_words(exported, "the <mask>")


class Hub:
    """In the place of ``HfApi``: notes what it is asked for."""

    endpoint, asked = "https://hub", []

    def whoami(self) -> None:
        self.asked.append("whoami")

    def create_repo(self, name: str, **options) -> None:
        self.asked.append((name, options))

    def upload_folder(self, repo_id: str, folder_path: str, **_) -> None:
        self.asked.append((repo_id, sorted(path.name for path in folder_path.iterdir())))


def test_an_export_is_uploaded_once_it_is_complete(saved, tmp_path, monkeypatch, program):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "asked", [])
    said = program("convert_to_hf", saved / "bpe", tmp_path / "model", "--push_to_hub", "somebody/mine")
    assert "Uploaded to https://hub/somebody/mine" in said.out
    files = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert Hub.asked == ["whoami", ("somebody/mine", {"private": True, "exist_ok": True}), ("somebody/mine", files)]


def test_without_the_hub_or_with_a_bad_name_nothing_is_exported(cache, saved, tmp_path, program):
    for name in ("somebody/mine", "a/b/c", "some body"):
        with pytest.raises(UserError, match=f"--push_to_hub {name}: "):
            program("convert_to_hf", saved / "bpe", tmp_path / "model", "--push_to_hub", name)
    assert not (tmp_path / "model").exists()
