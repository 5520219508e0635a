"""Join ZeRO shards into safetensors."""

from mpnet_ds.command_line import Parser, invocation, size


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(
        "Join the shards of a DeepSpeed checkpoint into safetensors files.",
        f"{invocation('consolidate')} runs/first/checkpoints/step-00001000 weights --dtype bf16",
    )
    parser.add_argument(
        "checkpoint", help="checkpoint of any program (ZeRO 0-3 or universal), or a run's folder: then its newest"
    )
    parser.add_argument("output", help="new folder for the weights")
    parser.add_argument("--dtype", default="fp32", metavar="fp32|bf16|fp16", help="of the weights in the files (fp32)")
    parser.add_argument(
        "--max_shard_size", type=size, default="5GB", metavar="SIZE", help="a larger model is split into files of this size"
    )
    return parser


def main() -> None:
    """Write the files and list them."""
    arguments = build_parser().parse_args()
    from mpnet_ds.checkpoint.consolidate import consolidate

    what = arguments.checkpoint, arguments.output, arguments.dtype, arguments.max_shard_size
    for path in consolidate(*what, show_progress=True):
        print(f"{path}  {path.stat().st_size:,} bytes")
