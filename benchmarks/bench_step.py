"""Times one training step on random ids: python benchmarks/bench_step.py --deepspeed_config ds_configs/zero2.json

Prints one line for each attention back-end and micro batch size: milliseconds, tokens/s, the share of the device's peak
(where it is known; see mpnet_ds/training/metrics.py) and peak memory. A step is forward, backward and update of one
micro batch in the DeepSpeed engine, from ids that lie on the device already.
"""

import gc
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from mpnet_ds.command_line import Parser, run
from mpnet_ds.model import MPNetForPretraining
from mpnet_ds.model.sizes import flops_per_row
from mpnet_ds.training import processes
from mpnet_ds.training.deepspeed_config import load_deepspeed_config, resolve
from mpnet_ds.training.engine import build_engine
from mpnet_ds.training.metrics import peak_flops
from mpnet_ds.training.recipe import Recipe, load_recipe

VOCAB_SIZE = 30527
WARMUP_STEPS = 3


def main() -> None:
    example = "python benchmarks/bench_step.py --recipe mpnet-base --micro_batch_size 32 64 --attention sdpa eager"
    parser = Parser("Time a training step on random ids.", example)
    parser.add_argument("--deepspeed_config", default="ds_configs/zero0.json", metavar="FILE")
    parser.add_argument("--recipe", default="mpnet-base", metavar="NAME|FILE")
    parser.add_argument("--micro_batch_size", type=int, nargs="+", default=[32], metavar="N")
    parser.add_argument("--attention", nargs="+", default=["auto"], metavar="NAME")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="timed steps, after three others")
    arguments = parser.parse_args()
    ranks = processes.start()
    try:
        print(f"{'attention':10} {'rows':>5} {'ms':>9} {'tokens/s':>10} {'MFU':>6} {'GiB':>6}")
        for attention in arguments.attention:
            for rows in arguments.micro_batch_size:
                print(measure(arguments, attention, rows, ranks), flush=True)
    finally:
        processes.stop()


def measure(arguments, attention: str, rows: int, ranks) -> str:
    recipe = load_recipe(arguments.recipe)
    prepared = prepare(recipe, arguments.deepspeed_config, attention, rows, ranks.device)
    on_gpu = ranks.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    prepared.run(WARMUP_STEPS)
    seconds = prepared.run(arguments.steps) / arguments.steps
    tokens, slots = recipe.data.seq_length, prepared.batch["predicted_positions"].shape[1]
    peak = peak_flops(ranks.device, prepared.precision)
    flops = rows * flops_per_row(recipe.model_config(VOCAB_SIZE), tokens, slots, recipe.objective)
    share = f"{flops / seconds / peak:6.1%}" if peak else "     –"
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:6.1f}" if on_gpu else "     –"
    prepared.engine.destroy()
    del prepared
    gc.collect()
    return f"{attention:10} {rows:5} {seconds * 1e3:9.1f} {rows * tokens / seconds:10,.0f} {share} {memory}"


@dataclass
class Prepared:
    """An engine, and a batch on its device."""

    engine: object
    batch: dict[str, torch.Tensor]
    precision: str

    def run(self, steps: int) -> float:
        """Seconds that ``steps`` updates take."""
        device = self.batch["input_ids"].device
        wait_for(device)
        begin = time.perf_counter()
        for _ in range(steps):
            self.engine.backward(self.engine(**self.batch).loss)
            self.engine.step()
        wait_for(device)
        return time.perf_counter() - begin


def prepare(recipe: Recipe, deepspeed_config: str, attention: str, rows: int, device: torch.device) -> Prepared:
    """The recipe's model in an engine by a DeepSpeed file, for updates of one micro batch of ``rows``."""
    optimization = replace(recipe.optimization, global_batch_size=rows, micro_batch_size=rows)
    raw = load_deepspeed_config(deepspeed_config)
    config = resolve(raw, optimization, 1, processes.supported_precisions(), deepspeed_config)
    torch.manual_seed(0)
    model = MPNetForPretraining(recipe.model_config(VOCAB_SIZE), recipe.objective, attention)
    engine = build_engine(model, config, optimization.weight_decay)
    num_tokens = recipe.data.seq_length
    batch = random_batch(rows, num_tokens, int(recipe.data.masking.num_predicted(num_tokens)), device)
    return Prepared(engine, batch, config.precision)


def random_batch(rows: int, num_tokens: int, num_slots: int, device: torch.device) -> dict[str, torch.Tensor]:
    generator = np.random.default_rng(0)
    positions = np.stack([generator.permutation(num_tokens)[:num_slots] for _ in range(rows)])
    batch = {
        "input_ids": generator.integers(4, VOCAB_SIZE - 1, (rows, num_tokens)),
        "predicted_positions": positions,
        "predicted_inputs": np.full((rows, num_slots), VOCAB_SIZE - 1),
    }
    return {name: torch.from_numpy(array).to(device) for name, array in batch.items()}


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    run(main)
