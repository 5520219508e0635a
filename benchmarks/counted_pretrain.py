"""``launch/pretrain.py`` that counts what it sends; started by ``measure_scaling.py`` in place of the real one.

    MEASURE_BEGIN=$(date +%s.%N) deepspeed … benchmarks/counted_pretrain.py LIST

LIST is a JSON file: for each run a folder for its counts, and the arguments of launch/pretrain.py. The runs follow one
another in the same processes, as each start costs seconds. Nothing of a run is changed: the functions of
``torch.distributed`` that move tensors are replaced, before DeepSpeed is imported, by ones that note the call and then do
it. Each rank leaves ``FOLDER/rank-00000.json``. Everything is noted by phase:

    start       until the trainer begins its updates
    update 1 …  from the end of the update before (so the first holds whatever DeepSpeed does once) to its own end
    save        each save of a checkpoint
    end         after the last update, saves apart

and in two ways that know nothing of each other: calls with their sizes, and the bytes that the kernel has sent on this
process's TCP connections (``TCP_INFO``), those to the store of the ranks (``MASTER_PORT``) apart from those between ranks.

So that a trace of system calls can be cut into the same phases, each begins with a look for a file that is not there:
``/phase/NAME/rank-00000``.
"""

import functools
import json
import os
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from unittest import mock

import torch
import torch.distributed
from tcp_counters import connections
from torch.distributed import distributed_c10d

PHASE_MARK = "/phase"
COLLECTIVES = {
    # name → place and name of the argument that is as large as what the collective is about
    "all_reduce": (0, "tensor"),
    "broadcast": (0, "tensor"),
    "reduce": (0, "tensor"),
    "all_gather": (0, "tensor_list"),
    "all_gather_into_tensor": (0, "output_tensor"),
    "reduce_scatter": (1, "input_list"),
    "reduce_scatter_tensor": (1, "input"),
    "all_to_all_single": (1, "input"),
    "gather": (0, "tensor"),
    "scatter": (0, "tensor"),
    "send": (0, "tensor"),
    "recv": (0, "tensor"),
    "barrier": None,
}


class Ledger:
    """What this process has sent, by phase."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Another run begins."""
        self.phase = "start"
        self.calls: dict[str, Counter] = defaultdict(Counter)
        self.sizes: dict[str, Counter] = defaultdict(Counter)
        self.sent: dict[str, Counter] = defaultdict(Counter)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.groups = 0
        self.open: Counter = Counter()
        """TCP connections of this process when the first update has ended, by side; those of earlier runs too."""
        self._seen = self._read_sockets()
        self._since = time.time()
        mark(self.phase)

    def enter(self, phase: str) -> None:
        """Whatever was sent up to now belongs to the phase that ends here."""
        now = self._read_sockets()
        for key, count in now.items():
            self.sent[self.phase][self._side(key)] += count - self._seen.get(key, 0)
        self.seconds[self.phase].append(time.time() - self._since)
        if self.phase == "update 1":
            self.open = Counter(map(self._side, now))
        self._seen, self._since, self.phase = now, time.time(), phase
        mark(phase)

    def note(self, name: str, size: int, dtype: str, group_size: int) -> None:
        """One collective about ``size`` bytes."""
        key = f"{name} {dtype} of {group_size}"
        self.calls[self.phase][key] += 1
        self.sizes[self.phase][key] += size

    def _side(self, key: tuple) -> str:
        store = int(os.environ.get("MASTER_PORT", "0"))
        return "store" if store in (key[1][1], key[2][1]) else "ranks"

    def _read_sockets(self) -> dict[tuple, int]:
        """Bytes sent on each open TCP connection: (descriptor, its name, its peer) → bytes."""
        return {(one.descriptor, one.own, one.peer): one.bytes_sent for one in connections()}


def mark(phase: str) -> None:
    """Leaves a trace for strace."""
    os.path.exists(f"{PHASE_MARK}/{phase}/rank-{int(os.environ.get('RANK', '0')):05d}")


def count_collectives(ledger: Ledger) -> None:
    """From here on ``ledger`` learns of each collective on tensors; those on objects are made of these."""
    for name, place in COLLECTIVES.items():
        counted = _counted(ledger, name, place, getattr(distributed_c10d, name))
        for module in (distributed_c10d, torch.distributed):
            setattr(module, name, counted)
    make = distributed_c10d.new_group

    @functools.wraps(make)
    def counted_group(*arguments, **named):
        ledger.groups += 1
        return make(*arguments, **named)

    distributed_c10d.new_group = torch.distributed.new_group = counted_group


def _counted(ledger: Ledger, name: str, place: tuple[int, str] | None, function):
    @functools.wraps(function)
    def counted(*arguments, **named):
        group = named.get("group") or next((a for a in arguments if isinstance(a, torch.distributed.ProcessGroup)), None)
        size, dtype = 0, "-"
        if place is not None:
            subject = arguments[place[0]] if len(arguments) > place[0] else named[place[1]]
            tensors = [subject] if isinstance(subject, torch.Tensor) else subject
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            dtype = str(tensors[0].dtype).removeprefix("torch.")
        ledger.note(name, size, dtype, torch.distributed.get_world_size(group))
        return function(*arguments, **named)

    return counted


def follow_the_trainer(ledger: Ledger) -> None:
    """Tells ``ledger`` where the phases of a run begin."""
    from mpnet_ds.checkpoint.store import CheckpointStore
    from mpnet_ds.training.trainer import Trainer

    run_updates, update, save = Trainer._run_updates, Trainer._update, CheckpointStore.save
    begin = float(os.environ["MEASURE_BEGIN"])

    def counted_updates(trainer):
        ledger.enter("update 1")
        return run_updates(trainer)

    def counted_update(trainer, *arguments):
        update(trainer, *arguments)
        if trainer.step == 1:
            ledger.seconds["from the command to the first update"].append(time.time() - begin)
            ledger.seconds["of the processor to the first update"].append(time.process_time())
        last = trainer.step == trainer.recipe.optimization.max_steps
        ledger.enter("end" if last else f"update {trainer.step + 1}")

    def counted_save(store, *arguments):
        phase = ledger.phase
        ledger.enter("save")
        try:
            return save(store, *arguments)
        finally:
            ledger.enter(phase)

    Trainer._run_updates, Trainer._update, CheckpointStore.save = counted_updates, counted_update, counted_save


def main() -> int:
    ledger = Ledger()
    count_collectives(ledger)
    from mpnet_ds.command_line import Parser
    from mpnet_ds.ranks import process_group
    from mpnet_ds.training.pretrain import add_arguments, pretrain

    follow_the_trainer(ledger)
    # The launcher puts --local_rank in front of the list.
    runs = json.loads(Path(sys.argv[-1]).read_text(encoding="utf-8"))
    with mock.patch.object(process_group, "stop"):  # DeepSpeed holds on to its first process group, so it must live on
        for number, run in enumerate(runs):
            if number:
                ledger.restart()
            parser = Parser("Pre-train and count what is sent.", "see benchmarks/measure_scaling.py")
            add_arguments(parser)
            code = pretrain(parser.parse_args(run["arguments"]))
            if code:
                return code
            ledger.enter("after")
            write_record(ledger, Path(run["folder"]))
    process_group.stop()
    return 0


def write_record(ledger: Ledger, folder: Path) -> None:
    rank = int(os.environ.get("RANK", "0"))
    record = {
        "rank": rank,
        "calls": ledger.calls,
        "bytes": ledger.sizes,
        "sent": ledger.sent,
        "seconds": ledger.seconds,
        "groups": ledger.groups,
        "connections": ledger.open,
    }
    (folder / f"rank-{rank:05d}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    raise SystemExit(main())
