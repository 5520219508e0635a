"""Import token files of Megatron-LM or fairseq."""

from mpnet_ds.command_line import Parser, invocation
from mpnet_ds.data.storage.provenance import add_provenance_arguments, provenance_of


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(
        "Import token files of Megatron-LM (gpt-neox, NeMo) or fairseq (mmap), pairs of .idx and .bin, as a dataset.",
        f"{invocation('import_dataset')} --input data-bin/train --tokenizer my-tokenizer --output my-data",
    )
    parser.add_argument("--input", nargs="+", required=True, metavar="PREFIX", help="paths without suffix, or patterns")
    parser.add_argument("--tokenizer", required=True, metavar="DIR|NAME", help="folder of the tokenizer that made the ids")
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder for the dataset")
    parser.add_argument(
        "--end_of_document", type=int, metavar="ID", help="id that ends a document (default: the tokenizer's)"
    )
    add_provenance_arguments(parser)
    return parser


def main() -> None:
    """Import the files and print the size of the dataset."""
    arguments = build_parser().parse_args()
    from mpnet_ds.data.builder.import_indexed import find_prefixes, import_dataset
    from mpnet_ds.errors import each_of
    from mpnet_ds.files import refuse_existing
    from mpnet_ds.hub.locate import locate_tokenizer

    tokenizer, stated, *_ = each_of(
        lambda: locate_tokenizer(arguments.tokenizer),
        lambda: provenance_of(arguments),
        lambda: find_prefixes(arguments.input),
        lambda: refuse_existing(arguments.output),
    )
    what = (arguments.input, tokenizer, arguments.output, arguments.end_of_document)
    made = import_dataset(*what, provenance=stated)
    print(made.counted)
    for remark in made.remarks:
        print(f"Warning: {remark}")
