"""Export a run to a Hugging Face folder."""

from mpnet_ds.command_line import Parser, invocation, size


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(
        "Write a complete Hugging Face folder from a checkpoint, and check it against the training model.",
        f"{invocation('convert_to_hf')} runs/first my-model",
    )
    parser.add_argument("checkpoint", help="run's folder (then its newest checkpoint), or a checkpoint folder")
    parser.add_argument("output", help="new folder for the model")
    parser.add_argument("--dtype", default="fp32", metavar="fp32|bf16|fp16", help="of the weights in the file (fp32)")
    parser.add_argument("--max_shard_size", type=size, default="5GB", help="divide larger weights among files (5GB)")
    parser.add_argument(
        "--sentence_transformers", action="store_true", help="also a model of that library: the mean over the tokens"
    )
    parser.add_argument("--push_to_hub", metavar="NAME", help="also upload the folder as this model; a new one is private")
    parser.add_argument(
        "--plugins", nargs="+", default=[], metavar="MODULE", help="modules that register the run's objective (run.plugins)"
    )
    return parser


def main() -> None:
    """Write the folder and say how it compares with the training model."""
    arguments = build_parser().parse_args()
    from mpnet_ds.config.recipe import import_modules
    from mpnet_ds.errors import UserError, collecting
    from mpnet_ds.hub.export import check_export, export_huggingface
    from mpnet_ds.hub.push import check_push, push_to_hub

    findings = import_modules(arguments.plugins, "--plugins")
    with collecting(findings):
        check_export(arguments.checkpoint, arguments.output, arguments.dtype)
    if findings:
        raise UserError(*findings)
    if arguments.push_to_hub:
        check_push(arguments.push_to_hub)
    comparison = export_huggingface(
        arguments.checkpoint,
        arguments.output,
        arguments.dtype,
        arguments.max_shard_size,
        arguments.sentence_transformers,
        show_progress=True,
    )
    print("\n".join([f"{arguments.output} is complete.", *comparison.describe()]))
    if arguments.push_to_hub:
        print(f"Uploaded to {push_to_hub(arguments.output, arguments.push_to_hub)}")
