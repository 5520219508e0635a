"""Joins ZeRO shards into safetensors: python tools/consolidate.py runs/first weights"""

from mpnet_ds.command_line import Parser, run, size


def main() -> None:
    from mpnet_ds.checkpoint.consolidate import DTYPES, consolidate

    parser = Parser(
        "Join the shards of a DeepSpeed checkpoint into safetensors files.",
        "python tools/consolidate.py runs/first/checkpoints/step-00001000 weights --dtype bf16",
    )
    parser.add_argument("checkpoint", help="checkpoint folder, or a run's folder (then its newest checkpoint)")
    parser.add_argument("output", help="new folder for the weights")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument(
        "--max_shard_size", type=size, default="5GB", metavar="SIZE", help="a larger model is split into files of this size"
    )
    arguments = parser.parse_args()
    for path in consolidate(arguments.checkpoint, arguments.output, arguments.dtype, arguments.max_shard_size):
        print(f"{path}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    run(main)
