"""Builds a dataset: python tools/build_dataset.py --input corpus/ --tokenizer my-tokenizer --output my-data"""

from mpnet_ds.command_line import Parser, run


def main() -> None:
    from mpnet_ds.data import build_dataset

    parser = Parser(
        "Turn text into token shards and a manifest, ready for pre-training.",
        "python tools/build_dataset.py --input corpus/ --tokenizer my-tokenizer --output my-data --holdout 0.01",
    )
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help=".txt, .jsonl, folders, or builtin-sample")
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="folder of the tokenizer")
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder for the dataset")
    parser.add_argument("--workers", type=int, metavar="N", help="threads that tokenise (default: all cores)")
    parser.add_argument("--text_field", default="text", metavar="NAME", help="field of a .jsonl line that holds the text")
    parser.add_argument("--holdout", type=float, default=0.0, metavar="F", help="share of documents for evaluation")
    arguments = parser.parse_args()
    built = build_dataset(
        arguments.input,
        arguments.tokenizer,
        arguments.output,
        workers=arguments.workers,
        text_field=arguments.text_field,
        holdout=arguments.holdout,
    )
    print(f"{built.documents:,} documents, {built.sequences:,} sequences, {built.tokens:,} tokens for training")


if __name__ == "__main__":
    run(main)
