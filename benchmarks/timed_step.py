"""Measure training steps, in processes of their own: what bench_step.py, bench_scaling.py and measure_gpu.py start.

    python benchmarks/timed_step.py ORDER RESULT        python launch/torchrun.py … benchmarks/timed_step.py ORDER RESULT
    python benchmarks/timed_step.py serve

A step is what training does for each micro-batch: take the next one from the prefetching thread, move it to the device,
forward, backward, optimizer step, in the engine that training builds. (Without the rest of training: agreeing on whether to
continue, logging, evaluation, checkpoints.) In this order:

1. the first step, including compilation and set-up;
2. two steps of warm-up;
3. ``steps`` steps as they run in training, the main figure: nothing waits for the device in between, and the marks between
   steps are events in the GPU's stream (on a CPU, the clock);
4. one step whose memory is measured;
5. ``steps`` steps in four parts, with a synchronisation after each: waiting for the batch and copying it to the device
   (data), forward, backward (with the overlapping reduction of gradients), and the optimizer step (with clipping, checks).
"""

import ctypes
import gc
import json
import os
import re
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import torch
from report import ROOT
from step_configuration import Configuration

from mpnet_ds.command_line import run
from mpnet_ds.config.deepspeed_config import EngineConfig
from mpnet_ds.config.recipe import Recipe
from mpnet_ds.errors import UserError
from mpnet_ds.models.attention.backend import choose_backend
from mpnet_ds.preflight.inputs import open_data
from mpnet_ds.ranks import process_group
from mpnet_ds.ranks.process_group import Ranks
from mpnet_ds.training.activation_checkpointing import SECTION, checkpointed_layers
from mpnet_ds.training.engine import Engine
from mpnet_ds.training.metrics import peak_flops, peak_memory
from mpnet_ds.training.prefetch import pack, prefetched, unpack
from mpnet_ds.training.schedule import learning_rate

WARMUP_STEPS = 2
PARTS = ("data", "forward", "backward", "optimizer")
GRACE = 20
"""Seconds that a measurement has to end after SIGTERM."""


class MeasurementFailed(Exception):
    """A measuring process failed: the reason in one line, and the end of its output."""

    def __init__(self, reason: str, output: str = ""):
        super().__init__(reason)
        self.output = output


# In the calling process


def measure_elsewhere(configuration: Configuration, data: str, steps: int, timeout: float | None = None) -> dict:
    """Run ``measure`` in new processes, one for each rank.

    Args:
        data: folder of a dataset.
        timeout: seconds after which it is aborted.
    Raises:
        UserError: the configuration is invalid.
        MeasurementFailed: a fault, such as too little memory, or out of time.
    """
    with tempfile.TemporaryDirectory(prefix="mpnet-step-") as work:
        order, result = Path(work, "order.json"), Path(work, "result.json")
        order.write_text(json.dumps({"configuration": asdict(configuration), "data": data, "steps": steps}))
        code, output = _call([*_launcher(configuration.ranks), __file__, str(order), str(result)], configuration, timeout)
        if code == 0:
            return json.loads(result.read_text())
    errors = re.findall(r"^(?:\[rank\d+\]: *)?error: (.+(?:\n +\d+\. .+)*)", output, re.MULTILINE)
    if code == 2 and errors:
        raise UserError(errors[0])
    raise MeasurementFailed(_reason(code, output), output[-4000:])


class Worker:
    """One process that measures configurations of one rank, one after the other, as imports take as long as many steps.

    A process that fails, or takes too long, is ended, and the next measurement starts another: a fault on a GPU can leave
    its process unusable.
    """

    def __init__(self):
        self._process: subprocess.Popen | None = None
        self._log = tempfile.TemporaryFile("w+", errors="replace")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.end()
        self._log.close()

    def measure(self, configuration: Configuration, data: str, steps: int, timeout: float, profile: bool = False) -> dict:
        """Return what ``measure`` finds, with ``profile`` the ``longest_kernels`` too; raises as ``measure_elsewhere``."""
        order = {"configuration": asdict(configuration), "data": data, "steps": steps, "profile": profile}
        if self._process is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log, "text": True}
            self._process = subprocess.Popen([sys.executable, __file__, "serve"], env=_environment(), **pipes)
        begin = self._log.seek(0, os.SEEK_END)
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline() if select.select([self._process.stdout], [], [], timeout)[0] else None
        answer = json.loads(line) if line else {}
        if "refused" in answer:
            raise UserError(answer["refused"])
        if "found" in answer:
            return answer["found"]
        code = self.end()
        self._log.seek(begin)
        said = self._log.read()
        raise MeasurementFailed(f"not done after {timeout:.0f} s" if line is None else _reason(code, said), said[-4000:])

    def end(self) -> int:
        """End the process, if there is one; return its exit code."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
        _end(process)
        process.stdout.close()
        return process.returncode


def _launcher(ranks: int) -> list[str]:
    if ranks == 1:
        return [sys.executable]
    options = ["--nproc-per-node", str(ranks), "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    return [sys.executable, str(ROOT / "launch" / "torchrun.py"), "--nnodes", "1", *options]


def free_port() -> int:
    """Find a free port of this host."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _call(command: list[str], configuration: Configuration, timeout: float | None) -> tuple[int, str]:
    """Run a command; return its exit code and output."""
    environment = _environment()
    environment |= {"OMP_NUM_THREADS": str(configuration.threads)} if configuration.threads else {}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    child = subprocess.Popen(command, env=environment, **pipes)
    try:
        output, _ = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise MeasurementFailed(f"not done after {timeout:.0f} s") from None
    finally:
        _end(child)
    return child.returncode, output


def _environment() -> dict[str, str]:
    """The variables of a process that imports the package from this checkout."""
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _end(child: subprocess.Popen) -> None:
    """End a process: a launcher takes its ranks with it on SIGTERM, but not when killed."""
    if child.poll() is None:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
        child.kill()
        child.wait()


def _reason(code: int, output: str) -> str:
    """Find the most informative line about a failure."""
    if "out of memory" in output or "not enough memory" in output or code == -signal.SIGKILL:
        return "out of memory"
    named = re.findall(r"^(?:\[rank\d+\]: *)?([\w.]*(?:Error|Exception)\b.*)", output, re.MULTILINE)
    return (named or output.strip().splitlines() or [""])[-1].strip() or f"exit code {code}"


# In the measuring process


def measure(configuration: Configuration, data_folder: str, steps: int, ranks: Ranks) -> dict:
    """Measure times in seconds (medians of ``steps``) and memory in bytes (the largest of all ranks); also return sizes."""
    with closing(steps_of(configuration, data_folder, ranks, total=2 + WARMUP_STEPS + 2 * steps)) as timed:
        described = describe(configuration, timed.recipe, timed.config, timed.data, ranks)
        return described | timed.measure(steps)


def steps_of(configuration: Configuration, data_folder: str, ranks: Ranks, total: int) -> "Steps":
    """Build the engine of a configuration, and ``total`` steps of it."""
    recipe = configuration.sized_recipe()
    config = configuration.engine_config(recipe, process_group.supported_precisions())
    data, _ = open_data([data_folder], None, recipe)
    torch.manual_seed(recipe.run.seed)
    module = recipe.objective.build(recipe.model, data.tokenizer, recipe.data.seq_length, configuration.attention)
    engine = Engine(module, config, recipe.optimization.weight_decay, compiled=configuration.compiled)
    return Steps(engine, data, recipe, config, ranks, total)


class Steps:
    """Training steps, one after another.

    Args:
        total: number of steps that will be made.
    """

    def __init__(self, engine: Engine, data, recipe: Recipe, config: EngineConfig, ranks: Ranks, total: int):
        self.engine, self.data, self.recipe, self.config, self.ranks = engine, data, recipe, config, ranks
        self.number = self.skipped = 0
        self.mark: Callable[[str], None] = lambda part: None
        """Called when a part of a step is done."""
        self._batches = prefetched(self._draw, 1, total)
        backward = engine.deepspeed.backward
        engine.deepspeed.backward = lambda *values, **named: (backward(*values, **named), self.mark("backward"))[0]

    def close(self) -> None:
        """End the thread that draws."""
        self._batches.close()

    def measure(self, steps: int) -> dict:
        """Measure as the top of the file says."""
        device = self.ranks.device
        begin = synchronised_clock(device)
        self.step()
        first = synchronised_clock(device) - begin
        for _ in range(WARMUP_STEPS):
            self.step()
        self.skipped = 0
        seconds = self.time(steps)
        skipped = self.skipped
        peak = peak_memory(device)
        held = memory_now(device)
        self.step()
        peak_of_step = peak_memory(device)
        parts = self.time_parts(steps)
        found = {"peak_bytes": max(peak, peak_of_step), "held_bytes": held}
        found["step_bytes"] = None if held is None else peak_of_step - held
        most = {name: max(values) for name, values in _columns(self.ranks.gather(found)).items() if None not in values}
        return {
            "steps": steps,
            "step_seconds": statistics.median(seconds),
            "all_step_seconds": seconds,
            "first_step_seconds": first,
            **{f"{part}_seconds": statistics.median(parts[part]) for part in PARTS},
            "skipped_steps": skipped,
            **found,
            **most,
        }

    def step(self) -> None:
        """Make one step of one micro-batch."""
        self.number += 1
        (batch, num_targets), _ = next(self._batches)
        batch = unpack(batch, self.ranks.device)
        self.mark("data")
        optimization = self.recipe.optimization
        rate = learning_rate(self.number, optimization.learning_rate, optimization.warmup_steps, optimization.max_steps)
        self.engine.set_learning_rate(rate)
        out = self.engine.forward(batch)
        self.mark("forward")
        self.engine.backward(out.sums.sum() / num_targets)
        self.mark("optimizer")
        self.skipped += not self.engine.applied

    def time(self, steps: int) -> list[float]:
        """Time steps as they run in training: seconds of each."""
        on_gpu = self.ranks.device.type == "cuda"
        synchronised_clock(self.ranks.device)
        marks = [_mark(on_gpu)]
        for _ in range(steps):
            self.step()
            marks.append(_mark(on_gpu))
        synchronised_clock(self.ranks.device)
        return [before.elapsed_time(after) / 1e3 if on_gpu else after - before for before, after in pairwise(marks)]

    def time_parts(self, steps: int) -> dict[str, list[float]]:
        """Time the parts of steps, synchronising after each: seconds of every one."""
        parts, last = defaultdict(list), synchronised_clock(self.ranks.device)

        def mark(part: str) -> None:
            nonlocal last
            now = synchronised_clock(self.ranks.device)
            parts[part].append(now - last)
            last = now

        self.mark = mark
        for _ in range(steps):
            self.step()
        self.mark = lambda part: None
        return parts

    def _draw(self, step: int) -> tuple[dict[str, torch.Tensor], int]:
        """Draw and pack this rank's batch as the trainer does; also return the number of its targets."""
        batch = self.config.batch
        first = (step - 1) * batch.global_batch_size + self.ranks.rank * batch.micro_batch_size
        drawn, objective = self.data.consecutive(first, batch.micro_batch_size), self.recipe.objective
        return pack(drawn, self.ranks.device, objective.omitted_if_true), sum(objective.num_targets(drawn))


def describe(configuration: Configuration, recipe: Recipe, config: EngineConfig, data, ranks: Ranks) -> dict:
    """Describe the configuration completely, with its sizes."""
    seq_length, device, objective, tokenizer = recipe.data.seq_length, ranks.device, recipe.objective, data.tokenizer
    layers, section, sequences = recipe.model.num_hidden_layers, config.engine.get(SECTION), config.batch.micro_batch_size
    sizes = objective.sizes(recipe.model, tokenizer, seq_length, sequences)
    again = 0 if section is None else len(checkpointed_layers(layers, section.get("number_checkpoints")))
    return asdict(configuration) | {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "attention": choose_backend(configuration.attention, device).name,
        "attention_dropout": recipe.model.attention_probs_dropout_prob,
        "precision": config.precision,
        "zero_stage": config.zero_stage,
        "optimizer": config.engine["optimizer"]["type"],
        "checkpointed_layers": again,
        "micro_batch_size": sequences,
        "objective": objective.name,
        "layers": layers,
        "hidden_size": recipe.model.hidden_size,
        "vocab_size": tokenizer.vocab_size,
        "seq_length": seq_length,
        "predicted": objective.num_targets(data.batch([0]))[0],
        "parameters": sizes.parameters,
        "tokens_per_sequence": data.tokens_per_sequence,
        # Of a rank's step; what is recomputed in backward counts once.
        "flops": sequences * sizes.flops_per_sequence,
        "peak_flops": peak_flops(device, config.precision),
        "ranks": ranks.world_size,
        "threads": torch.get_num_threads(),
    }


def synchronised_clock(device: torch.device) -> float:
    """Wait for the device, and return the time in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _mark(on_gpu: bool):
    if not on_gpu:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def memory_now(device: torch.device) -> int | None:
    """Return the bytes in use, and reset the peak; None if the kernel does not allow that."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # returns what the allocator keeps of earlier steps
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def _columns(rows: list[dict]) -> dict[str, list]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def longest_kernels(
    configuration: Configuration, data_folder: str, ranks: Ranks, steps: int = 3, count: int = 30
) -> list[dict]:
    """Profile steps; return the kernels (on a CPU operators) that take longest: name, launches and seconds of a step."""
    with closing(steps_of(configuration, data_folder, ranks, total=WARMUP_STEPS + steps)) as timed:
        for _ in range(WARMUP_STEPS):
            timed.step()
        with torch.profiler.profile() as profile:
            for _ in range(steps):
                timed.step()
            synchronised_clock(ranks.device)
    on_gpu = ranks.device.type == "cuda"
    found = [
        {
            "name": event.key,
            "launches": event.count / steps,
            "seconds": (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6 / steps,
        }
        for event in profile.key_averages()
        if not on_gpu or event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return sorted(found, key=lambda kernel: -kernel["seconds"])[:count]


def serve() -> None:
    """Measure what each line of standard input orders; answer with a line of standard output. A fault ends the process."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    ranks = process_group.start()
    for line in sys.stdin:
        order = json.loads(line)
        configuration, data = Configuration(**order["configuration"]), order["data"]
        memory_now(ranks.device)  # the peak of others does not count
        try:
            answer = {"found": measure(configuration, data, order["steps"], ranks)}
            if order["profile"]:
                answer["found"]["kernels"] = longest_kernels(configuration, data, ranks)
        except UserError as error:
            answer = {"refused": str(error)}
        gc.collect()
        if ranks.device.type == "cuda":
            torch.cuda.empty_cache()
        print(json.dumps(answer), file=answers, flush=True)
    process_group.stop()
    os._exit(0)


def main() -> None:
    if sys.argv[1:] == ["serve"]:
        serve()
    order = json.loads(Path(sys.argv[1]).read_text())
    ranks = process_group.start()
    try:
        found = measure(Configuration(**order["configuration"]), order["data"], order["steps"], ranks)
        ranks.on_main(lambda: Path(sys.argv[2]).write_text(json.dumps(found)))
    except UserError:
        process_group.stop()  # not after a fault: the other ranks may wait in a collective
        raise
    process_group.stop()
    os._exit(0)  # gloo's threads sometimes abort a process that exits normally; everything is written


if __name__ == "__main__":
    run(main)
