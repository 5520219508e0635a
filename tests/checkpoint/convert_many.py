"""Loads a checkpoint into engines of several kinds and saves it again from each, without an update in between.

    deepspeed --num_accelerators 2 tests/checkpoint/convert_many.py CHECKPOINT OUTPUT CONFIG:PRECISION…

``OUTPUT/CONFIG-PRECISION`` is then the same checkpoint as that engine saves it.
"""

import sys
from dataclasses import replace
from pathlib import Path

from mpnet_ds.checkpoint.store import read_info
from mpnet_ds.config.deepspeed_config import load_deepspeed_config, resolve
from mpnet_ds.config.recipe import load_recipe
from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.ranks import process_group
from mpnet_ds.training.engine import Engine
from mpnet_ds.zero.checkpoint_reader import ZeroCheckpoint
from mpnet_ds.zero.load_converted import load_weights
from tests.runs import RECIPE, ROOT


def main(checkpoint: Path, output: Path, kinds: list[str]) -> None:
    ranks = process_group.start()
    recipe = load_recipe(str(RECIPE))
    vocab_size = read_info(checkpoint).vocab_size
    for kind in kinds:
        name, precision = kind.split(":")
        raw = load_deepspeed_config(ROOT / "ds_configs" / f"{name}.json")
        optimization = replace(recipe.optimization, precision=precision)
        config = resolve(raw, optimization, ranks.world_size, process_group.supported_precisions(), name)
        model = MPNetForPretraining(recipe.model.config(vocab_size))
        load_weights(model, ZeroCheckpoint(checkpoint))
        engine = Engine(model, config, optimization.weight_decay)
        engine.load(checkpoint, convert=True)
        engine.deepspeed.save_checkpoint(str(output), tag=f"{name}-{precision}", save_latest=False)
        engine.deepspeed.destroy()
    process_group.stop()


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    main(Path(arguments[0]), Path(arguments[1]), arguments[2:])
