"""Test and measure everything on this machine's GPU in limited time: python benchmarks/measure_gpu.py --minutes 9

First tests of the models: parity with the original's numbers, and the kernels of this project for heads of 64; then
training steps, the most valuable first: every attention back-end that the device has, at a micro-batch that fills it, with
and without dropout on its probabilities (FlexAttention has none, and is measured without it throughout), other
micro-batches, ``torch.compile``, fp16, ZeRO 0, Muon, activation checkpointing, and finally combinations of all; at last the
kernels of the fastest that take longest. One process measures one configuration after the other. Nothing is started that
would not finish in time. A failure (too little memory, a back-end that this device does not have) is reported and does not
end the program.

Writes ``MODEL_HARDWARE_DATE.md`` and ``.json`` into benchmarks/results, again after each measurement: whatever ends the
program, earlier measurements are kept. Without a GPU it does the same on CPUs, for a small ``--recipe``.
"""

import re
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from types import MappingProxyType

import torch
from bench_step import COLUMNS, FIGURES, derive, middle, name_of
from random_dataset import VOCAB_SIZE, make_dataset
from report import NO_FIGURE, ROOT, environment, markdown_table, print_table, write_results
from step_configuration import TOKENS, Configuration, positive
from timed_step import MeasurementFailed, Worker

from mpnet_ds.attention_backends import AUTO, BACKENDS
from mpnet_ds.command_line import Parser, run
from mpnet_ds.errors import UserError
from mpnet_ds.files import write_atomically
from mpnet_ds.models.attention.backend import choose_backend
from mpnet_ds.quiet import quiet_libraries
from mpnet_ds.validation import shorten

RESULTS = ROOT / "benchmarks" / "results"
TESTS = ("tests/models/test_parity.py", "tests/models/attention/test_triton.py", "tests/models/layers/test_on_a_gpu.py")
"""A choice: all of them compile kernels for minutes."""
KEYWORDS = "test_parity or test_on_a_gpu.py or [64- or bit_for_bit"
SHARE_OF_TESTS = 0.3
"""Largest share of the time that tests get."""
SECONDS_TO_PROFILE = 40.0
"""Kept for the end."""
FIRST_GUESS = 40.0
"""Expected seconds of the first measurement."""
COMPILING = 2.0
"""Expected ratio of a compiled measurement to others, before the first one."""
WITHOUT_DROPOUT = {"attention_dropout": 0.0}
ALL_BACKENDS = MappingProxyType({name: {} for name in BACKENDS if name != AUTO})
NAMED = (
    "attention",
    "attention_dropout",
    "precision",
    "zero_stage",
    "optimizer",
    "checkpointed_layers",
    "compiled",
    "micro_batch_size",
)


def main() -> int:
    parser = Parser("Test and measure on a GPU, in limited time.", "python benchmarks/measure_gpu.py --minutes 9")
    parser.add_argument("--minutes", type=float, default=9.0, metavar="X", help="time limit (9)")
    parser.add_argument("--recipe", default="mpnet-base", metavar="NAME|FILE", help="mpnet-base")
    help = "sequences (32 64 128)"
    parser.add_argument("--micro_batch_size", type=positive, nargs="+", default=[32, 64, 128], metavar="N", help=help)
    parser.add_argument("--steps", type=positive, default=10, metavar="N", help="steps of a median (10)")
    parser.add_argument("--vocab_size", type=positive, default=VOCAB_SIZE, metavar="N", help=f"of random ids ({VOCAB_SIZE})")
    parser.add_argument("--folder", type=Path, default=RESULTS, metavar="DIR", help="for the results (benchmarks/results)")
    parser.add_argument("--no_tests", action="store_true", help="measure only")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        raise UserError(f"no folder {arguments.folder}: make it, or name another with --folder.")
    quiet_libraries()
    deadline = time.monotonic() + 60 * arguments.minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backends = backends_of(device, Configuration(arguments.recipe))
    plan = list(plan_of(arguments.recipe, arguments.micro_batch_size, choose_backend(AUTO, device).name, backends))
    for configuration in plan:
        configuration.check()
    found = Findings(arguments, left_out=[label(configuration) for configuration in plan])
    if not arguments.no_tests:
        found.tests, found.tests_passed = run_tests(SHARE_OF_TESTS * 60 * arguments.minutes)
        found.write()
    with tempfile.TemporaryDirectory(prefix="mpnet-gpu-") as work, Worker() as worker:
        make_dataset(Path(work) / "data", TOKENS, 1, arguments.vocab_size)
        measure = partial(worker.measure, data=f"{work}/data", steps=arguments.steps)
        fastest = measure_plan(plan, found, deadline - SECONDS_TO_PROFILE, measure)
        if fastest is not None:
            profile_steps(fastest, found, deadline, measure)
    found.write()
    found.show()
    return 0 if found.rows and found.tests_passed else 1


def backends_of(device: torch.device, configuration: Configuration) -> dict[str, dict]:
    """Find attention back-ends that can train such a model on the device, and the changes that each needs."""
    found = {}
    for name, change in product(ALL_BACKENDS, ({}, WITHOUT_DROPOUT)):
        sizes = replace(configuration, **change).sized_recipe().model.config(VOCAB_SIZE)
        with suppress(UserError):  # unavailable, or only without dropout, which comes second
            choose_backend(name, device).check(device, sizes)
            found.setdefault(name, change)
    return found


def plan_of(
    recipe: str, micro_batches: list[int], attention: str, backends: Mapping[str, dict] = ALL_BACKENDS
) -> Iterator[Configuration]:
    """Yield configurations, the most valuable first, none twice.

    Args:
        attention: the back-end that ``auto`` stands for.
        backends: from ``backends_of``.
    """
    seen = set()
    for values in _wishes(micro_batches, attention, list(backends)):
        configuration = Configuration(recipe=recipe, **backends.get(values["attention"], {}) | values)
        if configuration not in seen:
            seen.add(configuration)
            yield configuration


def label(configuration: Configuration) -> str:
    """Name a configuration among those of the same recipe."""
    return name_of(replace(configuration, recipe=Configuration.recipe))


def _wishes(micro_batches: list[int], attention: str, own: list[str]) -> Iterator[dict]:
    middle_one = sorted(micro_batches)[len(micro_batches) // 2]
    usual = {"attention": attention, "precision": "bf16", "zero_stage": 2, "micro_batch_size": middle_one}
    others = [size for size in micro_batches if size != usual["micro_batch_size"]]
    yield from (usual | {"attention": name} for name in own)
    yield from (usual | {"attention": name} | WITHOUT_DROPOUT for name in own)
    yield usual | {"compiled": True}
    yield from (usual | {"micro_batch_size": size} for size in others)
    yield usual | {"precision": "fp16"}
    yield usual | {"zero_stage": 0}
    yield usual | {"zero_stage": 0, "deepspeed_config": "ds_configs/muon.json"}
    yield usual | {"checkpointing": "all"}
    yield from (usual | {"attention": name, "micro_batch_size": size} for size, name in product(others, own))
    yield from (usual | {"attention": name, "compiled": True} for name in own)
    yield usual | {"precision": "fp32"}
    yield from (usual | {"checkpointing": "all", "micro_batch_size": size} for size in others)
    yield from (usual | {"checkpointing": "all", "attention": name} for name in own)
    yield from (usual | {"precision": "fp16", "attention": name} for name in own)
    yield from (usual | {"compiled": True, "micro_batch_size": size} for size in others)
    for change, sizes in (({"zero_stage": 0}, micro_batches), ({"precision": "fp16"}, others)):
        yield from (usual | change | {"attention": name, "micro_batch_size": size} for size, name in product(sizes, own))
    yield usual | {"checkpointing": "all", "compiled": True}


@dataclass
class Findings:
    """Results so far, and the files that they are written to."""

    arguments: Namespace
    left_out: list[str]
    tests: str = "not run"
    tests_passed: bool = True
    rows: list[dict] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    kernels: list[dict] = field(default_factory=list)
    """Of the fastest configuration: name, launches and seconds of a step."""
    profiled: str = ""
    path: Path | None = None
    environment: dict = field(default_factory=environment)

    def write(self) -> None:
        """Write the page and the JSON file, replacing earlier ones."""
        if self.path is None:
            self.path = new_path(self.arguments, self.environment)
        write_atomically(self.path, self.page())
        more = {"tests": self.tests, "kernels": self.kernels, "failed": dict(self.failures), "left_out": self.left_out}
        write_results(self.path.with_suffix(".json"), self.rows, **more)

    def page(self) -> str:
        """Format the page in Markdown."""
        about, arguments = self.environment, self.arguments
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        hardware = about["hardware"]
        machine = "; ".join([*hardware["gpus"], f"{hardware['cpu']}, {hardware['cores']} cores"])
        parts = [
            f"# Training steps of {Path(arguments.recipe).stem} on {hardware_of(about)}, {about['date'][:10]}",
            f"{machine}. {versions}. Commit {about['commit'] or 'unknown'}.",
            f"```\n{about['command']}\n```",
        ]
        if self.rows:
            first = self.rows[0]
            sizes = f"{first['layers']} layers of width {first['hidden_size']}, {first['parameters']:,} parameters"
            sequences = f"sequences of {first['seq_length']} tokens, {first['predicted']} of them predicted"
            parts.append(
                f"{sizes}; {sequences}; random ids, by the loader; {first['deepspeed_config']}. ms is the median of "
                f"{first['steps']} steps as they run in training; data to optimizer are parts of other steps, with a "
                "synchronisation after each. benchmarks/bench_step.py explains the columns."
            )
            parts.append(markdown_table(*self.table(FIGURES)))
        parts += [f"Tests (`pytest {' '.join(TESTS)} -k '{KEYWORDS}'`): {self.tests}"]
        if self.failures:
            parts.append("Not measured:\n\n" + "\n".join(f"* {name}: {why}" for name, why in self.failures))
        if self.left_out:
            parts.append(f"Left out for lack of time, of {arguments.minutes:g} minutes: {'; '.join(self.left_out)}.")
        if self.kernels:
            lines = [
                (f"{kernel['seconds'] * 1e3:.2f}", f"{kernel['launches']:.0f}", f"`{shorten(kernel['name'], 100)}`")
                for kernel in self.kernels
            ]
            parts.append(f"What takes longest in a step of {self.profiled}:")
            parts.append(markdown_table(("ms", "launches", "kernel"), lines))
        return "\n\n".join(parts) + "\n"

    def table(self, figures: Iterable[str]) -> tuple[list[str], list[list[str]]]:
        """Make head and lines of the table; ratios are to the first line."""
        head, lines = [*(COLUMNS[name] for name in NAMED), *figures], []
        for row in self.rows:
            lines.append([*(_cell(row[name]) for name in NAMED), *(FIGURES[name](row, self.rows[0]) for name in figures)])
        return head, lines

    def show(self) -> None:
        """Print a short version on the terminal."""
        if self.rows:
            print_table(*self.table(("ms", "tokens/s", "MFU", "peak MiB")))
        for name, why in self.failures:
            print(f"not measured: {name}: {why}")
        print(f"tests: {self.tests}; {len(self.rows)} measured, {len(self.left_out)} left out\n{self.path}")


def measure_plan(
    plan: list[Configuration], found: Findings, deadline: float, measure: Callable[..., dict]
) -> Configuration | None:
    """Measure one after another, as long as there is time for the next; return the fastest.

    Args:
        measure: of ``Worker``, with data and steps.
    """
    longest = {False: FIRST_GUESS, True: COMPILING * FIRST_GUESS}
    fastest, most = None, 0.0
    for configuration in plan:
        name, begin = label(configuration), time.monotonic()
        left = deadline - begin
        if longest[configuration.compiled] > left:
            continue
        found.left_out.remove(name)
        try:
            row = derive(middle([measure(configuration, timeout=left)]))
            found.rows.append(row)
            if row["tokens_per_second"] > most:
                fastest, most = configuration, row["tokens_per_second"]
            outcome = f"{row['step_seconds'] * 1e3:,.1f} ms"
        except (MeasurementFailed, UserError) as failure:
            outcome = str(failure)
            found.failures.append((name, outcome))
        seconds = time.monotonic() - begin
        _learn(longest, configuration.compiled, seconds)
        print(f"{name}: {outcome} ({seconds:.0f} s, {left - seconds:.0f} s left)", file=sys.stderr, flush=True)
        found.write()
    return fastest


def profile_steps(configuration: Configuration, found: Findings, deadline: float, measure: Callable[..., dict]) -> None:
    """Find the kernels of a configuration that take longest."""
    found.profiled = label(configuration)
    try:
        found.kernels = measure(configuration, timeout=deadline - time.monotonic(), profile=True)["kernels"]
    except MeasurementFailed as failure:
        found.failures.append((f"the kernels of {found.profiled}", str(failure)))


def _learn(longest: dict[bool, float], compiled: bool, seconds: float) -> None:
    """Expect the next measurement to take as long as the longest so far of its kind."""
    is_first = longest[compiled] in (FIRST_GUESS, COMPILING * FIRST_GUESS)
    longest[compiled] = seconds if is_first else max(seconds, longest[compiled])


def run_tests(seconds: float) -> tuple[str, bool]:
    """Run the chosen tests; return in a line how they went, as far as they did in that time, and whether all passed."""
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-vv", *TESTS, "-k", KEYWORDS]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        child = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            code = child.wait() and None
        log.seek(0)
        lines = log.read().strip().splitlines()
    print("\n".join(lines[-15:]), file=sys.stderr, flush=True)
    if code is not None:
        return lines[-1].strip("= ") if lines else f"exit code {code}", code == 0
    passed, failed = (sum(f" {word}" in line for line in lines) for word in ("PASSED", "FAILED"))
    return f"{passed} passed and {failed} failed; not done after {seconds:.0f} s", False


def hardware_of(about: dict) -> str:
    """Name the hardware: ``h200``, ``2-h100-80gb-hbm3`` or ``2-cores``."""
    gpus = [line.split(",")[0] for line in about["hardware"]["gpus"]]
    if not gpus:
        return f"{about['hardware']['cores']}-cores"
    name = re.sub(r"[^a-z0-9]+", "-", gpus[0].lower().removeprefix("nvidia ")).strip("-")
    return f"{len(gpus)}-{name}" if len(gpus) > 1 else name


def new_path(arguments: Namespace, about: dict) -> Path:
    """Choose the page's path: neither it nor its JSON file exists."""
    stem = f"{Path(arguments.recipe).stem}_{hardware_of(about)}_{about['date'][:10]}"
    names = (f"{stem}{end}" for end in ("", *(f"_{number}" for number in range(2, 1000))))
    paths = (arguments.folder / f"{name}.md" for name in names)
    return next(path for path in paths if not path.exists() and not path.with_suffix(".json").exists())


def _cell(value) -> str:
    return ("yes" if value else NO_FIGURE) if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    run(main)
