"""Compares initial values (``model.start``) by training small models, each a run of launch/pretrain.py.

    python benchmarks/quality/starts.py RESULTS.jsonl --train DATA RUNS [--groups strengths long]     train what is missing
    python benchmarks/quality/starts.py RESULTS.jsonl [--groups strengths long]                       print it as a table

DATA is made as corpus.py says. A run that was interrupted resumes; one that is in RESULTS.jsonl is not repeated.
Each takes one core: start several with different groups. All train in fp32 without dropout.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from mpnet_ds.metrics_file import FILE_NAME as METRICS
from mpnet_ds.metrics_file import read_metrics
from mpnet_ds.training.plateau import CLEARLY

ROOT = Path(__file__).parent.parent.parent
EVALUATIONS = 40  # of a run, at most
SAMPLES = 192  # sequences of 128 tokens in an evaluation


@dataclass(frozen=True)
class Cell:
    """One run."""

    start: str = "usual"
    """``usual``, or ``near`` with the strength and variations of start_variants.py: ``near 2 both half``."""
    objective: str = "mpnet"
    layers: int = 4
    width: int = 128
    heads: int = 4
    seq_length: int = 128
    sequences: int = 8
    """Of a step."""
    steps: int = 600
    optimizer: str = "AdamW"
    rate: float = 1e-3
    seed: int = 0

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        size = f"{self.layers}x{self.width}h{self.heads}_{self.sequences}x{self.seq_length}_{self.steps}"
        return f"{self.objective}_{size}_{self.optimizer}-{self.rate:g}_{self.start.replace(' ', '-')}_{self.seed}"

    @property
    def tokens(self) -> int:
        """Tokens of the run."""
        return self.steps * self.sequences * self.seq_length

    def command(self, data: Path, output: Path) -> list[str]:
        """The command of the run."""
        start, *strength = self.start.split()[:2]
        interval = max(50, self.steps // EVALUATIONS)
        values = {
            "run.plugins": "benchmarks.quality.start_variants",
            "model.start": start,
            **({"model.start_strength": strength[0]} if strength else {}),
            "model.num_hidden_layers": self.layers,
            "model.hidden_size": self.width,
            "model.num_attention_heads": self.heads,
            "model.intermediate_size": 4 * self.width,
            "model.hidden_dropout_prob": 0,
            "model.attention_probs_dropout_prob": 0,
            "model.max_position_embeddings": self.seq_length + 2,
            "data.seq_length": self.seq_length,
            "optimization.learning_rate": self.rate,
            "optimization.warmup_steps": 100,
            "optimization.max_steps": self.steps,
            "optimization.global_batch_size": self.sequences,
            "optimization.micro_batch_size": self.sequences,
            "optimization.precision": "fp32",
            "run.log_interval": interval,
            "run.eval_interval": interval,
            "run.eval_samples": SAMPLES * 128 // self.seq_length,
            "run.save_interval": 1_000,
            "run.seed": self.seed,
        }
        config = ROOT / "ds_configs" / ("muon.json" if self.optimizer == "Muon" else "zero0.json")
        program = [sys.executable, ROOT / "launch" / "pretrain.py", "--deepspeed_config", config, "--recipe", "mpnet-base"]
        options = ["--objective", self.objective, "--data", data, "--output_dir", output]
        return list(map(str, [*program, *options, "--set", *(f"{key}={value}" for key, value in values.items())]))


VARIANTS = [f"near {strength}{variant}" for variant in ("", " both", " half", " both half") for strength in (1, 2, 4)]
SMALL = {"layers": 2, "width": 96, "seq_length": 64, "sequences": 24}
MUON = {"optimizer": "Muon"}
GROUPS = {
    "strengths": [Cell(start) for start in ("usual", *VARIANTS)],
    "objectives": [
        Cell(start, objective)
        for objective in ("plm", "mlm")
        for start in ("usual", "near 1", "near 2", "near 4", "near 2 both", "near 2 half")
    ],
    "lengths": [Cell(start, seq_length=512, sequences=2) for start in ("usual", "near 1", "near 2", "near 4")],
    "sizes": [
        *(Cell(start, **SMALL) for start in ("usual", "near 1", "near 2", "near 4")),
        *(Cell(start, heads=heads) for heads in (1, 8) for start in ("usual", "near 2")),
        *(Cell(start, width=256, sequences=32, steps=850) for start in ("near 2", "usual")),
    ],
    "seeds": [
        Cell(start, objective, steps=1_000, seed=seed)
        for seed in range(3)
        for objective in ("mpnet", "mlm", "plm")
        for start in ("usual", "near 2")
    ],
    "long": [Cell(start, sequences=32, steps=5_000) for start in ("near 2", "usual")],
    "muon": [Cell(start, sequences=32, steps=5_000, **MUON) for start in ("near 2", "usual")],
}


def train(cell: Cell, data: Path, runs: Path) -> dict:
    """Train a cell, or the rest of it, and summarise it."""
    print(cell.name, flush=True)
    variant = {"START_VARIANT": " ".join(cell.start.split()[2:])}
    variables = os.environ | variant | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    output = runs / cell.name
    output.mkdir(parents=True, exist_ok=True)
    with open(output / "log", "a") as log:
        subprocess.run(cell.command(data, output / "run"), env=variables, stdout=log, stderr=log, check=True)
    return summary_of(cell, read_metrics(output / "run" / METRICS))


def summary_of(cell: Cell, metrics: list[dict]) -> dict:
    """Summarise a run: the level of word frequencies, when it was left, and losses on held-out ``<mask>``."""
    lines = [line for line in metrics if "eval_loss" in line]
    # With plm every target is read as <mask>.
    losses = [line.get("eval_masked_loss", line["eval_loss"]) for line in lines]
    hits = [line.get("eval_masked_accuracy", line["eval_accuracy"]) for line in lines]
    tokens = [line["consumed_samples"] * cell.seq_length for line in lines]
    level = lines[-1]["eval_unigram_loss"]
    left = next((at for at, loss in zip(tokens, losses, strict=True) if loss < level - CLEARLY), None)
    curve = [[at, round(loss, 4), round(hit, 4)] for at, loss, hit in zip(tokens, losses, hits, strict=True)]
    return {"cell": asdict(cell), "unigram_loss": round(level, 4), "left": left, "curve": curve}


def table_of(results: list[dict]) -> str:
    """Print results as a table of Markdown: losses and accuracies at quarters of the run, on held-out ``<mask>``."""
    head = (
        "| objective | size | sequences | optimizer | seed | start | left at M tokens | ¼ | ½ | end, M tokens | accuracy |"
    )
    rows = [head, "|---" * head.count(" | ") + "|---|"]
    for result in results:
        cell, curve = Cell(**result["cell"]), result["curve"]
        left = "–" if result["left"] is None else f"{result['left'] / 1e6:.2f}"
        quarter, half = (f"{curve[len(curve) * part // 4][1]:.2f}" for part in (1, 2))
        end = f"{curve[-1][1]:.3f} at {curve[-1][0] / 1e6:.2f}"
        size, batch = f"{cell.layers} × {cell.width}, {cell.heads} heads", f"{cell.sequences} × {cell.seq_length}"
        columns = (cell.objective, size, batch, cell.optimizer, cell.seed, cell.start, left, quarter, half, end)
        rows.append(f"| {' | '.join(map(str, columns))} | {curve[-1][2]:.1%} |")
    return "\n".join(rows)


def main() -> None:
    """Train, collect, or print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="file of the results, one JSON object a line")
    parser.add_argument("--train", nargs=2, type=Path, metavar=("DATA", "RUNS"), help="train, and add what is finished")
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    arguments = parser.parse_args()
    path = arguments.results
    results = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = [Cell(**result["cell"]) for result in results]
    cells = [cell for group in arguments.groups for cell in GROUPS[group]]
    if arguments.train:
        for cell in (cell for cell in cells if cell not in known):
            results.append(train(cell, *arguments.train))
            with open(path, "a") as file:
                file.write(json.dumps(results[-1]) + "\n")
    print(table_of([result for cell in cells for result in results if Cell(**result["cell"]) == cell]))


if __name__ == "__main__":
    main()
