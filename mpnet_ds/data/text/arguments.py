"""Flags of the programs that read a corpus."""

import argparse

from mpnet_ds.command_line import Parser
from mpnet_ds.data.text.source import ReadOptions


def add_reading_arguments(parser: Parser) -> None:
    """Add the inputs, and a flag for each field of ``ReadOptions``."""
    kinds = ".txt, .jsonl, .csv, .tsv, .parquet, .arrow (also .gz, .bz2, .xz, .zst), folders, globs, - or builtin-sample"
    add = parser.add_argument
    add("--input", nargs="+", default=[], metavar="PATH", help=kinds)
    add("--text_field", default="text", metavar="NAME", help="field or column with the text (default: text)")
    add("--txt_documents", default="blank_line", metavar="blank_line|line", help="what separates documents in a .txt file")
    add("--on_error", default="stop", metavar="stop|skip|replace", help="if a document cannot be read")
    add("--csv_delimiter", default="auto", metavar="CHARACTER", help="between columns, as ';' or tab (default: auto)")
    add("--csv_quotes", default="auto", metavar="doubled|backslash|none", help="what quotes mean in CSV (default: auto)")
    add("--csv_header", default="first_line", metavar="first_line|none", help="none: --text_field is a column's number")
    add("--stdin_format", default="txt", metavar="txt|jsonl|csv|tsv", help="format of --input - (default: txt)")
    add("--dataset", metavar="NAME|DIR", help="dataset of the datasets library, read after --input")
    add("--dataset_config", metavar="NAME", help="configuration of --dataset")
    add("--split", default="train", metavar="NAME", help="split of --dataset (default: train)")
    add("--streaming", action="store_true", help="read --dataset over the network without downloading it")


def read_options(arguments: argparse.Namespace) -> ReadOptions:
    """Return what ``add_reading_arguments`` parsed as ``ReadOptions``."""
    given = vars(arguments)
    return ReadOptions(**{name: given[name] for name in ReadOptions.__dataclass_fields__ if name in given})
