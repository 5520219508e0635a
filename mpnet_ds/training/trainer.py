"""The training loop around a DeepSpeed engine.

One update takes the next ``global_batch_size`` samples of the endless order. Accumulation step ``a`` of rank ``r`` takes
rows ``(a * ranks + r) * micro`` and following of them, so that the samples of an update, and their order, are the same
at any number of ranks. The loss is the mean over all predicted slots of the whole global batch, also where rows have
unequal numbers of them. All randomness of an update follows from (seed, update, rank).

Nothing waits for the device but logging, evaluation and saving.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mpnet_ds.checkpoint.store import CheckpointInfo, CheckpointStore
from mpnet_ds.data.counter_rng import make_key
from mpnet_ds.data.dataset import PretrainingDataset
from mpnet_ds.data.mixture import MixtureDataset
from mpnet_ds.errors import UserError
from mpnet_ds.model import MPNetForPretraining
from mpnet_ds.model.sizes import flops_per_row
from mpnet_ds.progress import Progress, show_duration
from mpnet_ds.training.activation_checkpointing import layer_runner
from mpnet_ds.training.deepspeed_config import EngineConfig
from mpnet_ds.training.metrics import MetricsWriter, peak_flops
from mpnet_ds.training.prefetch import prefetched
from mpnet_ds.training.processes import Ranks
from mpnet_ds.training.recipe import Recipe
from mpnet_ds.training.run_folder import Start
from mpnet_ds.training.schedule import learning_rate


@dataclass
class Summary:
    """What a run came to."""

    step: int
    first_loss: float | None = None
    """Mean over the first log interval, nats."""
    last_loss: float | None = None
    first_eval_loss: float | None = None
    last_eval_loss: float | None = None


class Trainer:
    """One run: ``Trainer(…).train()``. Every rank builds one."""

    def __init__(
        self,
        recipe: Recipe,
        config: EngineConfig,
        model: MPNetForPretraining,
        data: PretrainingDataset | MixtureDataset,
        eval_data: PretrainingDataset | MixtureDataset | None,
        start: Start,
        ranks: Ranks,
    ):
        self.recipe, self.config, self.ranks, self.start = recipe, config, ranks, start
        self.data, self.eval_data = data, eval_data
        self.model_config = model.config
        self.store = CheckpointStore(start.output)
        self.engine = build_engine(model, config, recipe.optimization.weight_decay)
        self.step = 0
        self.eval_loss: float | None = None
        if start.checkpoint is not None:
            self._load(start.checkpoint)
        self.metrics = MetricsWriter(start.output, config.monitors, ranks.is_main, first_step=self.step + 1)
        self._window = _Window(ranks.device)
        self._throughput = _Throughput(recipe, self.model_config, data.tokens_per_row, ranks, config.precision)

    @property
    def consumed_samples(self) -> int:
        """Rows since the first update: the whole state of the data."""
        return self.step * self.config.batch.global_batch_size

    def train(self) -> Summary:
        """Trains to the recipe's last update; evaluates and saves on the way and at the end."""
        optimization, run = self.recipe.optimization, self.recipe.run
        summary = Summary(self.step)
        progress = Progress(
            "Training", optimization.max_steps, "step", self.step, enabled=self.ranks.is_main, plain_lines=False
        )
        if self.step == 0:
            summary.first_eval_loss = summary.last_eval_loss = self._evaluate(progress)
        self._throughput.restart(self.step)
        with progress:
            for batches, waited in prefetched(self._draw, self.step + 1, optimization.max_steps):
                self._throughput.waited += waited
                self.step += 1
                self._update(batches)
                is_last = self.step == optimization.max_steps
                progress.update()
                if self.step % run.log_interval == 0 or is_last:
                    loss = self._log(progress)
                    summary.first_loss = loss if summary.first_loss is None else summary.first_loss
                    summary.last_loss = loss
                if self.step % run.eval_interval == 0 or is_last:
                    summary.last_eval_loss = self._evaluate(progress)
                if self.step % run.save_interval == 0 or is_last:
                    self._save()
                    summary.step = self.step
        self.metrics.close()
        return summary

    def _draw(self, step: int) -> list[dict[str, Tensor]]:
        """This rank's micro batches of one update."""
        batch = self.config.batch
        first = (step - 1) * batch.global_batch_size
        parts = range(batch.accumulation_steps)
        offsets = [(part * self.ranks.world_size + self.ranks.rank) * batch.micro_batch_size for part in parts]
        return [
            _to_tensors(self.data.consecutive(first + offset, batch.micro_batch_size), self.ranks.device)
            for offset in offsets
        ]

    def _update(self, batches: list[dict[str, Tensor]]) -> None:
        optimization = self.recipe.optimization
        rate = learning_rate(self.step, optimization.learning_rate, optimization.warmup_steps, optimization.max_steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(int(make_key(self.recipe.run.seed, self.step, self.ranks.rank)) >> 1)
        num_targets = self.ranks.sum(_count_targets(batches).to(self.ranks.device))
        # DeepSpeed divides by the accumulation steps and averages over the ranks; this turns it into a sum again.
        scale = self.ranks.world_size * len(batches) / num_targets
        for batch in batches:
            out = self.engine(**{name: array.to(self.ranks.device, non_blocking=True) for name, array in batch.items()})
            total = out.loss * out.num_targets
            self.engine.backward(total * scale)
            self.engine.step()
            self._window.add(total.detach(), out.num_targets, out.num_correct)

    def _log(self, progress: Progress) -> float:
        loss, accuracy = self._window.close(self.ranks)
        norm = self.engine.get_global_grad_norm()
        line = {
            "step": self.step,
            "consumed_samples": self.consumed_samples,
            "loss": loss,
            "accuracy": accuracy,
            "learning_rate": self.engine.optimizer.param_groups[0]["lr"],
            "grad_norm": None if norm is None else float(norm),
            **self._throughput.measure(self.step),
        }
        self.metrics.write({name: value for name, value in line.items() if value is not None})
        left = show_duration((self.recipe.optimization.max_steps - self.step) / self._throughput.updates_per_second)
        speed = f"{line['tokens_per_second']:,.0f} tokens/s"
        progress.note(f"loss {loss:.3f}  {speed}")
        progress.write(
            f"step {self.step:>{len(str(self.recipe.optimization.max_steps))}} of {self.recipe.optimization.max_steps}"
            f"  loss {loss:.4f}  accuracy {accuracy:.3f}  lr {line['learning_rate']:.2e}  {speed}  {left} left"
        )
        return loss

    @torch.no_grad()
    def _evaluate(self, progress: Progress) -> float | None:
        """Mean loss over the first rows of the evaluation data, drawn alike each time; None without such data."""
        if self.eval_data is None:
            return None
        window = _Window(self.ranks.device)
        micro, world = self.config.batch.micro_batch_size, self.ranks.world_size
        count = min(self.recipe.run.eval_samples, len(self.eval_data))
        self.engine.eval()
        for first in range(0, count, micro * world):
            numbers = first + self.ranks.rank * micro + np.arange(micro)
            batch = self.eval_data.batch(numbers % len(self.eval_data))
            batch["predicted_positions"][numbers >= count] = -1  # every rank runs the same number of batches
            out = self.engine(**_to_tensors(batch, self.ranks.device, move=True))
            window.add(out.loss * out.num_targets, out.num_targets, out.num_correct)
        self.engine.train()
        self.eval_loss, accuracy = window.close(self.ranks)
        counters = {"step": self.step, "consumed_samples": self.consumed_samples}
        self.metrics.write(counters | {"eval_loss": self.eval_loss, "eval_accuracy": accuracy})
        progress.write(f"step {self.step}: held-out loss {self.eval_loss:.4f}  accuracy {accuracy:.3f}")
        self._throughput.restart(self.step)
        return self.eval_loss

    def _save(self) -> None:
        info = CheckpointInfo(
            step=self.step,
            consumed_samples=self.consumed_samples,
            objective=self.recipe.objective,
            zero_stage=self.config.zero_stage,
            precision=self.config.precision,
            world_size=self.ranks.world_size,
            model_config=self.model_config.to_diff_dict(),
            seq_length=self.recipe.data.seq_length,
            identity=self.start.identity,
            eval_loss=self.eval_loss,
        )
        self.store.save(self.engine, info, self.start.output / "tokenizer", self.ranks)
        self._throughput.restart(self.step)

    def _load(self, checkpoint: Path) -> None:
        path, _ = self.engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name, load_lr_scheduler_states=False)
        if path is None:
            raise UserError(f"DeepSpeed could not load {checkpoint}.")
        self.step = self.start.step


class _Window:
    """Sums since the last report, kept on the device."""

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, total_loss: Tensor, num_targets: Tensor, num_correct: Tensor) -> None:
        self.sums += torch.stack([total_loss.double(), num_targets.double(), num_correct.double()])

    def close(self, ranks: Ranks) -> tuple[float, float]:
        """Mean loss (nats) and accuracy over all ranks; starts anew. Waits for the device."""
        total, targets, correct = ranks.sum(self.sums).tolist()
        self.sums = torch.zeros_like(self.sums)
        return total / max(targets, 1), correct / max(targets, 1)


class _Throughput:
    """Rates since the last restart, from wall-clock time between two points where the device was waited for."""

    def __init__(self, recipe: Recipe, model_config, tokens_per_row: float, ranks: Ranks, precision: str):
        """Padding is no token, but work for the device: it counts in ``mfu`` only."""
        rows, n = recipe.optimization.global_batch_size, recipe.data.seq_length
        slots = int(recipe.data.masking.num_predicted(n))
        self.tokens = rows * tokens_per_row
        self.predicted = rows * slots * tokens_per_row / n
        self.flops = rows * flops_per_row(model_config, n, slots, recipe.objective)
        peak = peak_flops(ranks.device, precision)
        self.peak = peak * ranks.world_size if peak else None
        self.updates_per_second = 1.0
        self.restart(step=0)

    def restart(self, step: int) -> None:
        self._step, self._time = step, time.perf_counter()
        self.waited = 0.0  # seconds for data, to be added to by the caller

    def measure(self, step: int) -> dict[str, float]:
        seconds = max(time.perf_counter() - self._time, 1e-9)
        self.updates_per_second = (step - self._step) / seconds
        rates = {
            "tokens_per_second": self.updates_per_second * self.tokens,
            "predicted_tokens_per_second": self.updates_per_second * self.predicted,
            "data_wait": self.waited / seconds,
        }
        self.restart(step)
        return rates | ({"mfu": self.updates_per_second * self.flops / self.peak} if self.peak else {})


def build_engine(model: MPNetForPretraining, config: EngineConfig, weight_decay: float):
    """A DeepSpeed engine around ``model``, with activation checkpointing where the JSON has that section."""
    import deepspeed

    model.checkpoint_function = layer_runner(model.mpnet.encoder.layer, config.engine)
    groups = parameter_groups(model, weight_decay)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=groups, config=config.engine)
    return engine


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: matrices with weight decay, biases and LayerNorm without."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _to_tensors(batch: dict[str, np.ndarray], device: torch.device, move: bool = False) -> dict[str, Tensor]:
    """Tensors in memory that a GPU can fetch by itself, or on the device."""
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    if device.type == "cuda":
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return {name: tensor.to(device) for name, tensor in tensors.items()} if move else tensors


def _count_targets(batches: list[dict[str, Tensor]]) -> Tensor:
    return torch.stack([(batch["predicted_positions"] >= 0).sum() for batch in batches]).sum().double()
