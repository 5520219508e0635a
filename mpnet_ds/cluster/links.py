"""Which hosts reach which: every host listens, and every host connects to every other, ``AT_ONCE`` at a time.

A connection sends a token of the check and ``PAYLOAD`` bytes, and the listener answers with its own name once all are
there. So it is seen that the right host answers, and that packets of full size get through, not only a handshake.
"""

import errno
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_address

PAYLOAD = 1 << 18  # bytes
AT_ONCE = 16
RANK_0 = "rank 0"  # the name under which the first host listens on the port on which ranks meet
OK, REFUSED, TIMED_OUT, UNREACHABLE = "ok", "refused", "no answer", "no route"
STALLED, STRANGER, UNKNOWN_NAME = "connects, but large packets vanish", "something else answers", "the name is unknown"


def listen(name: str, token: str, to: str, master_port: int | None) -> dict:
    """``route(to)``, and the ``port`` on which this host listens as long as this process lives.

    With a ``master_port``, where ``to`` is this host, it listens there too, and ``master`` says what came of that.
    """
    found = route(to)
    found |= serve(name, token, found["address"], 0)
    return found | ({"master": serve(RANK_0, token, "", master_port)} if master_port and found["is_own"] else {})


def route(to: str) -> dict:
    """The interface through which this host speaks to the others: towards ``to``, or the one that GLOO_SOCKET_IFNAME names.

    Returns ``address``, ``interface`` with ``mtu`` (bytes) and ``speed`` (Mbit/s or 0), ``interfaces``, names of all, and
    ``wanted``, those of the variable; ``leads_to``, what ``to`` stands for here; ``is_own``, whether that is this host.
    Raises ``UserError`` where the name is unknown, or no route leads there.
    """
    from mpnet_ds.ranks.network import find_interface, interfaces, resolve

    found, own, leads_to = find_interface(to), interfaces(), resolve(to).partition("%")[0]
    wanted = [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    found = next((interface for interface in own if interface.name in wanted[:1]), found)
    is_own = ip_address(leads_to).is_loopback or leads_to in {interface.address for interface in own}
    names = list(dict.fromkeys(interface.name for interface in own))
    answer = {"address": found.address, "interface": found.name, "mtu": found.mtu, "speed": found.speed}
    return answer | {"interfaces": names, "wanted": wanted, "leads_to": leads_to, "is_own": is_own}


def serve(name: str, token: str, address: str, port: int) -> dict:
    """Listens there ("": on all addresses): the ``port``, ``in_use_by`` where another program does, or ``not_allowed``."""
    on_all = not address and socket.has_dualstack_ipv6()  # as torch's store does
    family = socket.AF_INET6 if on_all or ":" in address else socket.AF_INET
    try:
        listener = socket.create_server((address, port), family=family, backlog=128, dualstack_ipv6=on_all)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        return {"not_allowed": True} if error.errno == errno.EACCES else {"in_use_by": _holders_of_port(port)}
    threading.Thread(target=_answer_all, args=(listener, name, token), daemon=True).start()
    return {"port": listener.getsockname()[1]}


def _holders_of_port(port: int) -> list[str]:
    """Programs that listen there, as far as this user may know."""
    import psutil

    with suppress(psutil.Error):
        sockets = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
        pids = sorted({each.pid for each in sockets if each.laddr.port == port and each.pid})
        return [f"process {pid} ({' '.join(psutil.Process(pid).cmdline())[:80]})" for pid in pids]
    return []


def _answer_all(listener: socket.socket, name: str, token: str) -> None:
    while connection := listener.accept()[0]:
        threading.Thread(target=_answer, args=(connection, name, token), daemon=True).start()


def _answer(connection: socket.socket, name: str, token: str) -> None:
    with connection, suppress(OSError):  # the one who connects says what went wrong
        connection.settimeout(60)
        received = connection.makefile("rb")
        if received.read(len(token)) == token.encode() and len(received.read(PAYLOAD)) == PAYLOAD:
            connection.sendall(name.encode())


def connect(peers: list[tuple[str, str, int]], token: str, seconds: float) -> dict:
    """``outcomes`` of connections to (name, address, port), by name; each may take so many ``seconds`` at every turn."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = pool.map(lambda peer: _try(*peer, token, seconds), peers)
        return {"outcomes": {name: outcome for (name, *_), outcome in zip(peers, outcomes, strict=True)}}


def _try(name: str, address: str, port: int, token: str, seconds: float) -> str:
    is_connected = False
    try:
        with socket.create_connection((address, port), timeout=seconds) as connection:
            is_connected = True
            connection.sendall(token.encode() + b"\0" * PAYLOAD)
            return OK if connection.makefile("rb").read(len(name.encode()) + 1) == name.encode() else STRANGER
    except socket.gaierror:
        return UNKNOWN_NAME
    except TimeoutError:
        return STALLED if is_connected else TIMED_OUT
    except ConnectionRefusedError:
        return REFUSED
    except OSError:  # reset; or a router, a neighbour or a firewall says that there is no way
        return STRANGER if is_connected else UNREACHABLE
