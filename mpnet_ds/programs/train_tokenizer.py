"""Train a WordPiece tokenizer on a corpus."""

from mpnet_ds.command_line import Parser, invocation
from mpnet_ds.data.text.arguments import add_reading_arguments, read_options


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(
        "Train a WordPiece tokenizer with MPNet's layout of special tokens.",
        f"{invocation('train_tokenizer')} --input corpus/ --vocab_size 30527 --output my-tokenizer",
    )
    add_reading_arguments(parser)
    parser.add_argument(
        "--vocab_size", type=int, required=True, metavar="N", help="size of the vocabulary, special tokens included"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder for the tokenizer")
    parser.add_argument("--cased", action="store_true", help="keep capital letters and accents")
    return parser


def main() -> None:
    """Train the tokenizer and print its size."""
    given = build_parser().parse_args()
    from mpnet_ds.data.builder.learn_tokenizer import train_tokenizer_on

    reading = read_options(given)
    tokenizer = train_tokenizer_on(given.input, given.vocab_size, given.output, reading, lower_case=not given.cased)
    print(f"{tokenizer.vocab_size:,} pieces in {given.output}, fingerprint {tokenizer.fingerprint[:12]}")
