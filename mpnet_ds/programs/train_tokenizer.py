"""Train a tokenizer on a corpus."""

from mpnet_ds.command_line import Parser, invocation, size
from mpnet_ds.data.text.arguments import add_reading_arguments, read_options
from mpnet_ds.tokenizer_layouts import ALGORITHMS, LAYOUTS, MPNET


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(
        "Train a tokenizer with the special tokens of a family of models: MPNet's, by default.",
        f"{invocation('train_tokenizer')} --input corpus/ --vocab_size 30527 --output my-tokenizer",
    )
    add_reading_arguments(parser)
    parser.add_argument(
        "--vocab_size", type=int, required=True, metavar="N", help="size of the vocabulary, special tokens included"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder for the tokenizer")
    add = parser.add_argument
    add("--layout", default=MPNET.name, metavar="NAME", help=f"special tokens: {', '.join(LAYOUTS)} (default: mpnet)")
    add("--algorithm", metavar="NAME", help=f"{', '.join(ALGORITHMS)} (default: the layout's usual one)")
    add("--cased", action="store_true", help="keep capital letters and accents, which BPE and Unigram always do")
    add("--keep_accents", action="store_true", help="keep accents and other marks in lower case")
    add("--character_coverage", type=float, metavar="F", help="share of the text's characters with pieces (0.9995)")
    add(
        "--sample",
        type=size,
        metavar="SIZE",
        help="learn from about SIZE of the text (default: 256MB, Unigram 64MB, less for long words)",
    )
    add("--seed", type=int, metavar="N", help="which documents are sampled (default: 0)")
    return parser


def main() -> None:
    """Train the tokenizer and print its size."""
    given = build_parser().parse_args()
    from mpnet_ds.data.builder.learn_tokenizer import train_tokenizer_on
    from mpnet_ds.data.text.corpus import check_inputs
    from mpnet_ds.errors import each_of
    from mpnet_ds.files import refuse_existing
    from mpnet_ds.tokenizer_training import check_settings

    optional = {name: getattr(given, name) for name in ("character_coverage", "sample", "seed")}
    settings = {name: value for name, value in optional.items() if value is not None}
    settings |= {"lower_case": not given.cased, "keep_accents": given.keep_accents}
    settings |= {"layout": given.layout, "algorithm": given.algorithm}
    reading, *_ = each_of(
        lambda: read_options(given),
        lambda: check_settings(given.vocab_size, given.character_coverage, given.layout, given.algorithm),
        lambda: check_inputs(given.input),
        lambda: refuse_existing(given.output),
    )
    tokenizer = train_tokenizer_on(given.input, given.vocab_size, given.output, reading, **settings)
    print(f"{tokenizer.vocab_size:,} pieces in {given.output}, fingerprint {tokenizer.fingerprint[:12]}")
