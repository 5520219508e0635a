"""Trains a WordPiece tokenizer: python tools/train_tokenizer.py --input corpus/ --vocab_size 30527 --output my-tokenizer"""

from mpnet_ds.command_line import Parser, run


def main() -> None:
    from mpnet_ds.data.build import train_tokenizer_on

    parser = Parser(
        "Train a WordPiece tokenizer with MPNet's layout of special tokens.",
        "python tools/train_tokenizer.py --input corpus/ --vocab_size 30527 --output my-tokenizer",
    )
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help=".txt, .jsonl, folders, or builtin-sample")
    parser.add_argument("--vocab_size", type=int, required=True, metavar="N", help="pieces and special tokens together")
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder for the tokenizer")
    parser.add_argument("--text_field", default="text", metavar="NAME", help="field of a .jsonl line that holds the text")
    parser.add_argument("--cased", action="store_true", help="keep capital letters and accents")
    arguments = parser.parse_args()
    tokenizer = train_tokenizer_on(
        arguments.input, arguments.vocab_size, arguments.output, arguments.text_field, lower_case=not arguments.cased
    )
    print(f"{tokenizer.vocab_size:,} pieces in {arguments.output}, fingerprint {tokenizer.fingerprint[:12]}")


if __name__ == "__main__":
    run(main)
