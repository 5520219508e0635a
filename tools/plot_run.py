"""Draws the curves of runs: python tools/plot_run.py runs/first runs/second --output runs.png"""

from mpnet_ds.command_line import Parser, run


def main() -> None:
    from mpnet_ds.run.plot import plot_runs

    parser = Parser(
        "Draw training and held-out loss and throughput of one or several runs into one PNG.",
        "python tools/plot_run.py runs/first runs/second --output runs.png",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or its metrics.jsonl")
    parser.add_argument("--output", default="run.png", metavar="FILE", help="PNG to write (run.png)")
    parser.add_argument("--x", default="updates", metavar="updates|samples", help="what runs are compared at (updates)")
    arguments = parser.parse_args()
    print(plot_runs(arguments.runs, arguments.output, arguments.x))


if __name__ == "__main__":
    run(main)
