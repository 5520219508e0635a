"""Draw the curves of runs."""

from mpnet_ds.command_line import Parser, invocation


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(
        "Draw training and validation loss and throughput of one or several runs into one PNG.",
        f"{invocation('plot_run')} runs/first runs/second --output runs.png",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or its metrics.jsonl")
    parser.add_argument("--output", default="run.png", metavar="FILE", help="PNG to write (run.png)")
    parser.add_argument("--x", default="steps", metavar="steps|samples", help="horizontal axis (steps); samples: sequences")
    return parser


def main() -> None:
    """Draw the picture and print its path."""
    arguments = build_parser().parse_args()
    from mpnet_ds.run.plot import plot_runs

    print(plot_runs(arguments.runs, arguments.output, arguments.x))
