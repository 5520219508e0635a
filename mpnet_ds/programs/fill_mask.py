"""Show what a model makes of masked sentences."""

import sys

from mpnet_ds.command_line import Parser, invocation


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(
        "Print the most likely words for <mask>, with nothing but transformers.",
        f'{invocation("fill_mask")} my-model "return the <mask> of the list."',
    )
    parser.add_argument("model", help="Hugging Face folder of an MPNet model, or a name of the hub")
    what = "each with one <mask> (default: lines of standard input where it is not a terminal, else some examples)"
    parser.add_argument("sentences", nargs="*", help=what)
    parser.add_argument("--top", type=int, default=5, metavar="N", help="words to show")
    return parser


def main() -> None:
    """Print each sentence and the words for its mask."""
    arguments = build_parser().parse_args()
    from mpnet_ds.hub.fill_mask import EXAMPLES, top_words

    read = [] if arguments.sentences or sys.stdin is None or sys.stdin.isatty() else sys.stdin.read().splitlines()
    for sentence in arguments.sentences or list(filter(str.strip, read)) or EXAMPLES:
        words = top_words(arguments.model, sentence, arguments.top)
        print(f"{sentence}\n    " + "   ".join(f"{word} {probability:.0%}" for word, probability in words))
