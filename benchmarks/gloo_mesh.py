"""Gloo alone, with ranks that are threads of one process: connections, what the store is asked, a small all-reduce."""

import threading
import time
from datetime import timedelta

from scaled_runs import free_port
from tcp_counters import connections


def mesh_of(n: int, rounds: int = 50) -> dict:
    import torch
    from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

    port = free_port()
    before = len(list(connections()))
    stores = [TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)]
    stores += [TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False) for _ in range(n - 1)]
    asked = segments_to(port)
    groups: list = [None] * n

    def connect(rank: int) -> None:
        groups[rank] = ProcessGroupGloo(PrefixStore("mesh", stores[rank]), rank, n, timedelta(seconds=120))

    begin = time.perf_counter()
    in_threads(connect, n)
    seconds_to_connect = time.perf_counter() - begin
    counts = {"asked of the store": (segments_to(port) - asked) / n}
    sockets = len(list(connections())) - before

    def reduce(rank: int) -> None:
        for _ in range(rounds):
            groups[rank].allreduce([torch.zeros(6, dtype=torch.int64)]).wait()

    in_threads(reduce, n)  # the first has to find its buffers
    sent = segments_not_to(port)
    begin = time.perf_counter()
    in_threads(reduce, n)
    seconds = (time.perf_counter() - begin) / rounds
    counts["segments of a rank in an all-reduce"] = (segments_not_to(port) - sent) / rounds / n
    counts |= {"connections of all ranks": sockets, "seconds to connect": seconds_to_connect, "seconds": seconds}
    print(n, counts, flush=True)
    return {"ranks": n, **counts}


def in_threads(function, n: int) -> None:
    threads = [threading.Thread(target=function, args=[rank]) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def segments_to(port: int) -> int:
    """Sent so far by this process towards ``port``."""
    return sum(one.data_segments for one in connections() if one.peer[1] == port)


def segments_not_to(port: int) -> int:
    """Sent so far by this process on connections that have nothing to do with ``port``."""
    return sum(one.data_segments for one in connections() if port not in (one.own[1], one.peer[1]))
