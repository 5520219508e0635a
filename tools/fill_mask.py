"""Shows what a model makes of masked sentences: python tools/fill_mask.py my-model "the <mask> of the list" """

from mpnet_ds.command_line import Parser, run


def main() -> None:
    from mpnet_ds.hub.fill_mask import EXAMPLES, top_words

    parser = Parser(
        "Print the most likely words for <mask>, with nothing but transformers.",
        'python tools/fill_mask.py my-model "return the <mask> of the list."',
    )
    parser.add_argument("model", help="Hugging Face folder of an MPNet model")
    parser.add_argument("sentences", nargs="*", default=EXAMPLES, help="each with one <mask>")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="words to show")
    arguments = parser.parse_args()
    for sentence in arguments.sentences:
        words = top_words(arguments.model, sentence, arguments.top)
        print(f"{sentence}\n    " + "   ".join(f"{word} {probability:.0%}" for word, probability in words))


if __name__ == "__main__":
    run(main)
