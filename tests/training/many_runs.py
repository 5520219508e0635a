"""A program for tests: several runs one after the other in the same processes, as each start costs seconds.

    python tests/training/many_runs.py LIST        deepspeed --num_accelerators 2 tests/training/many_runs.py LIST

LIST is a JSON file: for each run, the arguments of launch/pretrain.py. What a run prints stands between lines
``begin I`` and ``end I: CODE, SECONDS s``; its last lines are ``fused steps: N``, calls of PyTorch's fused AdamW, and
whether inductor, PyTorch's compiler, was loaded.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from unittest import mock

import torch

from mpnet_ds.ranks import process_group
from mpnet_ds.training.pretrain import add_arguments, pretrain


def main() -> None:
    ranks, fused = process_group.start(), torch._fused_adamw_
    with mock.patch.object(process_group, "stop"):  # DeepSpeed holds on to its first process group, so it must live on
        for number, arguments in enumerate(json.loads(Path(sys.argv[-1]).read_text())):
            parser = argparse.ArgumentParser()
            add_arguments(parser)
            ranks.say(f"begin {number}")
            begin = time.perf_counter()
            with mock.patch.object(torch, "_fused_adamw_", side_effect=fused) as updates:
                code = pretrain(parser.parse_args(arguments))
            ranks.say(f"fused steps: {updates.call_count}")
            ranks.say(f"inductor loaded: {'torch._inductor.compile_fx' in sys.modules}")
            ranks.say(f"end {number}: {code}, {time.perf_counter() - begin:.1f} s")
    process_group.stop()


if __name__ == "__main__":
    main()
