"""Merge several datasets into one."""

from mpnet_ds.command_line import Parser, invocation


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(
        "Merge datasets of the same tokenizer, or the parts that build_dataset.py --part wrote, into one.",
        f"{invocation('merge_datasets')} january february --output year",
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="dataset folders, in the order of the result")
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder, or the one that holds only the parts")
    parser.add_argument("--copy", action="store_true", help="copy the shards (default: refer to them)")
    parser.add_argument(
        "--partial_holdout", action="store_true", help="accept datasets without a holdout beside others that have one"
    )
    return parser


def main() -> None:
    """Merge the datasets and print the size of the result."""
    arguments = build_parser().parse_args()
    from mpnet_ds.data.builder.merge import merge_datasets

    merged = merge_datasets(arguments.folders, arguments.output, arguments.copy, arguments.partial_holdout)
    print(f"{len(merged.shards):,} shard(s), {merged.documents:,} documents, {merged.tokens:,} tokens")
