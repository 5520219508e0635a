"""Make a start for --init_from of a Hugging Face folder or a fairseq file."""

import json

from mpnet_ds.command_line import Parser, invocation

DESCRIPTION = """\
Make of any MPNet model a complete Hugging Face folder that --init_from takes, and check it.

--resize_vocabulary gives each piece of the new tokenizer a row by the first rule that applies: special tokens by what
they do; pieces that both have keep their row; other pieces get the mean of the rows of the old pieces that the old tokenizer
cuts them into (## pieces: cut as a continuation); where it cuts into the unknown piece, the mean of all ordinary rows."""


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(DESCRIPTION, f"{invocation('convert_from_hf')} all-mpnet-base-v2 my-start", intermixed=True)
    parser.add_argument(
        "hf_dir", nargs="?", metavar="HF_DIR", help="folder, or name in the hub, of an MPNet model of any head"
    )
    parser.add_argument("output", metavar="OUT", help="new folder")
    parser.add_argument("--from_fairseq", metavar="FILE", help="instead: .pt of the original MPNet or of annotated-mpnet")
    parser.add_argument("--tokenizer", metavar="DIR", help="the vocabulary of a source that brings none, as fairseq's files")
    parser.add_argument(
        "--resize_vocabulary", metavar="TOKENIZER_DIR", help="give the model this tokenizer; rule: see above"
    )
    return parser


def main() -> None:
    """Write the folder and say how to train on from it."""
    parser = build_parser()
    given = parser.parse_args()
    if (given.hf_dir is None) == (given.from_fairseq is None):
        parser.exit_for(["give one source and OUT: HF_DIR OUT, or --from_fairseq FILE OUT"])
    from mpnet_ds.hub.import_model import make_start
    from mpnet_ds.objectives.model_section import MPNetSection

    start = make_start(given.output, given.hf_dir, given.from_fairseq, given.tokenizer, given.resize_vocabulary)
    for note in start.notes:
        print(f"note: {note}")
    print(f"{given.output} loads with transformers, and what was kept is as it was, bit for bit; largest difference of a")
    print(f"hidden state {start.difference:.1e}. Its recipe needs this section:")
    print(f'  "model": {json.dumps(MPNetSection.of(start.config).configuration())}')
    print("Continue training it:")
    what = ("--deepspeed_config", "zero2", "--data", "DATA", "--recipe", "RECIPE", "--init_from", given.output)
    print(f"  {invocation('pretrain', *what)}")
