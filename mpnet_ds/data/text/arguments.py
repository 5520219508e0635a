"""Flags of the tools that read a corpus."""

import argparse

from mpnet_ds.command_line import Parser
from mpnet_ds.data.text.source import ReadOptions


def add_reading_arguments(parser: Parser) -> None:
    """What the tools that read a corpus have in common: inputs, and the fields of ``ReadOptions``."""
    kinds = ".txt, .jsonl, .csv, .parquet (also .gz, .zst), folders, globs, - or builtin-sample"
    parser.add_argument("--input", nargs="+", default=[], metavar="PATH", help=kinds)
    parser.add_argument("--text_field", default="text", metavar="NAME", help="field or column that holds the text (text)")
    parser.add_argument(
        "--txt_documents", default="blank_line", metavar="blank_line|line", help="what separates documents of a .txt"
    )
    parser.add_argument("--on_error", default="stop", metavar="stop|skip|replace", help="at a document that cannot be read")
    parser.add_argument("--stdin_format", default="txt", metavar="txt|jsonl|csv|tsv", help="what --input - holds (txt)")
    parser.add_argument("--dataset", metavar="NAME|DIR", help="a set of the datasets library, as well or instead")
    parser.add_argument("--dataset_config", metavar="NAME", help="its configuration")
    parser.add_argument("--split", default="train", metavar="NAME", help="its split (train)")
    parser.add_argument("--streaming", action="store_true", help="read it over the network, without a download")


def read_options(arguments: argparse.Namespace):
    """What ``add_reading_arguments`` was given, as ``ReadOptions``."""
    return ReadOptions(**{name: getattr(arguments, name) for name in ReadOptions.__dataclass_fields__})
