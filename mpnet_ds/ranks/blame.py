"""Who is to blame when a run hangs: told from the heartbeats of all ranks, and from where their main threads are."""

import linecache
import re
import sysconfig
import traceback
from collections.abc import Collection, Sequence
from pathlib import Path
from types import FrameType

import torch.distributed

from mpnet_ds.ranks.heartbeat import Heartbeat

_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
_COLLECTIVE = re.compile(r"/torch/distributed/|/deepspeed/comm/")
_LOST_CONTACT = re.compile(r"\bgloo\b|\bNCCL\b")
_DEVICE_WAIT = re.compile(r"\.(item|tolist|cpu|wait|synchronize)\(|\bsynchronize\(")
_SIGNS = (  # attributes of a heartbeat, the most telling first; the ranks with the least value are behind
    ("step", "other ranks are at a later step"),
    ("waiting", "others seem to wait for other ranks, it does not (a guess from the stacks)"),
    ("phases", "others are in a later phase of the step"),
)


def find_culprits(heartbeats: Sequence[Heartbeat], silent: Collection[int] = ()) -> tuple[list[int], str]:
    """Return the ranks to blame, and why: silent ones, else those that are behind; all, and no reason, if none is."""
    if silent:
        return sorted(silent), "it is silent: stopped, dead, or cut off from the other ranks"
    suspects, reasons = list(heartbeats), []
    for sign, reason in _SIGNS:
        least = min(getattr(heartbeat, sign) for heartbeat in suspects)
        behind = [heartbeat for heartbeat in suspects if getattr(heartbeat, sign) == least]
        reasons += [reason] if len(behind) < len(suspects) else []
        suspects = behind
    return sorted(heartbeat.rank for heartbeat in suspects), "; ".join(reasons)


def locate(frame: FrameType | None) -> tuple[bool, str]:
    """Return whether a thread with this innermost frame seems to wait for other ranks, and where it is.

    It does inside ``torch.distributed`` and ``deepspeed.comm``, in autograd's backward, whose hooks may wait in other
    threads, and on a line that waits for the device or for a handle (``.item()``, ``.wait()`` …). This is a guess.
    """
    if frame is None:
        return False, "nowhere: the main thread has ended"
    name, path, number = frame.f_code.co_name, frame.f_code.co_filename, frame.f_lineno
    try:
        line = linecache.getline(path, number)
    except TypeError:  # another thread was filling the cache
        line = ""
    waiting = bool(_COLLECTIVE.search(path) or name == "_engine_run_backward" or _DEVICE_WAIT.search(line))
    frames = [outer for outer, _ in traceback.walk_stack(frame)]
    own = next((outer for outer in frames if not outer.f_code.co_filename.startswith(_LIBRARIES)), frame)
    place = f"{own.f_code.co_name} ({own.f_code.co_filename}:{own.f_lineno})"
    return waiting, place if own is frame else f"{place} in {name} ({Path(path).name}:{number})"


def is_lost_contact(error: BaseException) -> bool:
    """Whether a collective failed because another rank, or the way to it, is gone."""
    is_distributed = isinstance(error, torch.distributed.DistError)
    return is_distributed or (isinstance(error, RuntimeError) and bool(_LOST_CONTACT.search(str(error))))
