"""launch/pretrain.py with the time of each part of its start, for bench_start.py; ends after the first step.

Writes a line ``PART wall-clock CPU`` (seconds, separated by tabs) for each of ``PARTS`` into the file START_PARTS. It runs
with the package of any checkout, and so only replaces functions that all of them have, once the trainer is imported.
"""

import os
import sys
import time
from importlib.machinery import PathFinder

BEGIN = time.perf_counter()
PARTS = ("imports", "settings and data", "process group", "checks", "model and engine", "first step")


class Parts:
    """Seconds of the parts so far."""

    def __init__(self):
        self.lines, self._wall, self._cpu = [], BEGIN, 0.0

    def end(self, part: str) -> None:
        """End a part; the next one begins."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.lines.append(f"{part}\t{wall - self._wall}\t{cpu - self._cpu}\n")
        self._wall, self._cpu = wall, cpu


class Watched(PathFinder):
    """Finds the trainer's module, whose functions end parts once it is loaded."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname != "mpnet_ds.training.pretrain":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        load = spec.loader.exec_module

        def load_and_watch(module) -> None:
            load(module)
            watch(module)

        spec.loader.exec_module = load_and_watch
        return spec


def watch(pretrain) -> None:
    from mpnet_ds.training.trainer import Trainer

    parts = Parts()
    parts.end("imports")
    connect, train, begin = pretrain.process_group.start, pretrain._train, Trainer.train

    def timed_connect(*given, **named):
        parts.end("settings and data")
        ranks = connect(*given, **named)
        parts.end("process group")
        return ranks

    def timed_train(*given):
        parts.end("checks")
        return train(*given)

    def timed_begin(self):
        parts.end("model and engine")
        return begin(self)

    def leave(self):
        parts.end("first step")
        with open(os.environ["START_PARTS"], "w", encoding="utf-8") as file:
            file.writelines(parts.lines)
        os._exit(0)

    pretrain.process_group.start, pretrain._train = timed_connect, timed_train
    Trainer.train, Trainer._finish_first = timed_begin, leave


if __name__ == "__main__":
    sys.meta_path.insert(0, Watched)
    from mpnet_ds.command_line import run
    from mpnet_ds.programs.pretrain import main

    run(main)
