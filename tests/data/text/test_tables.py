"""Arrow types that hold text, and foreign readers that give up."""

import itertools
import re

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from mpnet_ds.data import ReadOptions
from mpnet_ds.data.text.corpus import Corpus
from mpnet_ds.data.text.source import Faults
from mpnet_ds.errors import UserError
from tests.data.text.test_corpus import documents, write_arrow

TEXTS = ["one", None, "two"]
BYTES = [b"one", None, b"two"]
HOLD_TEXT = {
    "string_view": pa.array(TEXTS, pa.string_view()),
    "large_string": pa.array(TEXTS, pa.large_string()),
    "binary": pa.array(BYTES),
    "large_binary": pa.array(BYTES, pa.large_binary()),
    "dictionary": pa.array(TEXTS).dictionary_encode(),
    "json": pa.array(TEXTS, pa.json_()),
    "run ends": pc.run_end_encode(pa.array(TEXTS)),
    "struct": pa.array([{"text": "one", "n": 1}, None, {"text": "two", "n": 2}]),
    "structs": pa.array([{"body": {"text": text}} for text in TEXTS]),
}


@pytest.mark.parametrize("kind", HOLD_TEXT)
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_text_may_have_any_type_that_holds_it(tmp_path, name, kind):
    if (name, kind) == ("a.parquet", "run ends"):
        pytest.skip("parquet has no such type")
    table = pa.table({"id": range(3), "text": HOLD_TEXT[kind]})
    pq.write_table(table, tmp_path / name) if name == "a.parquet" else write_arrow(tmp_path / name, table)
    field = {"struct": "text.text", "structs": "text.body.text"}.get(kind, "text")
    assert documents(tmp_path / name, text_field=field) == [["one"], [], ["two"]]


def test_a_column_of_nulls_is_empty_documents(tmp_path):
    assert documents(write_arrow(tmp_path / "a.arrow", pa.table({"text": pa.nulls(2)}))) == [[], []]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([["one"]]), "column 'text' holds list<item: string>, not text"),
        (pa.array([{"body": "one"}]), "column 'text' holds struct<body: string>, not text.* as text.body"),
        (pa.array([b"a" * 16], pa.uuid()), "column 'text' holds extension<arrow.uuid>, not text"),
    ],
)
def test_a_column_of_another_type_is_named(tmp_path, column, message):
    with pytest.raises(UserError, match=message):
        documents(write_arrow(tmp_path / "a.arrow", pa.table({"text": column})))


def test_fields_of_objects_in_json_are_named_as_those_of_structs(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"meta": {"text": "one"}}\n{"meta": null}\n{"meta.text": "two"}\n')
    assert documents(tmp_path / "a.jsonl", text_field="meta.text") == [["one"], [], ["two"]]
    with pytest.raises(UserError, match=r"no field 'meta\.body' \(found: meta\)"):
        documents(tmp_path / "a.jsonl", text_field="meta.body")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.csv"])
def test_two_columns_of_the_wanted_name_are_refused(tmp_path, name):
    table = pa.Table.from_arrays([pa.array([text]) for text in ("one", "two", "three")], names=["text", "text", "other"])
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    elif name == "a.arrow":
        write_arrow(tmp_path / name, table)
    else:
        (tmp_path / name).write_text("text,text,other\none,two,three\n")
    assert documents(tmp_path / name, text_field="other") == [["three"]]
    with pytest.raises(UserError, match="several columns are called 'text'"):
        documents(tmp_path / name)


# Foreign readers that give up.


def read(path=None, **reading):
    """Documents of a source with ``--on_error skip``, and the faults; with ``stop`` the same fault ends the reading."""
    faults = Faults("skip")
    inputs = [str(path)] if path else []
    found = [d for block in Corpus(inputs, ReadOptions(on_error="skip", **reading)).blocks(faults) for d in block.documents]
    with pytest.raises(UserError, match=re.escape(faults.first)):
        documents(*inputs, **reading)
    return found, faults


@pytest.fixture
def streamed(tmp_path, monkeypatch):
    """A function (files): a folder that the datasets library streams."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def make(files):
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        return str(tmp_path)

    return make


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("b.jsonl", b'{"text": "cut\n', r"cannot be read .*JSON parse error"),
        ("b.jsonl", b'{"text": "tw\xff"}\n', r"row 0: a text is not UTF-8"),
        ("b.jsonl", b'{"body": "two"}\n', r"cannot be read .*column names don't match"),
        ("b.jsonl.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\0abc", r"damaged or truncated"),
    ],
)
def test_what_a_streamed_set_raises_is_a_fault_of_a_shard_and_a_row(streamed, name, content, message):
    folder = streamed({"a.jsonl": b'{"text": "one"}\n', name: content, "c.jsonl": b'{"text": "three"}\n'})
    found, faults = read(dataset=folder, streaming=True)
    assert found == [["one"], ["three"]]
    assert faults.skipped == 1
    assert re.match(rf"{folder}, shard 1 of 3 \({folder}/{name}\).* row 0", faults.first)
    assert re.search(message, faults.first)


def test_a_fault_in_generated_rows_names_the_row(monkeypatch):
    def rows():
        yield from ({"text": str(number)} for number in range(2048))
        raise RuntimeError("no more")

    data = datasets.IterableDataset.from_generator(rows)
    monkeypatch.setattr("mpnet_ds.data.text.tables._load_dataset", lambda *_: data)
    found, faults = read(dataset="mine", streaming=True)
    assert len(found) == 2048
    assert faults.first == "mine, shard 0 of 1 cannot be read from row 2048 on (RuntimeError: no more)."


def damaged(path, at, replacement=b"\xff" * 8):
    content = bytearray(path.read_bytes())
    content[at : at + len(replacement)] = replacement
    path.write_bytes(content)
    return path


def test_a_damaged_row_group_costs_its_rows_and_no_others(tmp_path):
    table = pa.table({"text": [f"{i} " * 50 for i in range(30)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10, use_dictionary=False, write_page_checksum=True)
    group = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(0)
    found, faults = read(damaged(tmp_path / "a.parquet", group.data_page_offset + group.total_compressed_size - 20))
    assert len(found) == 20
    assert faults.skipped == 10
    assert "a.parquet is damaged or truncated in rows 10 to 19" in faults.first


@pytest.mark.parametrize("kind", [pa.ipc.new_file, pa.ipc.new_stream])
def test_a_damaged_record_batch_is_named_and_does_not_end_the_process(tmp_path, kind):
    texts = [f"<{number:03}>" * 100 for number in range(30)]
    path = write_arrow(tmp_path / "a.arrow", pa.table({"text": texts}), 10, kind)
    offsets = path.read_bytes().index(texts[10].encode()) - 64  # 11 offsets of the second batch, padded
    found, faults = read(damaged(path, offsets + 16, b"\xff\xff\xff\x7f"))
    assert found[:10] == [[text] for text in texts[:10]]
    assert "damaged or truncated from row" in faults.first
    assert len(found) == (20 if kind is pa.ipc.new_file else 10)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_table_that_cannot_be_opened_is_left_out_on_request(tmp_path, name):
    (tmp_path / name).write_bytes(b"ARROW1 and no more")
    (tmp_path / "b.txt").write_text("two")
    found, faults = read(tmp_path)
    assert found == [["two"]]
    assert re.match(rf"{tmp_path / name} is damaged or truncated .*Download it again", faults.first)


def zstd_frame(text: bytes, window_log: int) -> bytes:
    """A zstd frame of one raw block (RFC 8878), as ``zstd --long`` writes it for large windows."""
    header = bytes([0, (window_log - 10) << 3])
    return b"\x28\xb5\x2f\xfd" + header + ((len(text) << 3) | 1).to_bytes(3, "little") + text


@pytest.mark.parametrize("name", ["a.txt.zst", "a.jsonl.zst", "a.csv.zst", "a.parquet.zst"])
def test_a_window_that_the_decoder_refuses_is_not_called_damage(tmp_path, name):
    (tmp_path / name).write_bytes(zstd_frame(b"one\n", 31))
    _, faults = read(tmp_path / name)
    assert re.search(
        r"cannot be decoded here.* need not be damage .*decompress it first \(zstd -d --long=31\)", faults.first
    )
    (tmp_path / "b.txt.zst").write_bytes(zstd_frame(b"one\n", 20))
    assert documents(tmp_path / "b.txt.zst") == [["one"]]


def test_parts_of_an_arrow_file_are_record_batches(tmp_path):
    path = write_arrow(tmp_path / "a.arrow", pa.table({"text": list("abcdefg")}), 2)
    (source,) = Corpus([str(path)]).sources
    assert source.units == 4
    assert list(itertools.chain.from_iterable(documents(path))) == list("abcdefg")
