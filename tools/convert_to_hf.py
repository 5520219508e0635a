"""Exports a Hugging Face folder: python tools/convert_to_hf.py runs/first my-model"""

from mpnet_ds.command_line import Parser, run


def main() -> None:
    from mpnet_ds.checkpoint.huggingface import export_huggingface
    from mpnet_ds.checkpoint.weights_file import DTYPES

    parser = Parser(
        "Write a complete Hugging Face folder from a checkpoint, and check it against the training model.",
        "python tools/convert_to_hf.py runs/first my-model",
    )
    parser.add_argument("checkpoint", help="run's folder (then its newest checkpoint), or a checkpoint folder")
    parser.add_argument("output", help="new folder for the model")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the weights in the file")
    arguments = parser.parse_args()
    comparison = export_huggingface(arguments.checkpoint, arguments.output, arguments.dtype)
    print(f"{arguments.output} loads with transformers and agrees with the training model: largest difference of a")
    print(f"hidden state {comparison.hidden_states:.1e}, of a logit {comparison.logits:.1e}")


if __name__ == "__main__":
    run(main)
