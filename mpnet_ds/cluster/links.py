"""Which hosts reach which: every host listens, and every host connects to every other.

A connection sends a token of the check and ``PAYLOAD`` bytes, and the listener answers with its own name once all are
there. So it is seen that the right host answers, and that packets of full size get through, not only the small ones of
the handshake. Each host begins with its successor in the list, ``AT_ONCE`` at a time, so that no host is met by all at
once; the time grows with the number of hosts, and for each ``AT_ONCE`` hosts that do not answer by one time limit.
"""

import errno
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

PAYLOAD = 1 << 18  # bytes
AT_ONCE = 16
_ANSWER = 512  # bytes at most

OK, REFUSED, TIMED_OUT, UNREACHABLE, STALLED, STRANGER, UNKNOWN_NAME = (
    "ok", "refused", "timed out", "unreachable", "stalled", "stranger", "unknown name",
)  # fmt: skip

_listeners: list[socket.socket] = []


def listen(name: str, token: str, address: str, port: int) -> dict:
    """Listens until ``hush``, under this name; ``{"port": …}``, or ``{"in_use_by": […]}`` where somebody else does.

    Args:
        address: on which; empty for all of them.
        port: 0 takes a free one.
    """
    try:
        if address:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listener = socket.create_server((address, port), family=family, backlog=128)
        else:  # as torch's store does
            both = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both else socket.AF_INET
            listener = socket.create_server(("", port), family=family, backlog=128, dualstack_ipv6=both)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            from mpnet_ds.cluster.probe import holders_of_port

            return {"in_use_by": holders_of_port(port)}
        if error.errno == errno.EACCES:
            return {"not_allowed": True}
        raise
    _listeners.append(listener)
    threading.Thread(target=_serve, args=(listener, name, token), daemon=True).start()
    return {"port": listener.getsockname()[1]}


def hush() -> None:
    """Listens no longer."""
    while _listeners:
        listener = _listeners.pop()
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
        listener.close()


def _serve(listener: socket.socket, name: str, token: str) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_greet, args=(connection, name, token), daemon=True).start()


def _greet(connection: socket.socket, name: str, token: str) -> None:
    with connection:
        connection.settimeout(60)
        with suppress(OSError):  # the one who connects says what went wrong
            if _read(connection, len(token)) == token.encode():
                _read(connection, PAYLOAD)
                connection.sendall(name.encode() + b"\n")


def _read(connection: socket.socket, size: int) -> bytes:
    parts = []
    while size and (part := connection.recv(min(size, 1 << 16))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def connect_to_all(peers: list[tuple[str, str, int]], token: str, seconds: float) -> dict[str, str]:
    """Connects to hosts given as (name, address, port), each within so many ``seconds``; name → what came of it.

    ``OK``, ``REFUSED`` (the host answers, nobody may connect), ``TIMED_OUT`` (nothing answers), ``UNREACHABLE`` (no way
    there), ``STALLED`` (connected, but what is sent does not arrive), ``STRANGER`` (another program answers),
    ``UNKNOWN_NAME``.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda peer: _try(peer, token, seconds), peers)
        return {peer[0]: outcome for peer, outcome in zip(peers, found, strict=True)}


def _try(peer: tuple[str, str, int], token: str, seconds: float) -> str:
    name, address, port = peer
    try:
        connection = socket.create_connection((address, port), timeout=seconds)
    except socket.gaierror:
        return UNKNOWN_NAME
    except TimeoutError:
        return TIMED_OUT
    except ConnectionRefusedError:
        return REFUSED
    except OSError as error:
        # A router or a host in the same network that knows of no such neighbour; or a firewall that says so.
        return TIMED_OUT if error.errno == errno.ETIMEDOUT else UNREACHABLE
    with connection:
        return _exchange(connection, name, token, time.monotonic() + seconds)


def _exchange(connection: socket.socket, name: str, token: str, deadline: float) -> str:
    try:
        connection.sendall(token.encode() + b"\0" * PAYLOAD)
        answer = b""
        while not answer.endswith(b"\n") and len(answer) < _ANSWER:
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            part = connection.recv(_ANSWER)
            if not part:
                return STRANGER
            answer += part
    except TimeoutError:
        return STALLED
    except OSError:  # reset
        return STRANGER
    return OK if answer.decode(errors="replace").strip() == name else STRANGER
