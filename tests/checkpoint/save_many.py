"""Saves checkpoints of several small models, with random numbers in all weights, through the engine and the store.

    python tests/checkpoint/save_many.py OUTPUT TOKENIZER MODELS.json

MODELS.json names for each, all optional: ``objective``, ``vocab_size``, ``seq_length``, ``tokenizer``, ``config`` (a file of
ds_configs), and ``weights``, numbers that are written into the first place of a weight. ``OUTPUT/NAME`` is then like a run's
folder, without run.json.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from mpnet_ds.checkpoint.store import CheckpointInfo, CheckpointStore
from mpnet_ds.config.deepspeed_config import load_deepspeed_config, resolve
from mpnet_ds.config.recipe import load_recipe, recipe_from_dict
from mpnet_ds.models.module import PretrainingModule
from mpnet_ds.ranks import process_group
from mpnet_ds.ranks.disks import Disks
from mpnet_ds.tokenizer import PretrainingTokenizer
from mpnet_ds.training.engine import Engine
from tests.hub import two_parts  # noqa: F401  registers its objective
from tests.runs import RECIPE, ROOT


def main(output: Path, usual_tokenizer: Path, models: dict[str, dict]) -> None:
    ranks = process_group.start()
    for name, wanted in models.items():
        folder, seq_length = Path(wanted.get("tokenizer", usual_tokenizer)), wanted.get("seq_length", 32)
        tokenizer = PretrainingTokenizer.load(folder)
        tokenizer.vocab_size = wanted.get("vocab_size", tokenizer.vocab_size)
        sizes = json.loads(RECIPE.read_text())["model"] | {"max_position_embeddings": seq_length + 2}
        objective = wanted.get("objective", "mpnet")
        sections = {"objective": objective, "model": sizes, "data": {"seq_length": seq_length}}
        recipe = recipe_from_dict({"name": name, **sections}, name)
        optimization = load_recipe(str(RECIPE)).optimization
        raw = load_deepspeed_config(ROOT / "ds_configs" / f"{wanted.get('config', 'zero2')}.json")
        config = resolve(raw, optimization, ranks.world_size, process_group.supported_precisions(), name)
        module = recipe.objective.build(recipe.model, tokenizer, seq_length)
        randomize(module, wanted.get("weights", {}))
        engine = Engine(module, config, optimization.weight_decay)
        how, rows = (config.zero_stage, config.precision, ranks.world_size), tokenizer.vocab_size
        info = CheckpointInfo(1, 8, recipe.objective.section(), *how, asdict(recipe.model), rows, seq_length, identity={})
        CheckpointStore(output / name).save(engine.deepspeed, info, folder, Disks(ranks))
        engine.deepspeed.destroy()
    process_group.stop()


@torch.no_grad()
def randomize(module: PretrainingModule, numbers: dict[str, float]) -> None:
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    for weight, number in numbers.items():
        module.get_parameter(weight).view(-1)[0] = number


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text()))
