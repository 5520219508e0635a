"""What the kernel has counted on this process's TCP connections: Linux's ``struct tcp_info`` (include/uapi/linux/tcp.h)."""

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

DATA_SEGMENTS, BYTES_SENT, SIZE = 156, 200, 232
"""Offsets of ``tcpi_data_segs_out`` and ``tcpi_bytes_sent``, and what is read of it."""


@dataclass(frozen=True)
class Connection:
    """One that is open."""

    descriptor: int
    own: tuple[str, int]
    """Address and port."""
    peer: tuple[str, int]
    bytes_sent: int
    data_segments: int
    """Segments with data that were sent."""


def connections() -> Iterator[Connection]:
    """All of this process that are connected."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            descriptor = os.dup(int(name))
        except OSError:  # closed meanwhile
            continue
        with socket.socket(fileno=descriptor) as copy:
            try:
                own, peer = copy.getsockname()[:2], copy.getpeername()[:2]
                info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SIZE)
            except (OSError, ValueError):  # it listens, or is of another kind
                continue
        if len(own) == 2 and isinstance(own[1], int) and len(info) >= BYTES_SENT + 8:
            (segments,), (sent,) = struct.unpack_from("<I", info, DATA_SEGMENTS), struct.unpack_from("<Q", info, BYTES_SENT)
            yield Connection(int(name), tuple(own), tuple(peer), sent, segments)
