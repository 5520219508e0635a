"""Which files of a folder are read, and what is said of the others."""

import gzip
from pathlib import Path

import pytest

from mpnet_ds.data.text.corpus import Corpus
from mpnet_ds.errors import UserError


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(gzip.compress(b"text") if name.endswith(".gz") else b"text")
    return folder


def read_of(folder: Path) -> list[str]:
    return [str(Path(source.path).relative_to(folder)) for source in Corpus([str(folder)]).sources]


def test_hidden_files_and_wastebaskets_are_passed_over_without_a_word(tmp_path):
    hidden = (
        ".git/a.txt",
        ".Trash-1000/files/a.txt",
        "__MACOSX/b.txt",
        "sub/.ipynb_checkpoints/c.txt",
        "._a.txt",
        ".b.jsonl",
    )
    make(tmp_path, "a.txt", "sub/d.txt", *hidden)
    assert read_of(tmp_path) == ["a.txt", "sub/d.txt"]
    assert not Corpus([str(tmp_path)]).passed_over.count


def test_a_hidden_folder_that_is_named_is_read(tmp_path):
    assert read_of(make(tmp_path / ".corpus", "a.txt")) == ["a.txt"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["notes.md"], "1 of unknown kind: {}/notes.md"),
        (["b.txt.lz4"], "1 of unknown kind: {}/b.txt.lz4"),
        ([f"{i}.html" for i in range(4)] + ["b.md"], "5 of unknown kind (4 .html, 1 .md): "),
        (["sub/dataset.json", "sub/x.txt"], "2 in folders with a dataset.json or tokenizer.json: {}/sub/"),
        (["a.txt.gz"], "1 compressed copies of files beside them: {}/a.txt.gz"),
        (["b.json"], "1 .json, which are read only if they are named or compressed: {}/b.json"),
        (["cache-0f.arrow"], "1 caches of the datasets library: {}/cache-0f.arrow"),
    ],
)
def test_other_files_that_are_passed_over_are_counted_and_named(tmp_path, names, said):
    make(tmp_path, "a.txt", *names)
    assert read_of(tmp_path) == ["a.txt"]
    assert said.format(tmp_path) in str(Corpus([str(tmp_path)]).passed_over)
    assert str(Corpus([str(tmp_path)]).passed_over).startswith(f"{len(names)} files passed over: ")


def test_a_pattern_takes_a_file_and_its_compressed_copy_once(tmp_path):
    make(tmp_path, "a.txt", "a.txt.gz", "b.txt.gz", "c.json.gz")
    corpus = Corpus([str(tmp_path / "*")])
    assert [Path(source.path).name for source in corpus.sources] == ["a.txt", "b.txt.gz", "c.json.gz"]
    assert corpus.passed_over.count == 1


def test_a_folder_without_text_says_what_it_holds_instead(tmp_path):
    with pytest.raises(UserError, match=r"no file that ends with .*2 files passed over: 2 of unknown kind: .*a\.md"):
        Corpus([str(make(tmp_path, "a.md", "b.md"))])
