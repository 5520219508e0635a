"""Build a dataset from text."""

import os
from pathlib import Path

from mpnet_ds.command_line import Parser, invocation, size
from mpnet_ds.data.storage.provenance import add_provenance_arguments, provenance_of
from mpnet_ds.data.text.arguments import add_reading_arguments, read_options


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(
        "Build a dataset for pre-training from text. The same command continues an interrupted build.",
        f"{invocation('build_dataset')} --input corpus/ --tokenizer my-tokenizer --output my-data --holdout 0.01",
    )
    add_reading_arguments(parser)
    parser.add_argument(
        "--tokenizer", required=True, metavar="DIR|NAME", help="folder of the tokenizer, or a name of the hub"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder for the dataset")
    parser.add_argument("--workers", type=int, metavar="N", help="number of processes (default: one for each core)")
    parser.add_argument(
        "--holdout", type=float, default=0.0, metavar="F", help="share of documents to hold out for evaluation"
    )
    parser.add_argument(
        "--sentences", default="line", metavar="line|document", help="what counts as a sequence in the index (default: line)"
    )
    parser.add_argument("--shard_size", type=size, metavar="SIZE", help="text for each shard (default: 1MiB to 64MiB)")
    parser.add_argument(
        "--max_unknown", type=float, default=0.2, metavar="F", help="refuse a larger share of unknown tokens (default: 0.2)"
    )
    parser.add_argument("--part", metavar="I/N", help="build part I of N (default: from SLURM arrays, srun or mpirun)")
    add_provenance_arguments(parser)
    parser.add_argument("--dry_run", action="store_true", help="estimate size and time from a sample, and stop")
    return parser


def main() -> None:
    """Build the dataset, or a part of it, and print its size."""
    given, findings = build_parser().examine()
    from mpnet_ds.data.builder.dataset_builder import build_dataset
    from mpnet_ds.data.builder.estimate import estimate
    from mpnet_ds.data.builder.plan import BuildOptions, parse_part, part_of_environment
    from mpnet_ds.data.storage.manifest import HOLDOUT, DatasetManifest
    from mpnet_ds.data.text.corpus import check_inputs
    from mpnet_ds.data.text.source import describe_faults, warn_of_empty
    from mpnet_ds.errors import UserError, collecting
    from mpnet_ds.hub.locate import locate_tokenizer
    from mpnet_ds.tokenizer import PretrainingTokenizer

    reading = part = options = None
    with collecting(findings):
        reading = read_options(given)
    with collecting(findings):
        part = parse_part(given.part) if given.part else part_of_environment(os.environ)
    with collecting(findings):
        sizes = (given.shard_size, given.workers, part, given.max_unknown)
        options = BuildOptions(given.holdout, given.sentences, *sizes, provenance_of(given))
    with collecting(findings):
        check_inputs(given.input)
    with collecting(findings):
        tokenizer = given.tokenizer and locate_tokenizer(given.tokenizer)
        if findings and tokenizer:  # else the build says it
            PretrainingTokenizer.load(tokenizer)
    if findings:
        raise UserError(*findings)
    what = (given.input, tokenizer, given.output, options, reading)
    if given.dry_run:
        print(estimate(*what))
        return
    if part is not None:
        print(f"Part {part.number} of {part.of} (from {part.origin}). Merge all parts with {invocation('merge_datasets')}.")
    built = build_dataset(*what)
    print(f"{built.counted} for training ({built.unknown_share})")
    if options.holdout:
        held_out = DatasetManifest.load(Path(given.output, part.folder_name if part else "", HOLDOUT))
        print(f"{held_out.counted} held out for evaluation")
    empty = built.left_out["empty_documents"]
    for remark in filter(None, [*built.remarks, warn_of_empty(empty, built.documents + empty, reading.text_field)]):
        print(f"Warning: {remark}")
    if built.left_out["faulty_documents"]:
        what = "repaired or left out" if reading.on_error == "replace" else "left out"
        print(describe_faults(built.left_out["faulty_documents"], built.left_out["first_fault"], what))
    print(f"in {given.output}. To inspect it: {invocation('inspect_dataset', given.output)}")
