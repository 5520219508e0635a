"""The training loop around a DeepSpeed engine.

One update takes the next ``global_batch_size`` samples of the endless order. Accumulation step ``a`` of rank ``r`` takes
rows ``(a * ranks + r) * micro`` and following of them, so that the samples of an update, and their order, are the same
at any number of ranks. The loss is the mean over all predicted slots of the whole global batch, also where rows have
unequal numbers of them. All randomness of an update follows from (seed, update, rank).

Before each update the ranks have agreed on whether to go on (stop_requests.py); they begin to once the last forward pass of
the update before is on its way. An update whose loss or gradient is not finite changes nothing; its samples are consumed
all the same. The code here waits for the device only after a session's first update, to log, to evaluate and to save;
DeepSpeed's optimizers (in fp32 at ZeRO 0 engine.py) do so once in an update, to check that the gradient is finite.
"""

import math
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mpnet_ds.checkpoint.store import CheckpointInfo, CheckpointStore, SaveFailed, read_info
from mpnet_ds.config.deepspeed_config import EngineConfig, layout
from mpnet_ds.config.execution import Execution
from mpnet_ds.config.recipe import Recipe
from mpnet_ds.counter_rng import make_key
from mpnet_ds.data.samples.dataset import PretrainingDataset
from mpnet_ds.data.samples.mixture import MixtureDataset
from mpnet_ds.models import MPNetForPretraining
from mpnet_ds.progress import Progress
from mpnet_ds.ranks.disks import Disks
from mpnet_ds.ranks.stop_requests import Agreement, Request, StopRequests
from mpnet_ds.ranks.watchdog import Watchdog
from mpnet_ds.run.run_folder import Start
from mpnet_ds.training.engine import Engine
from mpnet_ds.training.garbage import collected_by_hand
from mpnet_ds.training.loss_window import LossWindow, Spike
from mpnet_ds.training.metrics import MetricsWriter, Throughput, describe
from mpnet_ds.training.prefetch import prefetched
from mpnet_ds.training.profile import Profiler
from mpnet_ds.training.schedule import learning_rate
from mpnet_ds.training.transfer import pack, unpack
from mpnet_ds.zero.checkpoint_reader import ZeroCheckpoint
from mpnet_ds.zero.load_converted import load_weights

INSPECTION = "inspection"
"""Folder of the output where a run that gives up leaves its state."""


@dataclass
class Outcome:
    """How training ended."""

    step: int
    request: Request = Request.NOTHING
    """What made it end before the last update, if anything did."""
    failure: str = ""
    """Why it gave up, in words."""
    is_saved: bool = True
    """Whether the last update is in a checkpoint."""


class TrainingFailed(Exception):
    """Training makes no progress any more; raised on all ranks."""


class Trainer:
    """One run: ``Trainer(…).train()``. Every rank builds one, inside its watchdog's ``with`` block."""

    def __init__(
        self,
        recipe: Recipe,
        config: EngineConfig,
        execution: Execution,
        model: MPNetForPretraining,
        data: PretrainingDataset | MixtureDataset,
        eval_data: PretrainingDataset | MixtureDataset | None,
        start: Start,
        disks: Disks,
        watchdog: Watchdog,
    ):
        ranks = disks.ranks
        self.recipe, self.config, self.execution = recipe, config, execution
        self.ranks, self.disks, self.start = ranks, disks, start
        self.data, self.eval_data, self.watchdog = data, eval_data, watchdog
        self.model_config = model.config
        self.store = CheckpointStore(start.output, recipe.run.keep)
        if start.conversion:
            load_weights(model, ZeroCheckpoint(start.checkpoint))
        self.engine = Engine(model, config, recipe.optimization.weight_decay, disks, execution.compile)
        if start.checkpoint is not None:
            self.engine.load(start.checkpoint, convert=bool(start.conversion))
        self.step = self._saved_step = start.step
        self.stop_requests = StopRequests(start.output, ranks)
        first = self.step + 1 if start.checkpoint else 0
        self.metrics = MetricsWriter(start.output, config.monitors, ranks.is_main, first_step=first)
        self._progress = Progress(
            "Training", recipe.optimization.max_steps, "step", self.step, enabled=ranks.is_main, plain_lines=False
        )
        self.profiler = Profiler(start.output, execution.profile, ranks.rank, ranks.device, self._progress.write)
        self.engine.span = self.profiler.span
        self._window = LossWindow(recipe.run.spike_factor)
        self._evaluated: tuple[int, float] | None = None  # update and loss
        self._skipped = self._skipped_in_a_row = 0
        self._loss_scale = self.engine.loss_scale
        if start.checkpoint is not None:
            self._remember(read_info(start.checkpoint))
        self._throughput = Throughput(recipe, self.model_config, data.tokens_per_row, ranks, config.precision)

    def _remember(self, info: CheckpointInfo) -> None:
        """What had been seen of the losses when the checkpoint was saved."""
        if info.losses:
            self._window.restore(info.losses["window"])
            self._skipped = info.losses["skipped_updates"]
        if info.eval_loss is not None:
            self._evaluated = (info.step, info.eval_loss)

    @property
    def consumed_samples(self) -> int:
        """Rows since the first update: the whole state of the data."""
        return self.step * self.config.batch.global_batch_size

    def train(self) -> Outcome:
        """Trains to the recipe's last update, or until it is asked to stop; evaluates and saves on the way and then."""
        with self._progress, self.stop_requests, closing(self.profiler), collected_by_hand() as self._collect:
            outcome = self._train()
        self.metrics.close()
        return outcome

    def _train(self) -> Outcome:
        if self._evaluated is None and self.step % self.recipe.run.eval_interval == 0:
            self._evaluate()  # at the beginning, or where a run was stopped before it had done so
        self._throughput.restart(self.step)
        try:
            request = self._run_updates()
        except TrainingFailed as failure:
            return Outcome(self.step, failure=str(failure), is_saved=False)
        is_saved = self._saved_step == self.step or self._save()
        self.stop_requests.answered(request)
        return Outcome(self.step, request, is_saved=is_saved)

    def _run_updates(self) -> Request:
        """Returns what made it end: ``NOTHING`` after the last update."""
        first, last = self.step + 1, self.recipe.optimization.max_steps
        with closing(prefetched(self._draw, first, last)) as self._draws:
            self.watchdog.beat("drawing data", first)
            self._look_ahead()
            return self._run_drawn(first, last)

    def _run_drawn(self, first: int, last: int) -> Request:
        """Runs the updates whose batches have been, and are being, drawn."""
        run = self.recipe.run
        while self._next is not None:
            batches, waited, agree = self._next
            self.profiler.begin(self.step + 1)
            self.watchdog.beat("agreeing", self.step + 1)
            with self.profiler.span("agreement"):
                agreement = agree()
            if agreement.request.stops:
                return agreement.request
            if agreement.request == Request.SAVE:
                if self._saved_step < self.step:
                    self._save()
                self.stop_requests.answered(agreement.request)
            self._throughput.waited += waited
            self.step += 1
            self.watchdog.beat("updating", self.step)
            self._update(batches, agreement.num_targets)
            self.profiler.done(self.step)
            self._progress.update()
            if self.step == first:
                self._finish_first()
            is_last = self.step == last
            if self.step % run.log_interval == 0 or is_last:
                self._log()
            if self.step % run.eval_interval == 0 or is_last:
                request = self._evaluate()
                if request.stops and not is_last:
                    return request
            if self.step % run.save_interval == 0 and not is_last:
                self._save()
        return Request.NOTHING

    def _look_ahead(self) -> None:
        """Draws the next update's batches and begins to agree on it; None after the last."""
        self._next: tuple[list[dict[str, Tensor]], float, Callable[[], Agreement]] | None = None
        with self.profiler.span("data"):
            drawn = next(self._draws, None)
        if drawn is not None:
            (batches, num_targets), waited = drawn
            self._next = batches, waited, self.stop_requests.begin(num_targets)

    def _finish_first(self) -> None:
        """The first update of a session, in which kernels are loaded and perhaps compiled, is timed apart."""
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize(self.ranks.device)
        seconds = self._throughput.leave_out_first(self.step)
        if self.execution.compile:
            self._progress.write(f"step {self.step}: the first update, in which layers are compiled, took {seconds:.1f} s")

    def _draw(self, step: int) -> tuple[list[dict[str, Tensor]], int]:
        """This rank's micro batches of one update, packed, and how many slots they predict."""
        size = self.config.batch.micro_batch_size
        batches = [self.data.consecutive(first, size) for first in self._first_samples(step)]
        num_targets = sum(int((batch["predicted_positions"] >= 0).sum()) for batch in batches)
        return [pack(batch, self.ranks.device) for batch in batches], num_targets

    def _first_samples(self, step: int) -> list[int]:
        """Number of the first sample of each of this rank's micro batches of one update."""
        batch, ranks = self.config.batch, self.ranks
        parts = range(batch.accumulation_steps)
        offsets = [(part * ranks.world_size + ranks.rank) * batch.micro_batch_size for part in parts]
        return [(step - 1) * batch.global_batch_size + offset for offset in offsets]

    def _update(self, batches: list[dict[str, Tensor]], num_targets: int) -> None:
        optimization = self.recipe.optimization
        self.engine.set_learning_rate(
            learning_rate(self.step, optimization.learning_rate, optimization.warmup_steps, optimization.max_steps)
        )
        _seed(int(make_key(self.recipe.run.seed, self.step, self.ranks.rank)) >> 1, self.ranks.device)
        # DeepSpeed divides by the accumulation steps and averages over the ranks; this turns it into a sum again.
        scale = self.ranks.world_size * len(batches) / max(num_targets, 1)
        totals, correct = [], []
        for number, batch in enumerate(batches, 1):
            out = self.engine.forward(unpack(batch, self.ranks.device))
            if number == len(batches):
                self._look_ahead()  # the agreement travels while backward is computed
            total = out.loss * out.num_targets
            self.engine.backward(total * scale)
            totals.append(total.detach().double())
            correct.append(out.num_correct.double())
        sums = self.ranks.sum(torch.stack([torch.stack(totals).sum(), torch.stack(correct).sum()]))
        if self.engine.applied:
            self._skipped_in_a_row, self._loss_scale = 0, self.engine.loss_scale
            self._window.add(self.step, sums, num_targets)
            self._report_spikes(self._window.arrived())
        else:
            self._report_skipped(batches, totals, float(sums[0]) / max(num_targets, 1))

    def _report_spikes(self, spikes: list[Spike]) -> None:
        for spike in spikes:
            samples = self._samples_of(spike.step)
            self._event(spike.step, "loss_spike", loss=spike.loss, running_mean=spike.running_mean, samples=samples)
            self._warn(
                f"update {spike.step}: loss {spike.loss:.3f} is {spike.loss / spike.running_mean:.1f} times its running "
                f"mean {spike.running_mean:.3f} (samples {samples[0]} to {samples[1]})"
            )

    def _report_skipped(self, batches: list[dict[str, Tensor]], totals: list[Tensor], loss: float) -> None:
        """An update that was left out; raises ``TrainingFailed`` after too many in a row."""
        before, self._loss_scale = self._loss_scale, self.engine.loss_scale
        if self._loss_scale < before and math.isfinite(loss):
            # The gradient was scaled beyond fp16's reach, as happens at the start: DeepSpeed has lowered the scale.
            self._event(self.step, "loss_scale_lowered", loss_scale=self._loss_scale)
            return
        self._skipped += 1
        self._skipped_in_a_row += 1
        size, first_samples = self.config.batch.micro_batch_size, self._first_samples(self.step)
        not_finite = [first for first, total in zip(first_samples, totals, strict=True) if not torch.isfinite(total)]
        ranges = sorted([first, first + size - 1] for part in self.ranks.gather(not_finite) for first in part)
        what = "loss" if ranges else "gradient"
        samples = ranges or [self._samples_of(self.step)]
        row = self._skipped_in_a_row
        self._event(self.step, "skipped", what=what, samples=samples, in_a_row=row, skipped_updates=self._skipped)
        numbers = ", ".join(f"{first} to {last}" for first, last in samples)
        self._warn(f"update {self.step} skipped, {row} in a row: the {what} is not finite (samples {numbers})")
        if row >= self.recipe.run.max_skipped:
            kept = self._save_for_inspection(batches)
            raise TrainingFailed(
                f"the last {row} updates had no finite loss or gradient (run.max_skipped). {kept} A lower learning rate, or "
                "a look at these samples, may help; the same command goes on from the newest checkpoint."
            )

    def _samples_of(self, step: int) -> list[int]:
        """First and last sample of an update."""
        rows = self.config.batch.global_batch_size
        return [(step - 1) * rows, step * rows - 1]

    def _save_for_inspection(self, batches: list[dict[str, Tensor]]) -> str:
        """The state and the last batch, where no run takes them for a checkpoint; says where."""
        folder = self.start.output / INSPECTION
        try:
            checkpoint = CheckpointStore(folder).save(
                self.engine.deepspeed, self._info(), self._tokenizer_folder, self.disks
            )
            arrays = {f"{name}_{part}": array.numpy() for part, batch in enumerate(batches) for name, array in batch.items()}
            np.savez(folder / f"batch-rank-{self.ranks.rank:05d}.npz", **arrays)
        except (SaveFailed, OSError) as failure:
            return f"Its state could not be saved: {failure}."
        return f"Its state is in {checkpoint}, its last batch in {folder}."

    def _log(self) -> None:
        self._collect()  # meanwhile a GPU works on
        loss, accuracy, spikes = self._window.close()
        self._report_spikes(spikes)
        norm = self.engine.grad_norm
        line = {
            "step": self.step,
            "consumed_samples": self.consumed_samples,
            "loss": loss,
            "accuracy": accuracy,
            "learning_rate": self.engine.learning_rate,
            "grad_norm": None if norm is None else float(norm),
            **self._throughput.measure(self.step),
        }
        if self._skipped:
            line["skipped_updates"] = self._skipped
        self.metrics.write(line)
        last, rate = self.recipe.optimization.max_steps, self._throughput.updates_per_second
        self._progress.note(f"loss {loss:.3f}")
        self._progress.write(describe(line, last, (last - self.step) / rate if rate else math.inf))

    @torch.no_grad()
    def _evaluate(self) -> Request:
        """Mean loss over the first rows of the evaluation data, drawn alike each time; given up if the run is to stop.

        Returns what was asked of the run on the way.
        """
        request = Request.NOTHING
        if self.eval_data is None:
            return request
        window = LossWindow()
        micro, world = self.config.batch.micro_batch_size, self.ranks.world_size
        count = min(self.recipe.run.eval_samples, len(self.eval_data))
        engine = self.engine.deepspeed
        engine.eval()
        for first in range(0, count, micro * world):
            numbers = first + self.ranks.rank * micro + np.arange(micro)
            batch = self.eval_data.batch(numbers % len(self.eval_data))
            batch["predicted_positions"][numbers >= count] = -1  # every rank runs the same number of batches
            self.watchdog.beat("evaluating", self.step)
            agreement = self.stop_requests.agree(int((batch["predicted_positions"] >= 0).sum()))
            request = agreement.request
            if request.stops:
                break
            out = self.engine.forward(unpack(pack(batch, self.ranks.device), self.ranks.device))
            sums = torch.stack([(out.loss * out.num_targets).double(), out.num_correct.double()])
            window.add(self.step, self.ranks.sum(sums), agreement.num_targets)
        else:
            self._report_evaluation(*window.close()[:2])
        engine.train()
        self._collect()
        self._throughput.restart(self.step)
        return request

    def _report_evaluation(self, loss: float, accuracy: float) -> None:
        self._evaluated = (self.step, loss)
        counters = {"step": self.step, "consumed_samples": self.consumed_samples}
        self.metrics.write(counters | {"eval_loss": loss, "eval_accuracy": accuracy})
        self._progress.write(f"step {self.step}: held-out loss {loss:.4f}  accuracy {accuracy:.3f}")

    def _save(self) -> bool:
        """Whether it could be saved; if not, training goes on, and the older checkpoints are as they were."""
        self.watchdog.beat("saving", self.step)
        self._collect()
        try:
            self.store.save(self.engine.deepspeed, self._info(), self._tokenizer_folder, self.disks)
        except SaveFailed as failure:
            self._event(self.step, "save_failed", reason=str(failure))
            self._warn(f"update {self.step}: THE CHECKPOINT WAS NOT SAVED ({failure}). Older ones are kept.")
            return False
        finally:
            self._throughput.restart(self.step)
        self._saved_step = self.step
        return True

    def _info(self) -> CheckpointInfo:
        was_evaluated = self._evaluated is not None and self._evaluated[0] == self.step
        return CheckpointInfo(
            step=self.step,
            consumed_samples=self.consumed_samples,
            objective=self.recipe.objective,
            zero_stage=self.config.zero_stage,
            precision=self.config.precision,
            world_size=self.ranks.world_size,
            model_config=self.model_config.to_diff_dict(),
            seq_length=self.recipe.data.seq_length,
            identity=self.start.identity,
            eval_loss=self._evaluated[1] if was_evaluated and math.isfinite(self._evaluated[1]) else None,
            layout=layout(self.config.engine),
            losses={"window": self._window.state(), "skipped_updates": self._skipped},
        )

    @property
    def _tokenizer_folder(self) -> Path:
        return self.start.output / "tokenizer"

    def _event(self, step: int, event: str, **values) -> None:
        """A line of metrics.jsonl about something out of the ordinary."""
        consumed = step * self.config.batch.global_batch_size
        self.metrics.write({"step": step, "consumed_samples": consumed, "event": event, **values})

    def _warn(self, text: str) -> None:
        self._progress.write(f"warning: {text}", file=sys.stderr)


def _seed(seed: int, device: torch.device) -> None:
    """As ``torch.manual_seed``, which looks up source files for every kind of device that is not there."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
