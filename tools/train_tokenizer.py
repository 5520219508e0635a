"""Trains a WordPiece tokenizer: python tools/train_tokenizer.py --input corpus/ --vocab_size 30527 --output my-tokenizer"""

from mpnet_ds.command_line import Parser, run
from mpnet_ds.data.text.arguments import add_reading_arguments, reading_of


def main() -> None:
    from mpnet_ds.data.builder.learn_tokenizer import train_tokenizer_on

    parser = Parser(
        "Train a WordPiece tokenizer with MPNet's layout of special tokens.",
        "python tools/train_tokenizer.py --input corpus/ --vocab_size 30527 --output my-tokenizer",
    )
    add_reading_arguments(parser)
    parser.add_argument("--vocab_size", type=int, required=True, metavar="N", help="pieces and special tokens together")
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder for the tokenizer")
    parser.add_argument("--cased", action="store_true", help="keep capital letters and accents")
    given = parser.parse_args()
    reading = reading_of(given)
    tokenizer = train_tokenizer_on(given.input, given.vocab_size, given.output, reading, lower_case=not given.cased)
    print(f"{tokenizer.vocab_size:,} pieces in {given.output}, fingerprint {tokenizer.fingerprint[:12]}")


if __name__ == "__main__":
    run(main)
