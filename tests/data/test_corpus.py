import json

import pytest

from mpnet_ds.data.corpus import Corpus
from mpnet_ds.errors import UserError


def texts(*inputs, **options):
    return [document.sequences for document in Corpus([str(name) for name in inputs], **options)]


def test_blank_lines_separate_the_documents_of_a_text_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n\none\ntwo \r\n \t\r\n\n  three\nfour")
    assert texts(path) == [("one", "two"), ("three", "four")]


def test_each_line_of_json_lines_is_a_document(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [{"text": "one\n\n  two\r\nthree"}, {"text": " \n "}, {"text": "four", "id": 7}]
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    assert texts(path) == [("one", "two", "three"), ("four",)]


def test_the_text_may_stand_in_another_field(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "no", "body": "yes"}')
    assert texts(path, text_field="body") == [("yes",)]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "two"}')
    assert texts(tmp_path / "a.txt", tmp_path / "b.jsonl") == [("one",), ("two",)]


def test_files_of_a_folder_come_sorted_and_inputs_as_given(tmp_path):
    for name in ("b/2.txt", "b/1.jsonl", "a/3.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}) if name.endswith("l") else name)
    (tmp_path / "b" / "notes.md").write_text("not text")
    assert texts(tmp_path) == [("a/3.txt",), ("b/1.jsonl",), ("b/2.txt",)]
    assert texts(tmp_path / "b", tmp_path / "a" / "3.txt") == [("b/1.jsonl",), ("b/2.txt",), ("a/3.txt",)]


def test_sources_record_path_and_size(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("three")
    corpus = Corpus([str(tmp_path)])
    assert [(source.path, source.num_bytes) for source in corpus.sources] == [
        (str(tmp_path / "a.txt"), 3),
        (str(tmp_path / "b.txt"), 5),
    ]
    assert corpus.num_bytes == 8


def test_the_bytes_of_the_documents_add_up_to_the_file(corpus_files):
    for path in (corpus_files.txt, corpus_files.jsonl):
        corpus = Corpus([path])
        assert sum(document.num_bytes for document in corpus) == corpus.num_bytes


def test_the_sample_is_english_prose_of_about_two_megabytes_beginning_with_the_first_file():
    documents = list(Corpus(["builtin-sample"]))
    assert 1e6 < sum(len(document.text) for document in documents) < 1e7
    assert sum(" the " in document.text for document in documents) > 1000
    assert all(line and "\n" not in line for document in documents for line in document.sequences)
    assert documents[0].sequences[0] == "Record of phased-in incompatible language changes."  # of __future__.py


def test_a_file_that_is_called_like_the_sample_is_read_as_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "builtin-sample.txt").write_text("my own text")
    assert texts("builtin-sample.txt") == [("my own text",)]


def test_unusual_line_breaks_split_both_kinds_of_file_alike(tmp_path):
    text = "one\x0ctwo\u2028three\x85four\x1dfive\rsix"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": text}))
    assert texts(tmp_path / "a.txt") == texts(tmp_path / "b.jsonl")


@pytest.mark.parametrize("name", ["nowhere.txt", "nowhere", "a.parquet", "empty_folder"])
def test_an_input_that_cannot_be_read_is_named_at_once(tmp_path, name):
    (tmp_path / "a.parquet").write_text("x")
    (tmp_path / "empty_folder").mkdir()
    with pytest.raises(UserError, match=name):
        Corpus([str(tmp_path / name)])


def test_no_input_is_refused():
    with pytest.raises(UserError, match="no input"):
        Corpus([])


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"\xffabc", r"byte 0 \(line 1\)"),
        (b"one\n\ntwo\nth\xe9ree\n", r"byte 11 \(line 4\)"),
        (b"\xef\xbb\xbfab\xff\n", r"byte 5 \(line 1\)"),
        (b"\xef\xbb\xbfab\ncd\xff\n", r"byte 8 \(line 2\)"),
    ],
)
def test_bytes_that_are_not_utf8_are_found_by_offset_and_line(tmp_path, content, place):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.txt: {place} is not UTF-8"):
        texts(path)


def test_bytes_that_are_not_utf8_are_found_in_json_too(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": "tw\xf6"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl: byte 28 \(line 2\) is not UTF-8"):
        texts(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', "line 3 is not JSON"),
        ('{"body": "x", "id": 3}', r"line 3 has no text in field 'text' \(found: body, id\)"),
        ('{"text": null}', "line 3 has no text in field 'text'"),
        ('{"text": "half a surrogate pair \\ud83d"}', "line 3"),
        ('["text"]', r"line 3 has no text in field 'text' \(found: list\)"),
    ],
)
def test_a_bad_line_of_json_is_named_with_its_number(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "fine"}}\n\n{line}\n{{"text": "fine"}}\n')
    with pytest.raises(UserError, match=rf"a\.jsonl, {message}"):
        texts(path)
