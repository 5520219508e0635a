"""Exports a Hugging Face folder: python tools/convert_to_hf.py runs/first my-model"""

from mpnet_ds.command_line import Parser, run, size


def main() -> None:
    from mpnet_ds.hub.export import export_huggingface
    from mpnet_ds.zero.safetensors_writer import DTYPES

    parser = Parser(
        "Write a complete Hugging Face folder from a checkpoint, and check it against the training model.",
        "python tools/convert_to_hf.py runs/first my-model",
    )
    parser.add_argument("checkpoint", help="run's folder (then its newest checkpoint), or a checkpoint folder")
    parser.add_argument("output", help="new folder for the model")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the weights in the file")
    parser.add_argument("--max_shard_size", type=size, default="5GB", help="divide larger weights among files (5GB)")
    parser.add_argument(
        "--sentence_transformers", action="store_true", help="also a model of that library: the mean over the tokens"
    )
    arguments = parser.parse_args()
    comparison = export_huggingface(
        arguments.checkpoint,
        arguments.output,
        arguments.dtype,
        arguments.max_shard_size,
        arguments.sentence_transformers,
        show_progress=True,
    )
    print("\n".join([f"{arguments.output} is complete.", *comparison.describe()]))


if __name__ == "__main__":
    run(main)
