"""Looks into a dataset: python tools/inspect_dataset.py my-data --verify --show 0"""

import sys

from mpnet_ds.command_line import Parser, run


def main() -> int:
    from mpnet_ds.data.samples.show import describe, show
    from mpnet_ds.data.storage.lengths import draw_lengths
    from mpnet_ds.data.storage.verify import verify

    parser = Parser(
        "Say what a dataset holds; check it (exit code 1 where it is damaged); show a sample as the model sees it.",
        "python tools/inspect_dataset.py my-data --verify --show 0",
    )
    parser.add_argument("folder", metavar="DIR", help="dataset folder")
    parser.add_argument("--verify", action="store_true", help="read every byte: checksums, structure, ids, document ends")
    parser.add_argument("--show", type=int, metavar="I", help="print sample I with its predicted tokens")
    parser.add_argument("--seq_length", type=int, default=128, metavar="N", help="tokens in a sample (default: 128)")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # a piece that the terminal cannot show is no reason to stop
    print(describe(arguments.folder))
    if arguments.verify:
        found = verify(arguments.folder)
        print("\n".join(["", *found.problems]))
        if found.problems:
            print(f"{len(found.problems)} problem(s): do not train on this dataset")
            return 1
        print(f"all {found.num_bytes:,} bytes are as they should be")
    print("\n" + draw_lengths(arguments.folder))
    if arguments.show is not None:
        print("\n" + show(arguments.folder, arguments.show, arguments.seq_length))
    return 0


if __name__ == "__main__":
    run(main)
