"""Saves checkpoints of several small models, with random numbers in all weights, through the engine and the store.

    python tests/checkpoint/save_many.py OUTPUT TOKENIZER MODELS.json

MODELS.json names for each, all optional: ``vocab_size``, ``seq_length``, ``tokenizer``, ``config`` (a file of ds_configs),
and ``weights``, numbers that are written into the first place of a weight. ``OUTPUT/NAME`` is then like a run's folder,
without run.json.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from mpnet_ds.checkpoint.store import CheckpointInfo, CheckpointStore
from mpnet_ds.config.deepspeed_config import load_deepspeed_config, resolve
from mpnet_ds.config.recipe import load_recipe, recipe_from_dict
from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.ranks import process_group
from mpnet_ds.ranks.disks import Disks
from mpnet_ds.tokenizer import PretrainingTokenizer
from mpnet_ds.training.engine import Engine
from tests.runs import RECIPE, ROOT


def main(output: Path, usual_tokenizer: Path, models: dict[str, dict]) -> None:
    ranks = process_group.start()
    for name, wanted in models.items():
        tokenizer, seq_length = Path(wanted.get("tokenizer", usual_tokenizer)), wanted.get("seq_length", 32)
        pieces = PretrainingTokenizer.load(tokenizer).vocab_size
        sizes = json.loads(RECIPE.read_text())["model"] | {"max_position_embeddings": seq_length + 2}
        recipe = recipe_from_dict({"name": name, "model": sizes, "data": {"seq_length": seq_length}}, name)
        optimization = load_recipe(str(RECIPE)).optimization
        raw = load_deepspeed_config(ROOT / "ds_configs" / f"{wanted.get('config', 'zero2')}.json")
        config = resolve(raw, optimization, ranks.world_size, process_group.supported_precisions(), name)
        vocab_size = wanted.get("vocab_size", pieces)
        model = random_model(recipe.model.config(vocab_size), wanted.get("weights", {}))
        engine = Engine(model, config, optimization.weight_decay)
        objective, section, how = recipe.objective.section(), asdict(recipe.model), (config.zero_stage, config.precision)
        info = CheckpointInfo(1, 8, objective, *how, ranks.world_size, section, vocab_size, seq_length, identity={})
        CheckpointStore(output / name).save(engine.deepspeed, info, tokenizer, Disks(ranks))
        engine.deepspeed.destroy()
    process_group.stop()


def random_model(config, numbers: dict[str, float]) -> MPNetForPretraining:
    torch.manual_seed(0)
    model = MPNetForPretraining(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        for weight, number in numbers.items():
            model.get_parameter(weight).view(-1)[0] = number
    return model


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text()))
