"""Times one training step on random ids: python benchmarks/bench_step.py --deepspeed_config ds_configs/zero2.json

Prints one line for each attention back-end and micro batch size: milliseconds, tokens/s, the share of the device's peak
(where it is known; see mpnet_ds/training/metrics.py) and peak memory. A step is forward, backward and update of one
micro batch in the DeepSpeed engine, from ids that lie on the device already.
"""

import gc
import time
from dataclasses import replace

import numpy as np
import torch

from mpnet_ds.command_line import Parser, run
from mpnet_ds.model import MPNetForPretraining
from mpnet_ds.model.sizes import flops_per_row
from mpnet_ds.training import processes
from mpnet_ds.training.deepspeed_config import load_deepspeed_config, resolve
from mpnet_ds.training.engine import build_engine
from mpnet_ds.training.metrics import peak_flops
from mpnet_ds.training.recipe import load_recipe

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
    sizes = {"global_batch_size": rows, "micro_batch_size": rows}
    optimization = replace(recipe.optimization, **sizes)
    raw = load_deepspeed_config(arguments.deepspeed_config)
    config = resolve(raw, optimization, 1, processes.supported_precisions(), arguments.deepspeed_config)
    torch.manual_seed(0)
    model_config = recipe.model_config(VOCAB_SIZE)
    engine = build_engine(MPNetForPretraining(model_config, recipe.objective, attention), config, optimization.weight_decay)
    batch = random_batch(
        rows, recipe.data.seq_length, int(recipe.data.masking.num_predicted(recipe.data.seq_length)), ranks.device
    )
    on_gpu = ranks.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for step in range(WARMUP_STEPS + arguments.steps):
        if step == WARMUP_STEPS:
            wait_for(ranks.device)
            begin = time.perf_counter()
        engine.backward(engine(**batch).loss)
        engine.step()
    wait_for(ranks.device)
    seconds = (time.perf_counter() - begin) / arguments.steps
    peak, slots = peak_flops(ranks.device, config.precision), batch["predicted_positions"].shape[1]
    flops = rows * flops_per_row(model_config, recipe.data.seq_length, slots, recipe.objective)
    share = f"{flops / seconds / peak:6.1%}" if peak else "     –"
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:6.1f}" if on_gpu else "     –"
    engine.destroy()
    del engine
    gc.collect()
    return f"{attention:10} {rows:5} {seconds * 1e3:9.1f} {rows * recipe.data.seq_length / seconds:10,.0f} {share} {memory}"


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
