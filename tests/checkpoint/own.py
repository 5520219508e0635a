"""Makes checkpoints by this project's engine and store, many in one interpreter: each launch would cost seconds.

python tests/checkpoint/own.py OUTPUT TOKENIZER JOB…

CONFIG:RANKS                          eight steps of a small model: OUTPUT/CONFIG-RANKS is like a run's folder with the
                                      checkpoints of steps 6 and 8, without run.json; alike for all CONFIG and RANKS
CONFIG:RANKS:LOADED_BY:KIND,KIND…     that checkpoint, made before, loaded by LOADED_BY ranks into engines of several
                                      kinds (CONFIG-PRECISION) and saved again, without a step in between, as
                                      OUTPUT/CONFIG-RANKS-LOADED_BY/KIND
"""

import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from mpnet_ds.checkpoint.store import CheckpointInfo, CheckpointStore, find_checkpoint
from mpnet_ds.config.deepspeed_config import layout, load_deepspeed_config, resolve
from mpnet_ds.config.recipe import load_recipe
from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.ranks import process_group
from mpnet_ds.ranks.disks import Disks
from mpnet_ds.tokenizer import PretrainingTokenizer
from mpnet_ds.training.engine import Engine
from mpnet_ds.zero.checkpoint_reader import ZeroCheckpoint
from mpnet_ds.zero.load_converted import load_weights
from tests.checkpoint.forked import run_ranks
from tests.runs import RECIPE, ROOT

STEPS, BATCH, LENGTH, TARGETS = 8, 8, 32, 5


def build(config_name: str, precision: str, ranks: process_group.Ranks, vocab_size: int) -> tuple:
    """A new model and what an engine around it takes."""
    recipe = load_recipe(str(RECIPE))
    optimization = replace(recipe.optimization, precision=precision, micro_batch_size=BATCH // ranks.world_size)
    raw = load_deepspeed_config(ROOT / "ds_configs" / f"{config_name}.json")
    config = resolve(raw, optimization, ranks.world_size, process_group.supported_precisions(), config_name)
    torch.manual_seed(0)
    return MPNetForPretraining(recipe.model.config(vocab_size)), config, optimization.weight_decay


def train(output: Path, tokenizer: Path, names: list[str]) -> None:
    """Train and save with each of the configurations."""
    ranks = process_group.start()
    vocab_size = PretrainingTokenizer.load(tokenizer).vocab_size
    for name in names:
        precision = "bf16" if name == "bf16" else "fp32"
        model, config, weight_decay = build(name, precision, ranks, vocab_size)
        engine, store = Engine(model, config, weight_decay), CheckpointStore(output / f"{name}-{ranks.world_size}")
        model_section = asdict(load_recipe(str(RECIPE)).model)
        for step in range(1, STEPS + 1):
            engine.backward(engine.forward(batch_of(step, ranks, vocab_size)).loss)
            if step in (STEPS - 2, STEPS):
                info = CheckpointInfo(
                    *(step, step * BATCH, {"name": "mpnet"}, config.zero_stage, config.precision, ranks.world_size),
                    *(model_section, vocab_size, LENGTH, {}),
                    layout=layout(config.engine),
                )
                store.save(engine.deepspeed, info, tokenizer, Disks(ranks))
        engine.deepspeed.destroy()
    process_group.stop()


def batch_of(step: int, ranks: process_group.Ranks, vocab_size: int) -> dict[str, torch.Tensor]:
    """This rank's share of a global batch that does not depend on the number of ranks."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(5, vocab_size - 1, (BATCH, LENGTH), generator=generator)
    positions = torch.rand(BATCH, LENGTH, generator=generator).argsort(dim=1)[:, :TARGETS].sort(dim=1).values
    share = slice(ranks.rank * BATCH // ranks.world_size, (ranks.rank + 1) * BATCH // ranks.world_size)
    return {
        "input_ids": ids[share],
        "predicted_positions": positions[share],
        "predicted_inputs": ids.gather(1, positions)[share],
    }


def convert(checkpoint: Path, output: Path, tokenizer: Path, kinds: list[str]) -> None:
    """Load a checkpoint into engines of several kinds and save it from each."""
    ranks = process_group.start()
    vocab_size = PretrainingTokenizer.load(tokenizer).vocab_size
    for kind in kinds:
        model, config, weight_decay = build(*kind.split("-"), ranks, vocab_size)
        load_weights(model, ZeroCheckpoint(checkpoint))
        engine = Engine(model, config, weight_decay)
        engine.load(checkpoint, convert=True)
        engine.deepspeed.save_checkpoint(str(output), tag=kind, save_latest=False)
        engine.deepspeed.destroy()
    process_group.stop()


def main(output: Path, tokenizer: Path, jobs: list[str]) -> None:
    """All training first, each number of ranks in one set of processes; then the conversions."""
    trained: dict[int, list[str]] = {}
    for name, ranks in (job.split(":") for job in jobs if job.count(":") == 1):
        trained.setdefault(int(ranks), []).append(name)
    for ranks, names in trained.items():
        run_ranks(ranks, train, output, tokenizer, names)
    for name, saved_by, loaded_by, kinds in (job.split(":") for job in jobs if job.count(":") == 3):
        checkpoint = find_checkpoint(output / f"{name}-{saved_by}")
        target = output / f"{name}-{saved_by}-{loaded_by}"
        run_ranks(int(loaded_by), convert, checkpoint, target, tokenizer, kinds.split(","))


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"  # a GPU would not survive the fork, and the files are the same
    import deepspeed  # noqa: F401 (once for all)

    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
