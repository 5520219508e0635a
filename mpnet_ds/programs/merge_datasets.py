"""Make one dataset of several."""

from mpnet_ds.command_line import Parser, invocation, run


def build_parser() -> Parser:
    """The parser of the command line."""
    parser = Parser(
        "Make one dataset of several of the same tokenizer, or of the parts that build_dataset.py --part wrote.",
        f"{invocation('merge_datasets')} january february --output year",
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="dataset folders, in the order that they shall have")
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder, or the one that holds just the parts")
    parser.add_argument("--copy", action="store_true", help="copy the shards (otherwise: refer to them where they are)")
    parser.add_argument(
        "--partial_holdout", action="store_true", help="take the holdouts that there are, though some datasets have none"
    )
    return parser


def main() -> None:
    """Merge the datasets and say what came of it."""
    arguments = build_parser().parse_args()
    from mpnet_ds.data.builder.merge import merge_datasets

    merged = merge_datasets(arguments.folders, arguments.output, arguments.copy, arguments.partial_holdout)
    print(f"{len(merged.shards):,} shard(s), {merged.documents:,} documents, {merged.tokens:,} tokens")


if __name__ == "__main__":
    run(main)
