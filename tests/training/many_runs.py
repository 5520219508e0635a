"""A program for tests: several runs one after the other in the same processes, as each start costs seconds.

    python tests/training/many_runs.py LIST        deepspeed --num_accelerators 2 tests/training/many_runs.py LIST

LIST is a JSON file: for each run, the arguments of launch/pretrain.py, and perhaps ``--fault`` with one of faulty.py. What a
run prints stands between lines ``begin I`` and ``end I: CODE, SECONDS s``; its last lines are ``fused steps: N``, calls of
PyTorch's fused AdamW, and whether PyTorch's compiler was loaded.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from mpnet_ds.config.arguments import build_parser
from mpnet_ds.ranks import process_group
from mpnet_ds.training import plateau
from mpnet_ds.training.pretrain import pretrain
from mpnet_ds.training.trainer import Trainer
from tests.training.faulty import FAULTS


@contextmanager
def undone(fault: str) -> Iterator[None]:
    """``NAME@UPDATE`` of faulty.py, for one run: what it replaces here is put back."""
    name, _, update = fault.partition("@")
    with (
        mock.patch.object(Trainer, "train_step", Trainer.train_step),
        mock.patch.object(process_group, "stop", process_group.stop),
        mock.patch.object(plateau, "LEAST_TOKENS", plateau.LEAST_TOKENS),
    ):
        if fault:
            FAULTS[name](int(update or 0))
        yield


def main() -> None:
    ranks, fused = process_group.start(), torch._fused_adamw_
    with mock.patch.object(process_group, "stop"):  # DeepSpeed holds on to its first process group, so it must live on
        for number, arguments in enumerate(json.loads(Path(sys.argv[-1]).read_text())):
            parser = build_parser()
            parser.add_argument("--fault", default="")
            given = parser.parse_args(arguments)
            ranks.say(f"begin {number}")
            begin = time.perf_counter()
            with mock.patch.object(torch, "_fused_adamw_", side_effect=fused) as updates, undone(given.fault):
                code = pretrain(given)
            ranks.say(f"fused steps: {updates.call_count}")
            ranks.say(f"compiler loaded: {'torch._dynamo.eval_frame' in sys.modules}")
            ranks.say(f"end {number}: {code}, {time.perf_counter() - begin:.1f} s")
    process_group.stop()


if __name__ == "__main__":
    main()
