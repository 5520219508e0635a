"""Runs of ``counted_pretrain.py`` on models of any size: what ``measure_scaling.py`` starts."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from random_dataset import make_dataset

ROOT = Path(__file__).resolve().parent.parent
LAUNCHER = "deepspeed"
TIMEOUT = 1200  # seconds of one run
STAGES = {0: "zero0", 1: "multi_node", 2: "zero2", 3: "zero3"}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; ``divisor`` k: width, vocabulary and positions are the k-th part of the real ones."""

    layers: int
    width: int
    heads: int
    vocabulary: int = 30527
    positions: int = 514
    divisor: int = 1

    def divided(self, k: int) -> "Shape":
        """Matrices become k² times smaller; DeepSpeed's thresholds must follow, see ``thresholds``."""
        return Shape(self.layers, self.width // k, self.heads, self.vocabulary // k, self.positions // k + 2, k)


SHAPES = {"base": Shape(12, 768, 12), "large": Shape(24, 1024, 16), "1.3 B": Shape(24, 2048, 32)}
SHRUNK = {"base": SHAPES["base"].divided(8), "large": SHAPES["large"].divided(8), "1.3 B": SHAPES["1.3 B"].divided(16)}
MIDDLE = Shape(12, 384, 6)
"""For the time of a save: large enough that the disk matters, small enough for eight ranks on a small machine."""


def thresholds(shape: Shape, stage: int) -> dict:
    """``zero_optimization`` for a divided model, as usual values are for the real one (buckets: ``Setup.zero``)."""
    area = shape.divisor**2
    if not stage:
        return {}
    section = {"reduce_bucket_size": (int(2e8) if stage == 1 else int(5e8)) // area}
    if stage == 3:
        section |= {
            "stage3_prefetch_bucket_size": int(5e7) // area,
            "stage3_max_live_parameters": int(1e9) // area,
            "stage3_max_reuse_distance": int(1e9) // area,
            # Between the largest vector (4 widths) and the smallest matrix, as 1e5 is for the real models.
            "stage3_param_persistence_threshold": int(1e5) if shape.divisor == 1 else 8 * shape.width,
        }
    return section


@dataclass(frozen=True)
class Setup:
    """One run."""

    shape: Shape
    stage: int
    ranks: int
    accumulation: int = 1
    precision: str = "bf16"
    shards: int = 4
    updates: int = 4
    zero: tuple = ()
    """Pairs that go into ``zero_optimization``."""


def prepare(work: Path, setup: Setup, number: int = 0) -> dict:
    """A run for counted_pretrain.py: writes its recipe and DeepSpeed's file into a folder of its own."""
    shape, folder = setup.shape, work / f"run-{number}"
    data = work / f"data-{shape.vocabulary}-{setup.shards}"
    if not data.exists():
        make_dataset(data, 1, setup.shards, shape.vocabulary)
    model = {"num_hidden_layers": shape.layers, "hidden_size": shape.width, "num_attention_heads": shape.heads}
    model |= {"intermediate_size": 4 * shape.width, "max_position_embeddings": max(shape.positions, 34)}
    optimization = {"max_steps": setup.updates, "warmup_steps": 1, "micro_batch_size": 1, "precision": setup.precision}
    optimization["global_batch_size"] = setup.accumulation * setup.ranks
    run = {"save_interval": 10_000, "eval_interval": 10_000, "log_interval": 10_000}
    recipe = {"model": model, "data": {"seq_length": 32}, "optimization": optimization, "run": run}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps(recipe))
    config = json.loads((ROOT / "ds_configs" / f"{STAGES[setup.stage]}.json").read_text())
    if setup.stage:
        config["zero_optimization"] |= thresholds(shape, setup.stage) | dict(setup.zero)
    (folder / "deepspeed.json").write_text(json.dumps(config))
    words = ["--deepspeed_config", folder / "deepspeed.json", "--recipe", folder / "recipe.json", "--data", data]
    words += ["--output_dir", folder / "output"]
    return {"folder": str(folder), "arguments": [str(word) for word in words]}


def command(work: Path, runs: list[dict]) -> list[str]:
    (work / "runs.json").write_text(json.dumps(runs))
    return [str(ROOT / "benchmarks" / "counted_pretrain.py"), str(work / "runs.json")]


def environment() -> dict[str, str]:
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return os.environ | own | {"MEASURE_BEGIN": str(time.time())}


def launch(work: Path, setups: list[Setup]) -> list[list[dict]]:
    """Runs them under the launcher, in the same processes; what each rank counted in each run."""
    ranks = setups[0].ranks
    runs = [prepare(work, setup, number) for number, setup in enumerate(setups)]
    start = [LAUNCHER, "--num_accelerators", str(ranks), "--master_port", str(free_port()), *command(work, runs)]
    done = subprocess.run(start, env=environment(), capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        raise SystemExit(f"{ranks} ranks: exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return [[json.loads(Path(run["folder"], f"rank-{rank:05d}.json").read_text()) for rank in range(ranks)] for run in runs]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
