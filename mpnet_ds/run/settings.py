"""What ``run.json`` notes of a start: everything that is needed to repeat it."""

import argparse
import platform
import sys
from collections import Counter
from dataclasses import asdict
from functools import cache
from importlib.metadata import version

import mpnet_ds
from mpnet_ds.hub.locate import model_name
from mpnet_ds.preflight.plan import Data, RunPlan, datasets_of
from mpnet_ds.ranks.process_group import Ranks

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy")


def settings_of(arguments: argparse.Namespace, plan: RunPlan, ranks: Ranks) -> dict:
    """Collect everything that is needed to repeat this start, for ``run.json``."""
    used = plan.init_from if plan.start.checkpoint is None else None
    return {
        "command": " ".join(sys.argv),
        "arguments": {name: value for name, value in vars(arguments).items() if name not in ("local_rank", "init_from")},
        "init_from": used,
        "base_model": used and model_name(used),
        "recipe": plan.recipe.as_json(),
        "deepspeed_config": plan.engine.engine,
        "monitors": plan.engine.monitors,
        "batch": asdict(plan.engine.batch),
        "precision": plan.engine.precision,
        "zero_stage": plan.engine.zero_stage,
        "execution": asdict(plan.execution),
        "parameters": plan.sizes.parameters,
        "world_size": ranks.world_size,
        "hosts": Counter(ranks.hosts),
        "device": str(ranks.device),
        "identity": plan.start.identity,
        "versions": versions(),
        "datasets": {"training": plan.data.checksum, "evaluation": plan.eval_data and plan.eval_data.checksum},
        "data": _record_of_data(plan.data),
    }


def _record_of_data(data: Data) -> dict:
    """Describe the data for model cards; the datasets themselves may be gone by then."""
    datasets = zip(datasets_of(data), getattr(data, "shares", [1]), strict=True)
    training = [{"folder": str(one.folder), "share": float(share)} | one.manifest.summary() for one, share in datasets]
    return {"training": training, "tokens_per_sequence": data.tokens_per_sequence}


@cache
def versions() -> dict[str, str]:
    """Versions of this package, of Python and of what it builds on."""
    own = {"mpnet_ds": mpnet_ds.__version__, "python": platform.python_version()}
    return own | {package: version(package) for package in PACKAGES}
