"""The training loop around a DeepSpeed engine.

One step takes the next ``global_batch_size`` samples of the endless order. Accumulation step ``a`` of rank ``r`` takes
sequences ``(a * ranks + r) * micro`` and following of them, so that the samples of a step, and their order, are the same at
any number of ranks. Each term of the loss is the mean over all its targets in the global batch, also where sequences have
unequal numbers of them. Dropout of the toolkit's own layers follows from (seed, step, number of the sequence); PyTorch's own
randomness from (seed, step, rank).

Before each step the ranks agree on whether to continue (stop_requests.py); the agreement starts as soon as the last forward
pass of the step before is launched. A step whose loss or gradient is not finite, or in which no token is predicted, changes
nothing, but consumes its samples.
The code here waits for the device only after a session's first step, to log, to evaluate and to save; DeepSpeed's optimizers
(in fp32 at ZeRO 0 engine.py) do so once a step, to check that the gradient is finite.
"""

import math
import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mpnet_ds import start_up
from mpnet_ds.checkpoint.store import CheckpointInfo, CheckpointStore, SaveFailed, read_info
from mpnet_ds.config.deepspeed_config import layout
from mpnet_ds.counter_rng import make_key
from mpnet_ds.files import replacing
from mpnet_ds.models.module import PretrainingModule, Scores
from mpnet_ds.preflight.plan import RunPlan
from mpnet_ds.progress import Progress
from mpnet_ds.ranks.disks import Disks
from mpnet_ds.ranks.stop_requests import Agreement, Request, StopRequests
from mpnet_ds.ranks.watchdog import Watchdog
from mpnet_ds.training.engine import Engine
from mpnet_ds.training.garbage import collected_by_hand
from mpnet_ds.training.loss_window import LossWindow, Spike, totals_of
from mpnet_ds.training.metrics import MetricsWriter, Throughput, describe
from mpnet_ds.training.plateau import Plateau, due_step
from mpnet_ds.training.prefetch import pack, prefetched, unpack
from mpnet_ds.training.profile import Profiler
from mpnet_ds.training.saving import Saving
from mpnet_ds.training.schedule import learning_rate
from mpnet_ds.zero.checkpoint_reader import ZeroCheckpoint
from mpnet_ds.zero.load_converted import load_weights

INSPECTION = "inspection"
"""Subfolder of the output where a run that gave up leaves its state."""

UNKNOWN_WIDTH = 60
"""Columns of a step's line where there is no terminal and no ``COLUMNS``."""

_NOT_FINITE = (
    "had no finite loss or gradient",
    "A lower learning rate or a look at these samples may help; the same command resumes from the newest checkpoint.",
)
SKIPPED = {
    "loss": ("the loss is not finite", *_NOT_FINITE),
    "gradient": ("the gradient is not finite", *_NOT_FINITE),
    "targets": (
        "no token can be predicted",
        "had no token to predict",
        "The sequences are too short, or all their tokens are unknown or special: inspect_dataset shows them.",
    ),
}
"""Why a step is skipped; what is said of many such steps; what to do."""
EVENTS = {"left": "left_word_frequencies", "stuck": "still_at_word_frequencies"}
CURES = (
    "Known causes: the usual initial values (--set model.start=near), a learning rate that is too low or too high, repeated "
    'lines in the text, too few tokens. docs/training.md, "Does it learn?", tells them apart.'
)


@dataclass
class Outcome:
    """How training ended."""

    step: int
    request: Request = Request.NOTHING
    """What made it end before the last step, if anything."""
    failure: str = ""
    """Why it gave up, in words."""
    is_saved: bool = True
    """Whether the last step is in a checkpoint."""
    lost: str = ""
    """What no checkpoint holds, in words, if it is not."""


class TrainingFailed(Exception):
    """Training no longer makes progress; raised on all ranks."""


class Drawn(NamedTuple):
    """A step's batches on this rank, in host memory."""

    batches: list[dict[str, Tensor]]
    num_targets: list[int]
    """Targets of each term on this rank."""
    seconds_waited: float
    agree: Callable[[], Agreement]
    """Wait for what all ranks say about this step."""


class Trainer:
    """One run: ``Trainer(…).train()``. Every rank builds one, inside its watchdog's ``with`` block."""

    def __init__(self, plan: RunPlan, module: PretrainingModule, disks: Disks, watchdog: Watchdog):
        recipe, config, start, ranks = plan.recipe, plan.engine, plan.start, disks.ranks
        self.plan, self.recipe, self.config, self.objective = plan, recipe, config, recipe.objective
        self.ranks, self.disks, self.start, self.watchdog = ranks, disks, start, watchdog
        self.store = CheckpointStore(start.output, recipe.run.keep)
        if start.conversion:
            load_weights(module, ZeroCheckpoint(start.checkpoint))
        module.dropout_seed = recipe.run.seed
        start_up.enter("building DeepSpeed's engine")
        self.engine = Engine(module, config, recipe.optimization.weight_decay, disks, plan.execution.compile)
        if start.checkpoint is not None:
            start_up.enter("loading the checkpoint")
            self.engine.load(start.checkpoint, convert=bool(start.conversion))
        self.step = start.step
        self.saving = Saving(self.store, start, disks, self._attempt_to_save, self._report_failed_save)
        self.stop_requests = StopRequests(start.output, ranks)
        first = self.step + 1 if start.checkpoint else 0
        self.metrics = MetricsWriter(start.output, config.monitors, ranks.is_main, first_step=first)
        if start.checkpoint is not None:
            came_from = {"checkpoint": start.checkpoint.name, "changes": plan.changes or {}}
            self._event(self.step, "resumed", **came_from, withdrawn=self.metrics.withdrawn)
        self._progress = Progress(
            "Training", recipe.optimization.max_steps, "step", self.step, enabled=ranks.is_main, plain_lines=False
        )
        self.profiler = Profiler(start.output, plan.execution.profile, ranks.rank, ranks.device, self._progress.write)
        self.engine.span = self.profiler.span
        self._window = LossWindow(self.objective, recipe.run.spike_factor)
        steps, batch, tokens = recipe.optimization, config.batch.global_batch_size, plan.data.tokens_per_sequence
        self._plateau = Plateau(plan.unigram, due_step(steps.max_steps, steps.warmup_steps, batch * tokens))
        self._evaluated: tuple[int, float] | None = None  # step and loss
        self._skipped = self._skipped_in_a_row = 0
        self._loss_scale = self.engine.loss_scale
        if start.checkpoint is not None:
            self._remember(read_info(start.checkpoint))
        self._throughput = Throughput(plan.sizes.flops_per_sequence, batch, tokens, ranks, config.precision)

    def _remember(self, info: CheckpointInfo) -> None:
        """Restore the state of the losses at the checkpoint."""
        if info.losses:
            self._window.restore(info.losses["window"])
            self._skipped = info.losses["skipped_steps"]
            self._plateau.restore(info.losses.get("plateau", self._plateau.state()))  # older versions had none
        if info.eval_loss is not None:
            self._evaluated = (info.step, info.eval_loss)

    @property
    def consumed_samples(self) -> int:
        """Sequences since the first step: the whole state of the data order."""
        return self.step * self.config.batch.global_batch_size

    def train(self) -> Outcome:
        """Train to the recipe's last step, or until asked to stop; evaluate and save on the way and at the end."""
        with self._progress, self.stop_requests, closing(self.profiler), collected_by_hand() as self._collect:
            outcome = self._train()
        self.metrics.close()
        return outcome

    def _train(self) -> Outcome:
        if self._evaluated is None and self.step % self.recipe.run.eval_interval == 0:
            if self.plan.eval_data is not None:
                start_up.enter("evaluating before the first step")
            self._evaluate()  # at the beginning, or if the run was stopped before it did
        start_up.enter("the first step")
        self._throughput.restart(self.step)
        try:
            request = self._train_steps()
        except TrainingFailed as failure:
            return Outcome(self.step, failure=str(failure), is_saved=False)
        is_saved = self.saving.saved_step == self.step or self.saving.save_last(self.step)
        self.stop_requests.answered(request)
        return Outcome(self.step, request, is_saved=is_saved, lost="" if is_saved else self.saving.describe_loss(self.step))

    def _train_steps(self) -> Request:
        """Train to the last step; return the request that ended it earlier, or ``NOTHING``."""
        run, first, last = self.recipe.run, self.step + 1, self.recipe.optimization.max_steps
        with closing(prefetched(self._draw, first, last)) as self._draws:
            self.watchdog.beat("drawing data", first)
            self._look_ahead()
            while self._next is not None:
                # All ranks agree on what comes next: a stop, a save, or the next step and its number of targets.
                drawn = self._next
                self.profiler.begin(self.step + 1)
                self.watchdog.beat("agreeing", self.step + 1)
                with self.profiler.span("agreement"):
                    agreement = drawn.agree()
                if agreement.request.stops:
                    return agreement.request
                if agreement.request == Request.SAVE:
                    if self.saving.saved_step < self.step:
                        self._save()
                    self.stop_requests.answered(agreement.request)

                # The step itself.
                self._throughput.waited += drawn.seconds_waited
                self._throughput.predicted += agreement.num_targets[0]
                self.step += 1
                self.watchdog.beat("training", self.step)
                if any(agreement.num_targets):
                    self.train_step(drawn.batches, agreement.num_targets)
                else:
                    self._skip_without_targets(drawn.batches)
                self.profiler.done(self.step)
                self._progress.update()
                if self.step == first:
                    self._finish_first()

                # What is due after it.
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

    def train_step(self, batches: list[dict[str, Tensor]], num_targets: list[int]) -> None:
        """Make one optimizer step.

        Args:
            batches: this rank's micro-batches, in host memory.
            num_targets: of each term, in the global batch.
        """
        # The learning rate, and a seed of PyTorch's generator for what draws from it: transformers' models.
        optimization, device, objective = self.recipe.optimization, self.ranks.device, self.objective.at(self.step)
        self.engine.set_learning_rate(
            learning_rate(self.step, optimization.learning_rate, optimization.warmup_steps, optimization.max_steps)
        )
        _seed(int(make_key(self.recipe.run.seed, self.step, self.ranks.rank)) >> 1, device)

        # The loss is a sum over terms of weight × mean over the term's targets in the global batch. DeepSpeed divides by the
        # accumulation steps and averages over the ranks; the factor turns that into a sum again.
        factor = self.ranks.world_size * len(batches)
        weights = [factor * term.weight / max(n, 1) for term, n in zip(objective.terms, num_targets, strict=True)]

        # Forward and backward of each micro-batch; the backward call of the last one also updates the weights.
        totals, losses = [], []
        for number, batch in enumerate(batches, 1):
            out = self.engine.forward(unpack(batch, device))
            if number == len(batches):
                self._look_ahead()  # the agreement on the next step travels while backward is computed
            loss = sum(weight * total for weight, total in zip(weights, out.sums.unbind(), strict=True))
            self.engine.backward(loss)
            totals.append(totals_of(out))  # and nothing else of it: its tensors would live until the end of the step
            losses.append(loss.detach())
            counts = out.counts
            del out, loss

        # Totals of all ranks, for the log; a step that is not finite was skipped.
        total = self.ranks.sum(torch.stack(totals).sum(0))
        if self.engine.applied:
            self._skipped_in_a_row, self._loss_scale = 0, self.engine.loss_scale
            self._window.add(self.step, total, num_targets, counts)
            self._report_spikes(self._window.arrived())
        else:
            self._report_skipped(batches, losses, bool(torch.isfinite(total[: len(num_targets)]).all()))

    def _skip_without_targets(self, batches: list[dict[str, Tensor]]) -> None:
        """Leave out a step in which no rank predicts a token: only weight decay and momentum would change the weights."""
        self._look_ahead()
        self.engine.skip()
        self._count_skipped(batches, "targets", [self._samples_of(self.step)])

    def _look_ahead(self) -> None:
        """Draw the next step's batches and start the agreement on it; None after the last."""
        self._next: Drawn | None = None
        with self.profiler.span("data"):
            drawn = next(self._draws, None)
        if drawn is not None:
            (batches, num_targets), waited = drawn
            self._next = Drawn(batches, num_targets, waited, self.stop_requests.begin(num_targets))

    def _finish_first(self) -> None:
        """Time the session's first step apart: it loads and perhaps compiles kernels."""
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize(self.ranks.device)
        start_up.end()
        seconds = self._throughput.leave_out_first(self.step)
        if self.plan.execution.compile:
            self._progress.write(f"step {self.step}: the first step, in which layers are compiled, took {seconds:.1f} s")

    def _draw(self, step: int) -> tuple[list[dict[str, Tensor]], list[int]]:
        """Draw this rank's micro-batches of a step, packed, and count each term's targets in them."""
        size, first_of_step = self.config.batch.micro_batch_size, (step - 1) * self.config.batch.global_batch_size
        packed, targets, objective = [], [], self.objective.at(step)
        for first in self._first_samples(step):
            batch = self.plan.data.consecutive(first, size, objective)
            targets.append(objective.num_targets(batch))
            packed.append(self._pack(batch, first - first_of_step + np.arange(size), step))
        return packed, [sum(counts) for counts in zip(*targets, strict=True)]

    def _pack(self, batch: dict[str, np.ndarray], numbers: np.ndarray, step: int) -> dict[str, Tensor]:
        """Pack a batch for the device, with the numbers of its sequences in the global batch and the step."""
        numbered = batch | {"sequence_numbers": numbers, "step": np.array(step)}
        return pack(numbered, self.ranks.device, self.objective.omitted_if_true)

    def _first_samples(self, step: int) -> list[int]:
        """Index of the first sample of each of this rank's micro-batches of a step."""
        batch, ranks = self.config.batch, self.ranks
        parts = range(batch.accumulation_steps)
        offsets = [(part * ranks.world_size + ranks.rank) * batch.micro_batch_size for part in parts]
        return [(step - 1) * batch.global_batch_size + offset for offset in offsets]

    def _report_spikes(self, spikes: list[Spike]) -> None:
        for spike in spikes:
            samples = self._samples_of(spike.step)
            self._event(spike.step, "loss_spike", loss=spike.loss, running_mean=spike.running_mean, samples=samples)
            self._warn(
                f"step {spike.step}: loss {spike.loss:.3f} is {spike.loss / spike.running_mean:.1f} times its running "
                f"mean {spike.running_mean:.3f} (samples {samples[0]} to {samples[1]})"
            )

    def _report_skipped(self, batches: list[dict[str, Tensor]], losses: list[Tensor], is_loss_finite: bool) -> None:
        """Report a step whose loss or gradient was not finite."""
        before, self._loss_scale = self._loss_scale, self.engine.loss_scale
        if self._loss_scale < before and is_loss_finite:
            # The scaled gradient overflowed in fp16, as happens at the start: DeepSpeed has lowered the scale.
            self._event(self.step, "loss_scale_lowered", loss_scale=self._loss_scale)
            return
        size, first_samples = self.config.batch.micro_batch_size, self._first_samples(self.step)
        not_finite = [first for first, loss in zip(first_samples, losses, strict=True) if not torch.isfinite(loss)]
        ranges = sorted([first, first + size - 1] for part in self.ranks.gather(not_finite) for first in part)
        self._count_skipped(batches, "loss" if ranges else "gradient", ranges or [self._samples_of(self.step)])

    def _count_skipped(self, batches: list[dict[str, Tensor]], what: str, samples: list[list[int]]) -> None:
        """Report and count a skipped step; raise ``TrainingFailed`` after too many in a row, or if there was no other."""
        self._skipped += 1
        self._skipped_in_a_row += 1
        in_a_row = self._skipped_in_a_row
        self._event(self.step, "skipped", what=what, samples=samples, in_a_row=in_a_row, skipped_steps=self._skipped)
        numbers = ", ".join(f"{first} to {last}" for first, last in samples)
        reason, of_many, cure = SKIPPED[what]
        self._warn(f"step {self.step} skipped, {in_a_row} in a row: {reason} (samples {numbers})")
        is_limit = in_a_row >= self.recipe.run.max_skipped
        if is_limit or self._skipped >= self.recipe.optimization.max_steps:
            steps = f"the last {in_a_row} steps {of_many} (run.max_skipped)" if is_limit else f"all steps {of_many}"
            raise TrainingFailed(f"{steps}. {self._save_for_inspection(batches)} {cure}")

    def _samples_of(self, step: int) -> list[int]:
        """First and last sample of a step."""
        size = self.config.batch.global_batch_size
        return [(step - 1) * size, step * size - 1]

    def _save_for_inspection(self, batches: list[dict[str, Tensor]]) -> str:
        """Save the state and the last batch where no run mistakes them for a checkpoint; return where, in words."""
        folder = self.start.output / INSPECTION
        try:
            checkpoint = CheckpointStore(folder).save(
                self.engine.deepspeed, self._info(), self._tokenizer_folder, self.disks
            )
        except SaveFailed as failure:
            return f"Its state could not be saved: {failure}."
        reasons = list(filter(None, self.ranks.gather(self._write_batch(folder, batches))))
        batch = f"its last batch could not be saved ({reasons[0]})" if reasons else f"its last batch in {folder}"
        return f"Its state is in {checkpoint}, {batch}."

    def _write_batch(self, folder: Path, batches: list[dict[str, Tensor]]) -> str:
        """Write this rank's part of a batch; return the reason if that fails."""
        arrays = {f"{name}_{part}": array.numpy() for part, batch in enumerate(batches) for name, array in batch.items()}
        try:
            with replacing(folder / f"batch-rank-{self.ranks.rank:05d}.npz") as unfinished, open(unfinished, "wb") as file:
                np.savez(file, **arrays)
        except OSError as error:
            return str(error)
        return ""

    def _log(self) -> None:
        self._collect()  # meanwhile a GPU is busy
        losses, spikes = self._window.close()
        self._report_spikes(spikes)
        norm = self.engine.grad_norm
        line = {
            "step": self.step,
            "consumed_samples": self.consumed_samples,
            **losses,
            "learning_rate": self.engine.learning_rate,
            "grad_norm": None if norm is None else float(norm),
            **self._throughput.measure(self.step),
        }
        if self._skipped:
            line["skipped_steps"] = self._skipped
        if self.plan.unigram is not None:
            line["unigram_loss"] = self.plan.unigram.expected
        self.metrics.write(line)
        if self.plan.eval_data is None:
            self._judge(losses, self.plan.unigram and self.plan.unigram.expected)
        last, rate = self.recipe.optimization.max_steps, self._throughput.steps_per_second
        self._progress.note(f"loss {losses['loss']:.3f}" if math.isfinite(losses["loss"]) else "")
        seconds_left = (last - self.step) / rate if rate else math.inf
        self._progress.write(describe(line, last, seconds_left, shutil.get_terminal_size((UNKNOWN_WIDTH, 0)).columns))

    @torch.no_grad()
    def _evaluate(self) -> Request:
        """Evaluate on the first sequences of the evaluation data, drawn alike each time; give up if asked to stop.

        Returns the request that arrived meanwhile.
        """
        request, data = Request.NOTHING, self.plan.eval_data
        if data is None:
            return request
        objective = self.objective.at(self.recipe.optimization.max_steps)  # as the evaluation data are drawn
        window = LossWindow(objective)
        micro, world = self.config.batch.micro_batch_size, self.ranks.world_size
        count = min(self.recipe.run.eval_samples, len(data))
        engine = self.engine.deepspeed
        engine.eval()
        of_words = np.zeros(2)  # sum of the losses of word frequencies alone, and their number
        for first in range(0, count, micro * world):
            numbers = first + self.ranks.rank * micro + np.arange(micro)
            # Every rank runs the same number of batches: sequences beyond the last have no targets.
            batch = objective.without_targets(data.batch(numbers % len(data)), numbers >= count)
            if self.plan.unigram is not None:
                of_words += self.plan.unigram.sum_of(objective.target_ids(batch))
            self.watchdog.beat("evaluating", self.step)
            agreement = self.stop_requests.agree(objective.num_targets(batch))
            request = agreement.request
            if request.stops:
                break
            out: Scores = self.engine.forward(unpack(self._pack(batch, numbers, self.step), self.ranks.device))
            window.add(self.step, self.ranks.sum(totals_of(out)), agreement.num_targets, out.counts)
        else:
            total, number = self.ranks.sum(torch.tensor(of_words, device=self.ranks.device)).tolist()
            self._report_evaluation(window.close()[0], total / number if number else None)
        engine.train()
        self._collect()
        self._throughput.restart(self.step)
        return request

    def _report_evaluation(self, losses: dict[str, float], level: float | None) -> None:
        """Write and print an evaluation; ``level``: the loss of word frequencies alone on the same targets, if known."""
        if not any(name.startswith("loss/") for name in losses):
            self._event(self.step, "not_evaluated", reason=SKIPPED["targets"][0])
            self._warn(f"step {self.step}: no validation loss, because {SKIPPED['targets'][0]} in the evaluation data.")
            return
        self._evaluated = (self.step, losses["loss"])
        counters = {"step": self.step, "consumed_samples": self.consumed_samples}
        levels = {} if level is None else {"unigram_loss": level}
        self.metrics.write(counters | {f"eval_{name}": value for name, value in (losses | levels).items()})
        shown = f"validation loss {losses['loss']:.4f}  accuracy {losses['accuracy']:.3f}"
        if "masked_loss" in losses:
            shown += f"  on <mask> {losses['masked_loss']:.4f}"
        self._progress.write(f"step {self.step}: {shown}")
        self._judge(losses, level)

    def _judge(self, losses: dict[str, float], level: float | None) -> None:
        """Say when the run leaves the loss of word frequencies alone, ``level``, and once if it should have."""
        if level is None:
            return
        loss = losses.get("masked_loss", losses["loss"])
        found = self._plateau.judge(self.step, loss, level)
        if found:
            self._event(self.step, EVENTS[found], loss=loss, unigram_loss=level)
        if found == "left":
            self._progress.write(f"step {self.step}: the loss is below that of word frequencies alone, {level:.4f}")
        if found == "stuck":
            self._warn(
                f"step {self.step}: the loss, {loss:.4f}, is still that of word frequencies alone, {level:.4f}. {CURES}"
            )

    def _save(self) -> None:
        """Save a checkpoint; raise ``TrainingFailed`` if saves fail again and again."""
        if not self.saving.save(self.step) and self.saving.is_hopeless:
            lost = self.saving.describe_loss(self.step)
            raise TrainingFailed(f"none of the {self.saving.num_failures} saves has succeeded, {lost}")

    def _attempt_to_save(self) -> None:
        self.watchdog.beat("saving", self.step)
        self._collect()
        try:
            self.store.save(self.engine.deepspeed, self._info(), self._tokenizer_folder, self.disks)
        finally:
            self._throughput.restart(self.step)

    def _report_failed_save(self, step: int, reason: str, newest: Path | None) -> None:
        self._event(step, "save_failed", reason=reason)
        older = f"the newest is {newest}" if newest else "there is no older one"
        self._warn(f"step {step}: THE CHECKPOINT WAS NOT SAVED ({reason}); {older}.")

    def _info(self) -> CheckpointInfo:
        was_evaluated = self._evaluated is not None and self._evaluated[0] == self.step
        return CheckpointInfo(
            step=self.step,
            consumed_samples=self.consumed_samples,
            objective=self.objective.section(),
            zero_stage=self.config.zero_stage,
            precision=self.config.precision,
            world_size=self.ranks.world_size,
            model=asdict(self.recipe.model),
            vocab_size=self.plan.data.tokenizer.vocab_size,
            seq_length=self.recipe.data.seq_length,
            identity=self.start.identity,
            eval_loss=self._evaluated[1] if was_evaluated and math.isfinite(self._evaluated[1]) else None,
            layout=layout(self.config.engine),
            losses={
                "window": self._window.state(),
                "skipped_steps": self._skipped,
                "plateau": self._plateau.state(),
            },
        )

    @property
    def _tokenizer_folder(self) -> Path:
        return self.start.output / "tokenizer"

    def _event(self, step: int, event: str, **values) -> None:
        """Write a line about something unusual to metrics.jsonl."""
        consumed = step * self.config.batch.global_batch_size
        self.metrics.write({"step": step, "consumed_samples": consumed, "event": event, **values})

    def _warn(self, text: str) -> None:
        self._progress.write(f"warning: {text}", file=sys.stderr)


def _seed(seed: int, device: torch.device) -> None:
    """Seed as ``torch.manual_seed``, which looks up source files for every kind of device that is absent."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
