"""Time a step against the same step written straightforwardly: python benchmarks/bench_straightforward.py

Both are forward, backward and optimizer step (PyTorch's fused AdamW) of one batch of random ids, from the same weights,
with the recipe's dropout; straightforward.py says how they differ. They take turns; the ratio is the median over the pairs.
Both keep freed memory, as in training (mpnet_ds/ranks/host_memory.py), except with --usual_malloc.
"""

import statistics
import time

import numpy as np
import torch
from report import add_json_argument, write_results
from straightforward import StraightforwardMPNet

from mpnet_ds.command_line import Parser, run
from mpnet_ds.config.recipe import Recipe, load_recipe
from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.quiet import quiet_libraries
from mpnet_ds.ranks.host_memory import keep_freed_memory
from mpnet_ds.training.engine import parameter_groups

VOCAB_SIZE = 30527
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    parser = Parser(
        "Time a step against a straightforward one.", "python benchmarks/bench_straightforward.py --micro_batch_size 2"
    )
    parser.add_argument("--recipe", default="mpnet-base", metavar="NAME|FILE")
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--micro_batch_size", type=int, default=2, metavar="N", help="sequences (2)")
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="timed steps of each, after a warm-up")
    parser.add_argument("--usual_malloc", action="store_true", help="do not keep freed memory")
    add_json_argument(parser)
    arguments = parser.parse_args()
    quiet_libraries()
    if not arguments.usual_malloc:
        keep_freed_memory()
    recipe = load_recipe(arguments.recipe)
    print(f"{'precision':9} {'straightforward':>16} {'this package':>13} {'ratio':>6}   of the pairs")
    rows = []
    for precision in arguments.precision:
        rows.append(measure(recipe, precision, arguments.micro_batch_size, arguments.pairs))
        print("{precision:9} {straightforward_seconds:14.3f} s {seconds:11.3f} s {ratio:6.2f}".format(**rows[-1]), end="   ")
        print(" ".join(f"{ratio:.2f}" for ratio in rows[-1]["ratios"]), flush=True)
    write_results(arguments.json, rows, recipe=recipe.name, micro_batch_size=arguments.micro_batch_size)


def measure(recipe: Recipe, precision: str, batch_size: int, pairs: int) -> dict:
    """Measure median seconds of a step of both, and the median ratio of the pairs."""
    config, batch = recipe.model.config(VOCAB_SIZE), random_batch(recipe, batch_size)
    models = [make(config).to(PRECISIONS[precision]) for make in (StraightforwardMPNet, MPNetForPretraining)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [torch.optim.AdamW(parameter_groups(model, 0.01), lr=1e-5, fused=True) for model in models]

    def straightforward_loss() -> torch.Tensor:
        return models[0](**batch)

    def own_loss() -> torch.Tensor:
        return models[1](**batch).loss

    sides = list(zip((straightforward_loss, own_loss), optimizers, strict=True))
    seconds = [[step(*side) for side in sides] for _ in range(pairs + 1)][1:]
    ratios = [own / straightforward for straightforward, own in seconds]
    theirs, ours = (statistics.median(column) for column in zip(*seconds, strict=True))
    figures = {"straightforward_seconds": theirs, "seconds": ours, "ratio": statistics.median(ratios), "ratios": ratios}
    return {"precision": precision} | figures


def step(loss, optimizer: torch.optim.Optimizer) -> float:
    """Time one step, in seconds."""
    begin = time.perf_counter()
    loss().backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - begin


def random_batch(recipe: Recipe, batch_size: int) -> dict[str, torch.Tensor]:
    """Draw full sequences of random ids, with as many targets as the recipe predicts."""
    generator, num_tokens = np.random.default_rng(0), recipe.data.seq_length
    num_targets = int(recipe.objective.masking.num_predicted(num_tokens))
    batch = {
        "input_ids": generator.integers(4, VOCAB_SIZE - 1, (batch_size, num_tokens)),
        "predicted_positions": np.stack([generator.permutation(num_tokens)[:num_targets] for _ in range(batch_size)]),
        "predicted_inputs": np.full((batch_size, num_targets), VOCAB_SIZE - 1),
    }
    return {name: torch.from_numpy(array) for name, array in batch.items()}


if __name__ == "__main__":
    run(main)
