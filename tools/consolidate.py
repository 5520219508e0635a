"""Joins ZeRO shards into safetensors: python tools/consolidate.py runs/first weights"""

from mpnet_ds.command_line import Parser, run, size


def main() -> None:
    from mpnet_ds.checkpoint.consolidate import consolidate
    from mpnet_ds.zero.safetensors_writer import DTYPES

    parser = Parser(
        "Join the shards of a DeepSpeed checkpoint into safetensors files.",
        "python tools/consolidate.py runs/first/checkpoints/step-00001000 weights --dtype bf16",
    )
    parser.add_argument(
        "checkpoint", help="checkpoint of any program (ZeRO 0-3 or universal), or a run's folder: then its newest"
    )
    parser.add_argument("output", help="new folder for the weights")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument(
        "--max_shard_size", type=size, default="5GB", metavar="SIZE", help="a larger model is split into files of this size"
    )
    arguments = parser.parse_args()
    what = arguments.checkpoint, arguments.output, arguments.dtype, arguments.max_shard_size
    for path in consolidate(*what, show_progress=True):
        print(f"{path}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    run(main)
