"""Dialects of CSV: which are found, which can be named, and what a bad row costs."""

import csv
import io

import pytest

from mpnet_ds.data import ReadOptions
from mpnet_ds.data.text.corpus import Corpus
from mpnet_ds.data.text.source import Faults
from mpnet_ds.errors import UserError
from tests.data.text.test_corpus import documents


@pytest.fixture
def read(tmp_path):
    """A function (name, text, **options): the documents, a line each, and the number of rows that are lost."""

    def read_file(name, text, **options):
        (tmp_path / name).write_text(text, newline="")
        faults = Faults("skip")
        blocks = Corpus([str(tmp_path / name)], ReadOptions(on_error="skip", **options)).blocks(faults)
        return ["/".join(document) for block in blocks for document in block.documents], faults.skipped

    return read_file


FOUND = {
    "quotes mean nothing in .tsv": (
        "a.tsv",
        'n\ttext\n1\t"one,\n2\ttwo."\n3\t"three" is\n',
        ['"one,', 'two."', '"three" is'],
    ),
    "unless they hold lines": ("a.tsv", 'n\ttext\n1\t"one\ntwo"\n2\t"a ""b"""\n', ["one/two", 'a "b"']),
    "or the header is quoted": ("a.tsv", '"n"\t"text"\n1\t"one"\n', ["one"]),
    "semicolons": ("a.csv", 'n;text\n1;one, two\n2;"a;b"\n', ["one, two", "a;b"]),
    "bars": ("a.csv", "n|text\n1|one, two\n2|a;b\n", ["one, two", "a;b"]),
    "tabs in .csv": ("a.csv", "n\ttext\n1\tone, two\n", ["one, two"]),
    "backslashes": (
        "a.csv",
        'n,text\n1,"one ""two"" \\"three\\""\n2,"C:\\\\new"\n3,C:\\new\n',
        ['one "two" "three"', r"C:\new", r"C:\new"],
    ),
    "no escapes": ("a.csv", 'n,text\n1,"C:\\"\n2,"a ""b"""\n', ["C:\\", 'a "b"']),
    "blanks before quotes": ("a.csv", 'n, text\n1, "one, two"\n2, three\n', ["one, two", "three"]),
    "quotes inside a field": ("a.csv", 'n,text\n1,a 5" pipe of "x"\n', ['a 5" pipe of "x"']),
    "one column": ("a.csv", 'text\none, two\n"three, four"\n', ["one, two", "three, four"]),
    "a line for Excel": ("a.csv", "sep=;\nn;text\n1;one, two\n", ["one, two"]),
    "no line": ("a.csv", "\n\n", []),
}


@pytest.mark.parametrize("case", FOUND)
def test_the_dialect_is_found(read, case):
    name, text, expected = FOUND[case]
    assert read(name, text) == (expected, 0)


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ('n,text\n1,"one\n2,"two" is\n', {"csv_quotes": "none"}, ['"one', '"two" is']),
        ('n,text\n1,"a \\"b\\""\n', {"csv_quotes": "backslash"}, ['a "b"']),
        ("n^text\n1^one, two\n", {"csv_delimiter": "^"}, ["one, two"]),
        ("n\ttext\n1\tone, two\n", {"csv_delimiter": "tab"}, ["one, two"]),
        ("1;one, x\n2;two\n", {"csv_header": "none", "text_field": "2"}, ["one, x", "two"]),
    ],
)
def test_a_dialect_can_be_named(read, text, options, expected):
    assert read("a.csv", text, **options) == (expected, 0)


@pytest.mark.parametrize("chunk", [7, 40, 1 << 20])
@pytest.mark.parametrize(
    "bad", ['7,"no end', '7,"two" is a number', "7,one, two", "7", '7,"a\nb",c', '7,say "one, two" now'], ids=range(6)
)
def test_a_bad_row_is_counted_and_the_next_line_is_read(read, monkeypatch, chunk, bad):
    monkeypatch.setattr("mpnet_ds.data.text.files.CHUNK_BYTES", chunk)
    rows = [f'{number},"row, {number}\nmore"' for number in range(6)]
    found, lost = read("a.csv", "\n".join(["n,text", *rows[:3], bad, *rows[3:], ""]))
    assert [text for text in found if "row" in text] == [f"row, {number}/more" for number in range(6)]
    assert lost == 1


def test_a_bad_row_is_named_with_the_line_where_it_starts(tmp_path):
    (tmp_path / "a.csv").write_text('n,text\r\n1,"one\r\ntwo"\r\n2,"three" is\r\n', newline="")
    with pytest.raises(
        UserError, match=r"a\.csv: byte 22 \(line 4\): not CSV \(.* --csv_quotes none\) with --csv_delimiter ','"
    ):
        documents(tmp_path / "a.csv")


def test_a_quote_that_is_never_closed_costs_little_time(read, monkeypatch):
    monkeypatch.setattr("mpnet_ds.data.text.csv_rows.LONGEST_DOCUMENT", 10_000)
    monkeypatch.setattr("mpnet_ds.data.text.files.CHUNK_BYTES", 3_000)
    rows = [f"{number},row {number}\n" for number in range(20_000)]
    assert read("a.csv", "n,text\n" + "".join(rows[:10_000]) + '7,"no end\n' + "".join(rows[10_000:]))[1] == 1


def test_what_the_csv_module_writes_is_read(read):
    texts = [f'"{i}", {"x" * (i % 7)}\n"\n' + '"' * (i % 3) for i in range(500)]
    for delimiter in ",;|\t":
        written = io.StringIO(newline="")
        csv.writer(written, delimiter=delimiter).writerows([["n", "text"], *enumerate(texts)])
        expected = ["/".join(filter(None, map(str.strip, text.split("\n")))) for text in texts]
        assert read("a.csv", written.getvalue()) == (expected, 0)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("1,one\n2,two\n", {}, r"no column 'text' in the first line \(--csv_delimiter ','.*--csv_header none"),
        ("1,one\n", {"csv_header": "none"}, r"--text_field is the number of the column, 1 to 2, not 'text'"),
        ("1,one\n", {"csv_delimiter": "||"}, r"--csv_delimiter is '\|\|'; it must be one character"),
        ("1,one\n", {"csv_quotes": "single"}, r"--csv_quotes is 'single'; it must be one of auto, doubled"),
        ("1,one\n", {"csv_header": "no"}, r"--csv_header is 'no'; it must be one of first_line, none"),
    ],
)
def test_what_cannot_be_found_is_asked_for(read, text, options, message):
    with pytest.raises(UserError, match=message):
        read("a.csv", text, **options)
