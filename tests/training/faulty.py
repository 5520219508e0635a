"""``launch/pretrain.py`` with one fault built in, for tests of what happens then.

    python tests/training/faulty.py FAULT[@UPDATE] ARGUMENTS OF launch/pretrain.py

Updates are counted from 1. ``RANK`` in the environment says which rank this is; faults of one rank hit the last one.
"""

import os
import resource
import runpy
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from mpnet_ds.command_line import run

LAUNCH_SCRIPT = Path(__file__).parent.parent.parent / "launch" / "pretrain.py"


def main() -> int:
    fault = next(argument for argument in sys.argv[1:] if not argument.startswith("--local_rank"))
    sys.argv.remove(fault)
    name, _, update = fault.partition("@")
    FAULTS[name](int(update or 0))
    return runpy.run_path(str(LAUNCH_SCRIPT))["main"]()


def is_last_rank() -> bool:
    return int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1


def at_update(update: int, action) -> None:
    """Runs ``action(batches)`` when that step begins."""
    from mpnet_ds.training.trainer import Trainer

    before = Trainer.train_step

    def with_fault(self, batches, num_targets):
        if self.step == update:
            action(self)
        before(self, batches, num_targets)

    Trainer.train_step = with_fault


def spoil_loss(factor: float, first: int, last: int, everywhere: bool = True) -> None:
    """Multiplies the loss of the first micro batch of some steps, and with it the gradient."""
    from mpnet_ds.training.trainer import Trainer

    update, model = Trainer.train_step, {}

    def with_fault(self, batches, num_targets):
        model.update(step=self.step, fresh=True)
        if "forward" not in model:
            model["forward"] = self.engine.forward
            self.engine.forward = forward
        update(self, batches, num_targets)

    def forward(batch):
        out = model["forward"](batch)
        if first <= model.get("step", 0) <= last and model.pop("fresh", False) and (everywhere or is_last_rank()):
            out.sums = out.sums * factor
        return out

    Trainer.train_step = with_fault


def ask(name: str):
    """Puts a file into the output folder at a step."""

    def fault(update: int) -> None:
        at_update(update, lambda trainer: (trainer.start.output / name).touch())

    return fault


def send(*signals: int):
    """Sends this rank a signal at a step, if it is the last rank."""

    def fault(update: int) -> None:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)  # nohup, or a job in the background, has some ignored
        at_update(update, lambda trainer: [os.kill(os.getpid(), number) for number in signals if is_last_rank()])

    return fault


def slow_saves_with_signals(update: int) -> None:
    """SIGTERM at a step, and again and again while the checkpoint is being written."""
    from mpnet_ds.checkpoint.shard_files import ShardFiles

    save = ShardFiles.save

    def slow(self, state_dict, path):
        for _ in range(4):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
        save(self, state_dict, path)

    ShardFiles.save = slow
    send(signal.SIGTERM)(update)


def killed_while_saving(update: int) -> None:
    """The last rank dies when it has written half of its first shard after a step."""
    from mpnet_ds.checkpoint.shard_files import ShardFiles

    save = ShardFiles.save
    armed = []

    def cut(self, state_dict, path):
        save(self, state_dict, path)
        if armed:
            os.truncate(path, Path(path).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    ShardFiles.save = cut
    at_update(update, lambda trainer: armed.append(True) if is_last_rank() else None)


def never_room(update: int) -> None:
    """From a step on no file may grow beyond 20 kB: writing fails as on a full disk. Pauses are short."""
    from mpnet_ds.training import saving as module

    module.PAUSES = (0.001,) * len(module.PAUSES)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    at_update(update, lambda trainer: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard)))


def no_room(update: int) -> None:
    """As ``never_room``, for two steps."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    never_room(update)
    at_update(update + 2, lambda trainer: resource.setrlimit(resource.RLIMIT_FSIZE, limits))


def hang(update: int) -> None:
    """The last rank sleeps for ever."""
    at_update(update, lambda trainer: threading.Event().wait() if is_last_rank() else None)


def slow(update: int) -> None:
    """Every step from this one on takes a second longer."""
    from mpnet_ds.training.trainer import Trainer

    before = Trainer.train_step

    def with_pause(self, batches, num_targets):
        time.sleep(1.0 if self.step >= update else 0)
        before(self, batches, num_targets)

    Trainer.train_step = with_pause


def slow_last_words(update: int) -> None:
    """SIGTERM for the last rank at a step; rank 0 takes longer to say how it ended than a launcher waits for it."""
    from mpnet_ds.training import pretrain

    before = pretrain._conclude

    def slow(*arguments):
        time.sleep(0 if is_last_rank() else 3)
        return before(*arguments)

    pretrain._conclude = slow
    send(signal.SIGTERM)(update)


def other_saves(update: int) -> None:
    """Another run of the same command, in the folder ``other``, has saved up to a step just before this one has the lock."""
    from mpnet_ds.training import pretrain

    before = pretrain.held

    def meanwhile(output: Path):
        shutil.copytree(output.with_name("other"), output)
        for later in (output / "checkpoints").glob("step-*"):
            if int(later.name.removeprefix("step-")) > update:
                shutil.rmtree(later)
        return before(output)

    pretrain.held = meanwhile


def warned_in_the_end(update: int) -> None:
    """SIGUSR1 when training is over and the ranks disconnect."""
    from mpnet_ds.ranks import process_group

    before = process_group.stop

    def with_signal() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        before()

    process_group.stop = with_signal


def until_asked(update: int) -> None:
    """At a step the last rank waits, for three minutes at most, until it is asked to stop."""

    def wait(trainer) -> None:
        deadline = time.monotonic() + 180
        while is_last_rank() and not trainer.stop_requests._asked.stops and time.monotonic() < deadline:
            time.sleep(0.1)

    at_update(update, wait)


def count_waits(update: int) -> None:
    """Prints, for one step, who asked for a tensor's value, as a device would have to be waited for."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from mpnet_ds.training.trainer import Trainer

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            if "_local_scalar_dense" in str(operation) or "nonzero" in str(operation):
                frame = sys._getframe()
                while not any(name in frame.f_code.co_filename for name in ("mpnet_ds/", "deepspeed/")):
                    frame = frame.f_back
                package = "mpnet_ds" if "mpnet_ds/" in frame.f_code.co_filename else "deepspeed"
                print(f"{package} waits in {frame.f_code.co_name}", flush=True)
            return operation(*args, **(kwargs or {}))

    before = Trainer.train_step

    def watched(self, batches, num_targets):
        if self.step != update:
            return before(self, batches, num_targets)
        with Watch():
            before(self, batches, num_targets)
        print("one step was watched", flush=True)

    Trainer.train_step = watched


def count_graphs(update: int) -> None:
    """Prints, after each step and evaluation, how many graphs torch.compile has made and how often it was cut short."""
    from torch._dynamo.utils import counters

    from mpnet_ds.training.trainer import Trainer

    def counted(before):
        def with_counts(self, *arguments):
            result = before(self, *arguments)
            print(f"graphs: {counters['stats']['unique_graphs']}, breaks: {counters['graph_break'].total()}", flush=True)
            return result

        return with_counts

    Trainer.train_step, Trainer._evaluate = counted(Trainer.train_step), counted(Trainer._evaluate)


def count_garbage(update: int) -> None:
    """Prints how many objects only a collection would have freed, of the steps from one on, and how often one ran."""
    import gc

    from mpnet_ds.training.trainer import Trainer

    before, log, runs = Trainer.train_step, Trainer._log, []

    def watched(self, batches, num_targets):
        if self.step == update:
            gc.collect()
            gc.callbacks.append(lambda phase, info: runs.append(info) if phase == "stop" else None)
        before(self, batches, num_targets)

    def logged(self):
        print(f"collections: {len(runs)}", flush=True)
        log(self)
        print(f"with the log: {len(runs)}, freed: {runs[-1]['collected']}", flush=True)

    Trainer.train_step, Trainer._log = watched, logged


def another_numpy(update: int) -> None:
    """Another version of numpy on the last rank."""
    from mpnet_ds.run import settings

    true = settings.version
    if is_last_rank():
        settings.version = lambda package: "99.0.0" if package == "numpy" else true(package)


def impatient(update: int) -> None:
    """Runs are told that they have not begun to learn, however few tokens they have seen."""
    from mpnet_ds.training import plateau

    plateau.LEAST_TOKENS = 0


FAULTS = {
    "another_numpy": another_numpy,
    "impatient": impatient,
    "garbage": count_garbage,
    "graphs": count_graphs,
    "waits": count_waits,
    "stop": ask("STOP"),
    "save": ask("SAVE"),
    "sigterm": send(signal.SIGTERM),
    "sigusr1": send(signal.SIGUSR1),
    "sighup": send(signal.SIGHUP),
    "sigint": send(signal.SIGINT),
    "sigkill": send(signal.SIGKILL),
    "sigterm_while_saving": slow_saves_with_signals,
    "sigkill_while_saving": killed_while_saving,
    "nan_on_one_rank": lambda update: spoil_loss(float("nan"), update, update, everywhere=False),
    "infinite": lambda update: spoil_loss(float("inf"), update, update),
    "nan_from": lambda update: spoil_loss(float("nan"), update, 10**9),
    "spike": lambda update: spoil_loss(10.0, update, update),
    "no_room": no_room,
    "never_room": never_room,
    "hang": hang,
    "slow": slow,
    "slow_last_words": slow_last_words,
    "other_saves": other_saves,
    "warned_in_the_end": warned_in_the_end,
    "until_asked": until_asked,
}

if __name__ == "__main__":
    run(main)
