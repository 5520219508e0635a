"""The other ranks of this host, as processes: one that a signal has ended is named by another one.

It cannot say a word itself (SIGKILL, the kernel's for want of memory for example), and the launcher ends the others within a
second. Each rank therefore waits in a thread for the end of the others (``pidfd_open(2)``). By which signal one has ended is
in /proc until the launcher asks for it; after that, whoever left without a farewell was killed. Farewells are datagrams
between the ranks of a host.
"""

import atexit
import ctypes
import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from mpnet_ds.last_word import say
from mpnet_ds.ranks.launchers import hosts_of_command, name_ranks

EXIT_CODE = 1
RESUME = "The same command resumes from the newest checkpoint."
STOPS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)
"""Signals by which people and launchers end ranks: who dies of one was told to."""
UNKNOWN = 0
"""Stands for the number of a signal."""
TOGETHER, TIME_TO_NOTICE, TIME_TO_SPEAK = 0.03, 0.3, 2.0
"""Seconds within which ranks end together; in which the thread notices it; for which other ranks wait for the speaker."""
DEEPSPEEDS_WORDS = 0.5
"""Seconds after which DeepSpeed's launcher has said what it says when it ends ranks."""


@dataclass(frozen=True)
class Sibling:
    """Another rank of this host."""

    pid: int
    inbox: bytes
    """Address of its socket for farewells."""
    oom_kills: Mapping[str, int]
    """What ``count_oom_kills`` gave at the start, of the files that count for it."""


class Siblings:
    """The other ranks of this host; nobody watches them before ``meet``."""

    def __init__(self):
        self.tell: Callable[[str], object] = lambda cause: None
        """Tells other hosts who was killed, in words; called in the thread, before this process ends."""
        self._rank, self._hosts = 0, ()
        self._siblings: dict[int, Sibling] = {}  # by rank
        self._watched: dict[int, int] = {}  # file descriptor → rank
        self._left: set[int] = set()
        self._killed: dict[int, int] = {}  # rank → signal
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="siblings", daemon=True)

    def meet(self, rank: int, hosts: Sequence[str], gather: Callable[[object], list]) -> None:
        """Begin to watch; every rank must call it. ``gather`` returns what all ranks give it."""
        mine = None
        with suppress(OSError, AttributeError):  # not Linux, or a part of it that this container lacks
            inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            inbox.bind(b"")  # to a free address, without a file
            mine = [hosts[rank], os.readlink("/proc/self/ns/pid")], os.getpid(), inbox.getsockname()
        everyone = gather(mine)
        if mine is None:
            return
        self._rank, self._hosts, self._inbox = rank, hosts, inbox
        for number, theirs in enumerate(everyone):
            if theirs and theirs[0] == mine[0] and number != rank:
                with suppress(OSError, AttributeError):
                    self._watched[os.pidfd_open(theirs[1])] = number
                    self._siblings[number] = Sibling(*theirs[1:], count_oom_kills(oom_counters(theirs[1])))
        if self._siblings:
            atexit.register(self.leave)
            self._thread.start()

    def leave(self) -> None:
        """Tell the others that this rank ends by itself, and watch them no longer."""
        if self._siblings and not self._is_ending.is_set():
            atexit.unregister(self.leave)
            self._say_farewell()
            self._thread.join(TIME_TO_SPEAK)
            self._siblings.clear()
            self._inbox.close()

    @property
    def num_killed(self) -> int:
        """Ranks of this host that were killed."""
        return len(self._killed)

    @property
    def have_left(self) -> bool:
        """Whether a rank of this host has ended by itself."""
        return bool(self._left - {self._rank})

    def is_ending(self, seconds: float = TIME_TO_NOTICE) -> bool:
        """Whether a rank of this host was killed, as is noticed in ``seconds``: then the thread ends this process."""
        return bool(self._siblings) and self._is_ending.wait(seconds)

    def settle(self) -> None:
        """Do not return if a rank of this host was killed, of which the exception at hand comes."""
        if self.is_ending():
            self._thread.join()

    def _say_farewell(self) -> None:
        for address in (*(sibling.inbox for sibling in self._siblings.values()), self._inbox.getsockname()):
            with suppress(OSError):
                self._inbox.sendto(str(self._rank).encode(), address)

    def _watch(self) -> None:
        while self._watched and self._rank not in self._left:
            self._look()
            if self._killed:
                self._is_ending.set()
                self._end()
        for descriptor in self._watched:
            os.close(descriptor)

    def _look(self, seconds: float | None = None) -> None:
        """Take in who has left or was killed; wait for that, for ``seconds`` at most."""
        poll = select.poll()
        for descriptor in (self._inbox.fileno(), *self._watched):
            poll.register(descriptor, select.POLLIN)
        ready = [descriptor for descriptor, _ in poll.poll(None if seconds is None else 1000 * seconds)]
        ended = [(descriptor, self._watched[descriptor]) for descriptor in ready if descriptor in self._watched]
        statuses = [exit_status(self._siblings[rank].pid) for _, rank in ended]  # at once, before the launcher asks
        with suppress(BlockingIOError):
            while True:
                self._left.add(int(self._inbox.recv(16)))
        for (descriptor, rank), status in zip(ended, statuses, strict=True):
            by_itself = status is not None and (os.WIFEXITED(status) or os.WTERMSIG(status) in STOPS)
            if rank in self._left or by_itself:
                self._left.add(rank)
            else:
                self._killed[rank] = UNKNOWN if status is None else os.WTERMSIG(status)
            del self._watched[descriptor]
            os.close(descriptor)

    def _end(self) -> None:
        """End this process: the run cannot continue. The first rank that is left says why."""
        ignore_signals()
        is_told = self._rank == min([self._rank, *self._watched.values()]) and end_deepspeed()  # before it looks itself
        time.sleep(TOGETHER)
        self._look(0)
        deadline = time.monotonic() + TIME_TO_SPEAK
        while (speaker := min([self._rank, *self._watched.values()])) != self._rank and time.monotonic() < deadline:
            self._look(max(0.0, deadline - time.monotonic()))
            if speaker in self._left:
                break
        else:
            speaker = self._rank
        cause = self._describe()
        if speaker == self._rank:
            time.sleep(DEEPSPEEDS_WORDS if is_told or end_deepspeed() else 0)
            say(f"error: {cause}. {RESUME}")
        self.tell(cause)
        self._say_farewell()
        os._exit(EXIT_CODE)

    def _describe(self) -> str:
        before: dict[str, int] = {}
        for rank in self._killed:
            before |= self._siblings[rank].oom_kills
        return describe(self._killed, self._hosts, before, count_oom_kills(before))


def describe(killed: Mapping[int, int], hosts: Sequence[str], before: Mapping[str, int], now: Mapping[str, int]) -> str:
    """Say which ranks were killed, by which signals, and whether the kernel has killed for want of memory meanwhile."""
    names = sorted({signal.Signals(number).name for number in killed.values() if number != UNKNOWN})
    by = f" by {' and '.join(names)}" if names else ""
    text = f"{name_ranks(killed, hosts)} {'was' if len(killed) == 1 else 'were'} killed{by}"
    if not {UNKNOWN, signal.SIGKILL}.intersection(killed.values()):
        return f"{text}; {'it has' if len(killed) == 1 else 'they have'} written Python stacks to standard error"
    more = [f"{path}: oom_kill {count} → {now[path]}" for path, count in before.items() if now.get(path, 0) > count]
    if more:
        return f"{text}: out of memory? ({more[0]})"
    return f"{text}; the kernel counts no kill for want of memory meanwhile" if before else f"{text}: out of memory?"


def exit_status(pid: int) -> int | None:
    """Return the wait status of a process that has ended; None if its parent has asked for it already."""
    try:
        state, *_, status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return int(status) if state == "Z" else None


def oom_counters(pid: int) -> list[str]:
    """Return the files in which the kernel counts whom it kills for want of memory: of a control group, and of the host."""
    files = []
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            files += [f"/sys/fs/cgroup/{path.strip('/')}/memory.events"] if not controllers else []
            files += [f"/sys/fs/cgroup/memory/{path.strip('/')}/memory.oom_control"] if controllers == "memory" else []
    return [os.path.normpath(path) for path in files] + ["/proc/vmstat"]


def count_oom_kills(files: Iterable[str]) -> dict[str, int]:
    """Read the number of processes killed for want of memory from each file that has it."""
    counts = {}
    for path in files:
        with suppress(OSError):
            if found := re.search(r"^oom_kill (\d+)$", Path(path).read_text(), re.MULTILINE):
                counts[path] = int(found[1])
    return counts


def ignore_signals() -> None:
    """Ignore the signals by which launchers end ranks; ``signal.signal`` does so in the main thread only."""
    for number in STOPS:
        ctypes.pythonapi.PyOS_setsig(number, ctypes.c_void_p(int(signal.SIG_IGN)))


def end_deepspeed() -> bool:
    """Have DeepSpeed's launcher end the run, if it is the parent; tell whether it is.

    When it is told so it exits with 1; when it notices by itself, up to a second later, with 256 less the signal.
    """
    with suppress(psutil.Error, AttributeError, ValueError):
        launcher = psutil.Process().parent()
        if hosts_of_command(launcher.cmdline()):
            launcher.terminate()
            return True
    return False
