"""Looks into a dataset: python tools/inspect_dataset.py my-data --verify --show 0"""

from mpnet_ds.command_line import Parser, run


def main() -> None:
    from mpnet_ds.data import inspect

    parser = Parser(
        "Say what a dataset holds; check it; show a sample as the model sees it.",
        "python tools/inspect_dataset.py my-data --verify --show 0",
    )
    parser.add_argument("folder", metavar="DIR", help="dataset folder")
    parser.add_argument("--verify", action="store_true", help="read every file and compare its checksums")
    parser.add_argument("--show", type=int, metavar="I", help="print sample I with its predicted tokens")
    arguments = parser.parse_args()
    print(inspect.describe(arguments.folder))
    if arguments.verify:
        print(f"all {inspect.verify(arguments.folder):,} bytes are as the manifest says")
    if arguments.show is not None:
        print("\n" + inspect.show(arguments.folder, arguments.show))


if __name__ == "__main__":
    run(main)
