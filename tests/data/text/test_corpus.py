"""Which documents each kind of source holds, and what happens where it cannot be read."""

import bz2
import gzip
import itertools
import json
import lzma
import os
import subprocess
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpnet_ds.data import ReadOptions
from mpnet_ds.data.text import builtin_sample
from mpnet_ds.data.text.corpus import Corpus, num_units, read
from mpnet_ds.data.text.folders import kind_of
from mpnet_ds.data.text.source import Faults, Source
from mpnet_ds.errors import UserError


def documents(*inputs, **reading):
    blocks = Corpus([str(name) for name in inputs], ReadOptions(**reading)).blocks()
    return [document for block in blocks for document in block.documents]


def write_csv(path, text='name,text\na,"one\n\ntwo, three"\nb,\nc,"say ""four"""\n'):
    path.write_text(text, newline="")
    return path


def test_blank_lines_separate_the_documents_of_a_text_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n\none\ntwo \r\n \t\r\n\n  three\nfour")
    assert documents(path) == [["one", "two"], ["three", "four"]]


def test_each_line_of_a_text_file_may_be_a_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\none\n  two \r\n\n\nthree")
    assert documents(path, txt_documents="line") == [["one"], ["two"], ["three"]]


def test_each_line_of_json_lines_is_a_document(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [{"text": "one\n\n  two\r\nthree"}, {"text": " \n "}, {"text": None}, {"text": "four", "id": 7}]
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    assert documents(path) == [["one", "two", "three"], [], [], ["four"]]


def test_a_quoted_field_of_csv_may_hold_lines_and_commas(tmp_path):
    assert documents(write_csv(tmp_path / "a.csv")) == [["one", "two, three"], [], ['say "four"']]


def test_tabs_separate_the_columns_of_tsv(tmp_path):
    assert documents(write_csv(tmp_path / "a.tsv", "id\ttext\n1\tone, two\n")) == [["one, two"]]


def test_parquet_gives_a_document_a_row_over_all_row_groups(tmp_path):
    texts = [f"document {i}\nsecond line" for i in range(10)]
    pq.write_table(pa.table({"id": range(10), "text": texts}), tmp_path / "a.parquet", row_group_size=3)
    assert documents(tmp_path / "a.parquet") == [[f"document {i}", "second line"] for i in range(10)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.arrow", "set"])
def test_no_text_is_an_empty_document_in_every_format(tmp_path, name):
    path, texts = tmp_path / name, [None, "", " ", "one"]
    if name == "a.jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    elif name == "a.csv":
        write_csv(path, 'text,n\n,1\n"",2\n" ",3\none,4\n')
    elif name == "a.parquet":
        pq.write_table(pa.table({"text": texts}), path)
    elif name == "a.arrow":
        write_arrow(path, pa.table({"text": texts}))
    else:
        datasets.Dataset.from_dict({"text": texts}).save_to_disk(path)
        assert documents(dataset=str(path), streaming=True) == [[], [], [], ["one"]]
        assert documents(dataset=str(path)) == [[], [], [], ["one"]]
        path = next(path.glob("*.arrow"))
    assert documents(path) == [[], [], [], ["one"]]


def write_arrow(path, table, batch_size=None, kind=pa.ipc.new_file):
    with kind(str(path), table.schema) as writer:
        writer.write_table(table, batch_size)
    return path


@pytest.mark.parametrize("kind", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_gives_a_document_a_row_over_all_record_batches(tmp_path, kind):
    path = write_arrow(tmp_path / "a.arrow", pa.table({"n": range(5), "text": list("abcde")}), 2, kind)
    assert documents(path) == [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert parts_of(path, [1, 2]) == (
        [[["a"], ["b"]], [["c"], ["d"]], [["e"]]] if kind is pa.ipc.new_file else [[["a"], ["b"], ["c"], ["d"], ["e"]]]
    )
    assert documents(compress(path, ".gz")) == [["a"], ["b"], ["c"], ["d"], ["e"]]


@pytest.fixture
def saved_set(tmp_path):
    data = datasets.Dataset.from_dict({"text": [f"row {i}\nmore" for i in range(30)], "n": range(30)})
    data.save_to_disk(tmp_path / "set")
    return str(tmp_path / "set")


def test_a_saved_set_of_the_datasets_library_is_a_source(saved_set):
    assert documents(dataset=saved_set) == [[f"row {i}", "more"] for i in range(30)]


def test_a_folder_that_the_datasets_library_knows_can_be_loaded_or_streamed(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "files").mkdir()
    for name in ("a", "b"):
        lines = (json.dumps({"text": f"{name}{i}"}) + "\n" for i in range(5))
        (tmp_path / "files" / f"{name}.jsonl").write_text("".join(lines))
    expected = [[f"{name}{i}"] for name in "ab" for i in range(5)]
    assert documents(dataset=str(tmp_path / "files"), streaming=True) == expected
    assert documents(dataset=str(tmp_path / "files")) == expected


def test_a_set_that_is_not_there_or_lacks_the_column_is_named(saved_set):
    with pytest.raises(UserError, match="--dataset /nowhere/at/all"):
        documents(dataset="/nowhere/at/all")
    with pytest.raises(UserError, match=r"no column 'txt'\. Did you mean 'text'"):
        documents(dataset=saved_set, text_field="txt")


def test_the_text_may_stand_in_another_field(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "no", "body": "yes"}')
    write_csv(tmp_path / "a.csv", "text,body\nno,yes\n")
    assert documents(tmp_path / "a.jsonl", tmp_path / "a.csv", text_field="body") == [["yes"], ["yes"]]


def compress(path, suffix):
    packed = path.with_name(path.name + suffix)
    packers = {".gz": gzip, ".bz2": bz2, ".xz": lzma}
    if suffix in packers:
        packed.write_bytes(packers[suffix].compress(path.read_bytes()))
    else:
        with pa.CompressedOutputStream(pa.OSFile(str(packed), "wb"), "zstd") as file:
            file.write(path.read_bytes())
    path.unlink()
    return packed


SUFFIXES = [".gz", ".zst", ".zstd", ".bz2", ".xz"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_compressed_files_hold_the_same_documents(tmp_path, suffix):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree")
    (tmp_path / "b.ndjson").write_text('{"text": "four"}\n')
    write_csv(tmp_path / "c.csv")
    pq.write_table(pa.table({"text": ["five", "six"]}), tmp_path / "d.parquet")
    plain = documents(tmp_path)
    for path in list(tmp_path.iterdir()):
        compress(path, suffix)
    assert documents(tmp_path) == plain
    assert len(plain) == 8


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_several_compressed_streams_in_one_file_are_read_to_the_end(tmp_path, suffix):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{name} one\n\n{name} two\n\n")
    parts = [compress(tmp_path / f"{name}.txt", suffix).read_bytes() for name in ("a", "b")]
    (tmp_path / f"both.txt{suffix}").write_bytes(b"".join(parts))
    assert documents(tmp_path / f"both.txt{suffix}") == [["a one"], ["a two"], ["b one"], ["b two"]]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.parquet"])
def test_a_compressed_file_that_is_cut_short_is_named(tmp_path, suffix, name):
    texts = [os.urandom(300).hex() for _ in range(50)]
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.table({"text": texts}), path)
    else:
        lines = [json.dumps({"text": text}) for text in texts] if name == "a.jsonl" else ["text", *texts]
        path.write_text("\n".join(lines))
    packed = compress(path, suffix)
    packed.write_bytes(packed.read_bytes()[:-2000])
    with pytest.raises(UserError, match=rf"{name}\{suffix} is .*Download it again"):
        documents(packed)


def test_what_can_be_read_of_a_damaged_file_is_kept_if_asked_for(tmp_path):
    texts = [os.urandom(300).hex() for _ in range(50)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    packed = compress(tmp_path / "a.txt", ".gz")
    packed.write_bytes(packed.read_bytes()[:-2000])
    found = documents(packed, on_error="skip")
    assert 10 < len(found) < 50
    assert found[:-1] == [[text] for text in texts[: len(found) - 1]]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "two"}')
    (tmp_path / "c.csv").write_bytes(b"\xef\xbb\xbftext\nthree\n")
    assert documents(tmp_path) == [["one"], ["two"], ["three"]]


def test_nor_is_one_where_a_file_was_appended_to_another(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\n' * 2)
    assert documents(tmp_path / "a.jsonl") == [["one"], ["one"]]


def test_a_damaged_file_is_said_to_be_lost_from_there_on(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\n") + b"garbage")
    with pytest.raises(UserError, match=r"a\.txt\.gz is damaged or truncated from byte 4 of its uncompressed text on"):
        documents(tmp_path / "a.txt.gz")


def test_a_fault_is_told_in_one_line_whatever_the_file_is_called(tmp_path):
    (tmp_path / "a\n\x1b[31m.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"/a\\n\\x1b\[31m\.jsonl: byte 0 \(line 1\): not JSON") as raised:
        documents(tmp_path)
    assert "\n" not in str(raised.value)


def test_files_of_a_folder_come_sorted_and_inputs_as_given(tmp_path):
    for name in ("b/2.txt", "b/1.jsonl", "a/3.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}) if name.endswith("l") else name)
    (tmp_path / "b" / "notes.md").write_text("not text")
    assert documents(tmp_path) == [["a/3.txt"], ["b/1.jsonl"], ["b/2.txt"]]
    assert documents(tmp_path / "b", tmp_path / "a" / "3.txt") == [["b/1.jsonl"], ["b/2.txt"], ["a/3.txt"]]
    assert documents(tmp_path / "*" / "*.txt") == documents(tmp_path / "**" / "*.txt") == [["a/3.txt"], ["b/2.txt"]]


def test_sources_record_path_size_and_time(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("three")
    corpus = Corpus([str(tmp_path)])
    found = [(source.path, source.num_bytes, source.modified) for source in corpus.sources]
    assert found == [(str(path), path.stat().st_size, path.stat().st_mtime) for path in sorted(tmp_path.iterdir())]
    assert corpus.num_bytes == 8


def test_the_bytes_of_the_blocks_add_up_to_the_file(corpus_files, tmp_path):
    (tmp_path / "copy.txt").write_text(corpus_files.documents[0] * 50)
    packed = compress(tmp_path / "copy.txt", ".gz")
    for path in (corpus_files.txt, corpus_files.jsonl, str(packed)):
        corpus = Corpus([path])
        assert sum(block.num_bytes for block in corpus.blocks()) == corpus.num_bytes


@pytest.mark.long
def test_the_whole_sample_is_english_prose_of_about_two_megabytes():
    found = documents("builtin-sample")
    assert found == builtin_sample.documents()
    assert 1e6 < sum(len(line) for document in found for line in document) < 1e7
    assert sum(" the " in "\n".join(document) for document in found) > 1000
    assert all(line and "\n" not in line for document in found for line in document)


def test_the_sample_begins_with_the_docstrings_of_the_first_module(monkeypatch):
    monkeypatch.setattr(builtin_sample, "documents", lambda: list(itertools.islice(builtin_sample.iterate(), 50)))
    found = documents("builtin-sample")
    assert len(found) == 50
    assert found[0][0] == "Record of phased-in incompatible language changes."  # of __future__.py
    assert all(line and "\n" not in line for document in found for line in document)


def test_the_beginning_of_the_sample_is_as_long_as_wanted():
    beginning = builtin_sample.beginning(5_000)
    every = itertools.chain.from_iterable(builtin_sample.iterate())
    assert beginning == list(itertools.islice(every, len(beginning)))
    assert 5_000 <= sum(map(len, beginning)) < 50_000


def test_a_file_that_is_called_like_the_sample_is_read_as_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "builtin-sample.txt").write_text("my own text")
    assert documents("builtin-sample.txt") == [["my own text"]]


def test_unusual_line_breaks_split_all_kinds_of_file_alike(tmp_path):
    text = "one\x0ctwo\u2028three\x85four\x1dfive\rsix"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": text}))
    write_csv(tmp_path / "c.csv", f'text\n"{text}"\n')
    assert documents(tmp_path / "a.txt") == documents(tmp_path / "b.jsonl") == documents(tmp_path / "c.csv")


@pytest.mark.parametrize("name", ["nowhere.txt", "nowhere", "a.doc", "a.parquet", "empty_folder", "no*match"])
def test_an_input_that_cannot_be_read_is_named_at_once(tmp_path, name):
    (tmp_path / "a.doc").write_text("x")
    (tmp_path / "a.parquet").write_text("x")
    (tmp_path / "empty_folder").mkdir()
    with pytest.raises(UserError, match=name.replace("*", r"\*")):
        Corpus([str(tmp_path / name)])


def test_no_input_is_refused():
    with pytest.raises(UserError, match="no input"):
        Corpus([])


def test_a_source_that_changes_while_it_is_read_is_noticed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo")
    corpus = Corpus([str(path)])
    path.write_text("one\n\nthree")
    with pytest.raises(UserError, match=r"a\.txt was changed"):
        list(corpus.blocks())


# Parts of a file.


def parts_of(path, cuts, **reading):
    options = ReadOptions(**reading)
    (source,) = Corpus([str(path)], options).sources
    edges = sorted({0, *(min(cut, num_units(source)) for cut in cuts), num_units(source)})
    return [
        [document for block in read(source, a, b, options, Faults()) for document in block.documents]
        for a, b in itertools.pairwise(edges)
    ]


lines = st.sampled_from(
    ["a", "b c", "", " \t", "\u3000", "longer line of text", "é", "\r", "\x1c", "a\r\rb", "a\r\r\nb\r\n"]
)


@given(
    st.lists(lines, max_size=30), st.lists(st.integers(0, 300), max_size=6), st.booleans(), st.sampled_from(["txt", "line"])
)
def test_parts_hold_each_document_once_wherever_a_file_is_cut(tmp_path_factory, content, cuts, ends, kind):
    path = tmp_path_factory.mktemp("parts") / "a.txt"
    path.write_bytes(("\n".join(content) + "\n" * ends).encode())
    reading = {"txt_documents": "line"} if kind == "line" else {}
    whole = documents(path, **reading)
    assert [document for part in parts_of(path, cuts, **reading) for document in part] == whole


@given(st.lists(st.text(max_size=20), max_size=20), st.lists(st.integers(0, 600), max_size=6))
def test_parts_of_json_lines_hold_each_line_once(tmp_path_factory, texts, cuts):
    path = tmp_path_factory.mktemp("parts") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text.encode("utf-8", "replace").decode()}) + "\n" for text in texts))
    assert [document for part in parts_of(path, cuts) for document in part] == documents(path)


def test_a_part_begins_where_its_bytes_do_not_at_the_files_begin(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n\nthree\n\nfour\n")
    assert parts_of(path, [6]) == [[["one"], ["two"]], [["three"], ["four"]]]


# What cannot be read.


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
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.txt: {place}: not UTF-8 .*--on_error"):
        documents(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_documents_with_such_bytes_are_left_out_or_repaired_on_request(tmp_path, name):
    texts = [b"one", b"tw\xf6 tw\xff", b"three"]
    joined = {
        "a.txt": b"\n\n".join(texts),
        "a.jsonl": b"\n".join(b'{"text": "%s"}' % text for text in texts),
        "a.csv": b"text\n" + b"\n".join(texts),
    }[name]
    (tmp_path / name).write_bytes(joined)
    assert documents(tmp_path / name, on_error="skip") == [["one"], ["three"]]
    assert documents(tmp_path / name, on_error="replace") == [["one"], ["tw\ufffd tw\ufffd"], ["three"]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', "not JSON"),
        ('{"body": "x", "id": 3}', r"no field 'text' \(found: body, id\)"),
        ('{"text": 7}', "field 'text' is 7, not text"),
        ('{"text": "a"}, ', r"not JSON: Extra data at column 14. Each line must hold one object: convert a list"),
        ('["text"]', r"a JSON list, not an object with the field 'text'. Each line must hold one object: convert a list"),
    ],
)
def test_a_bad_line_of_json_is_named_with_its_place_or_left_out(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "fine"}}\n\n{line}\n{{"text": "fine too"}}\n')
    for on_error in ("stop", "replace"):  # there is nothing to replace it by
        with pytest.raises(UserError, match=rf"a\.jsonl: byte 18 \(line 3\): {message}|a\.jsonl: byte 18: {message}"):
            documents(path, on_error=on_error)
    assert documents(path, on_error="skip") == [["fine"], ["fine too"]]


def test_half_a_surrogate_pair_is_not_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine \\ud83d\\ude00"}\n{"text": "half \\ud83d"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl: byte 0 .*half a surrogate pair"):
        documents(path)
    assert documents(path, on_error="skip") == [["fine 😀"]]
    assert documents(path, on_error="replace")[1][0].startswith("half \ufffd")


def test_a_nul_in_json_does_not_cost_a_document_its_place_beside_a_surrogate_pair(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\u0000b"}\n{"text": "\\ud83d\\ude00"}\n')
    assert documents(path) == [["a\0b"], ["😀"]]


def test_a_row_of_csv_without_the_column_is_named_or_left_out(tmp_path):
    path = write_csv(tmp_path / "a.csv", "id,text\n1,one\n2\n3,three\n")
    with pytest.raises(UserError, match=r"a\.csv: byte 14 \(line 3\): a row of 1 columns instead of 2"):
        documents(path)
    assert documents(path, on_error="skip") == [["one"], ["three"]]


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_missing_column_is_named_with_its_neighbour(tmp_path, name):
    write_csv(tmp_path / "a.csv", "id,texts\n1,one\n")
    pq.write_table(pa.table({"texts": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=rf"{name}: no column 'text'.*'texts'"):
        documents(tmp_path / name)


def test_a_column_of_numbers_is_no_text(tmp_path):
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column 'text' holds int64, not text"):
        documents(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("name", "cure"), [("a.txt", "--txt_documents line"), pytest.param("a.jsonl", "split it", marks=pytest.mark.long)]
)
def test_a_line_of_a_gigabyte_is_refused_in_little_memory(tmp_path, name, cure):
    with open(tmp_path / name, "wb") as file:  # a sparse file: no line end anywhere
        file.write(b'{"text": "one document"}\n' if name == "a.jsonl" else b"one document\n\n")
        file.truncate(1 << 30)
    with pytest.raises(UserError, match=rf"{name}: byte \d+ .*more than 64 MiB.*{cure}"):
        documents(tmp_path / name)
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)); import sys; {PROGRAM}"
    done = subprocess.run([os.sys.executable, "-c", limited, tmp_path / name], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[['one document']]\n", done.stderr


PROGRAM = """
from mpnet_ds.data import ReadOptions
from mpnet_ds.data.text.corpus import Corpus
print([d for b in Corpus([sys.argv[1]], ReadOptions(on_error="skip")).blocks() for d in b.documents])
"""


def test_a_text_file_without_blank_lines_is_refused_when_it_becomes_too_long_a_document(tmp_path, monkeypatch):
    monkeypatch.setattr("mpnet_ds.data.text.files.LONGEST_DOCUMENT", 1000)
    monkeypatch.setattr("mpnet_ds.data.text.files.CHUNK_BYTES", 100)
    (tmp_path / "a.txt").write_text("first\n\n" + "a line of text\n" * 100 + "\nlast\n")
    with pytest.raises(UserError, match=r"a\.txt: byte 0 .*if each line is a document, use --txt_documents line"):
        documents(tmp_path / "a.txt")
    assert documents(tmp_path / "a.txt", on_error="skip") == [["first"], ["last"]]


def test_options_that_do_not_exist_are_refused():
    for name in ("on_error", "txt_documents", "stdin_format"):
        with pytest.raises(UserError, match=f"--{name} is 'nonsense'"):
            ReadOptions(**{name: "nonsense"})


def test_a_source_of_a_kind_is_told_from_its_ending():
    assert Source("a", "txt", 1).is_divisible
    assert not Source("a", "txt", 1, compression="gz").is_divisible
    assert [kind_of(Path(name)) for name in ("a.json", "A.CSV.GZ", "a.gz", "a.doc")] == ["jsonl", "csv", None, None]


def test_a_document_that_lost_a_line_is_left_out_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("mpnet_ds.data.text.files.LONGEST_DOCUMENT", 1000)
    monkeypatch.setattr("mpnet_ds.data.text.files.CHUNK_BYTES", 100)
    (tmp_path / "a.txt").write_text("first\n\nhead\n" + "long " * 400 + "\ntail\n\nlast\n")
    assert documents(tmp_path / "a.txt", on_error="skip") == [["first"], ["last"]]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_utf16_is_not_taken_for_text(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("one\n\ntwo".encode(encoding))
    with pytest.raises(UserError, match=r"a\.txt: byte \d .*(not UTF-8|is it UTF-16)"):
        documents(tmp_path / "a.txt")


@pytest.mark.parametrize("text", ['id,text\n1,"no end\n2,two\n', "id,text\n1,one, and more\n", "id,text\n1\n"])
def test_csv_that_does_not_add_up_is_a_fault(tmp_path, text):
    path = write_csv(tmp_path / "a.csv", text)
    with pytest.raises(UserError, match=r"a\.csv: byte"):
        documents(path)


LINE_ENDS = {"CR": ["\r"], "CRLF": ["\r\n"], "twice converted": ["\r\r\n"], "mixed": ["\r", "\n", "\r\n"]}


@pytest.mark.parametrize("ends", LINE_ENDS.values(), ids=LINE_ENDS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.tsv", "line.txt", "a.txt.gz"])
def test_lines_may_end_with_cr_lf_or_both_in_any_mixture(tmp_path, name, ends):
    lines = {
        "a.jsonl": [json.dumps({"text": f"{i}{ends[0]}more"}) for i in range(6)],
        "a.csv": ["n,text", *(line for i in range(6) for line in (f'{i},"{i}', 'more"'))],
        "a.tsv": ["n\ttext", *(f"{i}\t{i}" for i in range(6))],
    }.get(name, [line for i in range(6) for line in (str(i), "more", "")])
    path = tmp_path / name
    path.write_text("".join(line + ends[i % len(ends)] for i, line in enumerate(lines)), newline="")
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    if name == "line.txt":
        assert documents(path, txt_documents="line") == [[line] for line in lines if line]
    else:
        assert documents(path) == [[str(i)] if name == "a.tsv" else [str(i), "more"] for i in range(6)]


def test_a_fault_is_found_behind_lines_that_end_with_cr(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\r{"text": "two"}\r\n\r{"text": "cut\r{"text": "four"}')
    with pytest.raises(UserError, match=r"byte 34 \(line 4\): not JSON"):
        documents(path)
    assert documents(path, on_error="skip") == [["one"], ["two"], ["four"]]


def test_a_text_of_parquet_that_is_no_utf8_is_left_out_or_repaired(tmp_path):
    column = pa.array([b"one", b"tw\xff", b"three"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet, row 1: a text is not UTF-8"):
        documents(tmp_path / "a.parquet")
    assert documents(tmp_path / "a.parquet", on_error="skip") == [["one"], ["three"]]
    assert documents(tmp_path / "a.parquet", on_error="replace") == [["one"], ["tw\ufffd"], ["three"]]


def test_a_file_is_not_taken_twice_under_two_names(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    for again in (tmp_path / "a.txt", tmp_path / "link.txt", tmp_path):
        with pytest.raises(UserError, match="given twice"):
            Corpus([str(tmp_path / "a.txt"), str(again)])


def test_linked_folders_are_entered_once(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.txt").write_text("one")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "linked").symlink_to(tmp_path / "far")
    (tmp_path / "near" / "loop").symlink_to(tmp_path / "near")
    assert documents(tmp_path / "near") == [["one"]]


def test_a_saved_set_can_be_streamed(saved_set):
    assert documents(dataset=saved_set, streaming=True) == [[f"row {i}", "more"] for i in range(30)]


@pytest.mark.parametrize("bad", ["b\xff", "b\\ud800"])
def test_the_first_fault_names_its_file(tmp_path, bad):
    (tmp_path / "good.jsonl").write_text('{"text": "fine"}\n')
    (tmp_path / "bad.jsonl").write_bytes(f'{{"text": "{bad}"}}\n'.encode("latin-1"))
    faults = Faults("skip")
    corpus = Corpus([str(tmp_path)], ReadOptions(on_error="skip"))
    assert [document for block in corpus.blocks(faults) for document in block.documents] == [["fine"]]
    assert faults.skipped == 1
    assert f"{tmp_path / 'bad.jsonl'}: " in faults.first


def test_a_source_that_is_written_anew_with_the_same_size_is_noticed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    corpus = Corpus([str(path)])
    os.utime(path, (1, 1))
    with pytest.raises(UserError, match=r"a\.txt was changed"):
        list(corpus.blocks())


def test_bad_bytes_are_found_in_a_document_that_reaches_far_beyond_them(tmp_path, monkeypatch):
    monkeypatch.setattr("mpnet_ds.data.text.files.CHUNK_BYTES", 50)
    (tmp_path / "a.txt").write_bytes(b"fine\n\nbad \xff\n" + b"a line of the same document\n" * 20 + b"\nfine too\n")
    assert documents(tmp_path / "a.txt", on_error="skip") == [["fine"], ["fine too"]]
