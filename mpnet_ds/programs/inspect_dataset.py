"""Inspect a dataset: its content, damage, and samples as the model sees them."""

from mpnet_ds.command_line import Parser, invocation


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(
        "Summarise a dataset; verify it (exit code 1 if it is damaged); show a sample as the model sees it.",
        f"{invocation('inspect_dataset')} my-data --verify --show 0",
    )
    parser.add_argument("folder", metavar="DIR", help="dataset folder")
    parser.add_argument("--verify", action="store_true", help="read every byte: checksums, structure, ids, document ends")
    parser.add_argument(
        "--count", action="store_true", help="add the counts of pieces that a dataset of an older build lacks"
    )
    parser.add_argument("--show", type=int, metavar="I", help="show sample I with its predicted tokens")
    parser.add_argument("--seq_length", type=int, default=128, metavar="N", help="tokens in a sample (default: 128)")
    return parser


def main() -> int:
    """Print what was asked for and return the exit code."""
    arguments = build_parser().parse_args()
    from mpnet_ds.data.samples.show import describe, show
    from mpnet_ds.data.storage.add_counts import add_piece_counts
    from mpnet_ds.data.storage.lengths import length_histogram
    from mpnet_ds.data.storage.verify import verify

    if arguments.count:
        print("\n".join([*add_piece_counts(arguments.folder), ""]))
    print(describe(arguments.folder))
    if arguments.verify:
        found = verify(arguments.folder)
        print("\n".join(["", *found.problems]))
        if found.problems:
            print(f"{len(found.problems)} problem(s): do not train on this dataset")
            return 1
        print(f"all {found.num_bytes:,} bytes are sound")
    print("\n" + length_histogram(arguments.folder))
    if arguments.show is not None:
        print("\n" + show(arguments.folder, arguments.show, arguments.seq_length))
    return 0
