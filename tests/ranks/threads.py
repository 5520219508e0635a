"""Ranks that are threads of the test's own process, for whatever needs several ranks and no processes."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mpnet_ds.ranks.process_group import Ranks


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """A rank that meets the others at a barrier."""

    meeting: threading.Barrier
    table: list

    def barrier(self) -> None:
        self.meeting.wait(20)

    def gather(self, value) -> list:
        self.table[self.rank] = value
        self.barrier()
        values = list(self.table)
        self.barrier()
        return values

    def on_main(self, function):
        def attempt():
            try:
                return function()
            except Exception as error:
                return error

        outcome = self.gather(attempt() if self.is_main else None)[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def at_once(functions: Sequence[Callable]) -> list:
    """What each function returns, or the exception that it raises; each runs in a thread of its own."""
    outcomes: list = [None] * len(functions)

    def run(number: int) -> None:
        try:
            outcomes[number] = functions[number]()
        except Exception as error:
            outcomes[number] = error.with_traceback(None)  # whose frames would keep alive what the function held

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return outcomes


def on_ranks(function: Callable, hosts: str = "abc") -> list:
    """What ``function(ranks)`` returns, or raises, on each rank; a letter of ``hosts`` for each rank."""
    size, meeting, table = len(hosts), threading.Barrier(len(hosts)), [None] * len(hosts)
    device, names = torch.device("cpu"), tuple(hosts)
    ranks = [
        ThreadRanks(rank, hosts[:rank].count(host), size, device, names, meeting, table) for rank, host in enumerate(hosts)
    ]
    return at_once([lambda ranks=one: function(ranks) for one in ranks])
