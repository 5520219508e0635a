"""Show what a model makes of masked sentences."""

from mpnet_ds.command_line import Parser, invocation


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(
        "Print the most likely words for <mask>, with nothing but transformers.",
        f'{invocation("fill_mask")} my-model "return the <mask> of the list."',
    )
    parser.add_argument("model", help="Hugging Face folder of an MPNet model, or a name of the hub")
    parser.add_argument("sentences", nargs="*", help="each with one <mask> (default: some examples)")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="words to show")
    return parser


def main() -> None:
    """Print each sentence and the words for its mask."""
    arguments = build_parser().parse_args()
    from mpnet_ds.hub.fill_mask import EXAMPLES, top_words

    for sentence in arguments.sentences or EXAMPLES:
        words = top_words(arguments.model, sentence, arguments.top)
        print(f"{sentence}\n    " + "   ".join(f"{word} {probability:.0%}" for word, probability in words))
