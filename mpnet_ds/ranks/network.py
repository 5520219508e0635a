"""Network interfaces of this machine, and which of them leads to another host."""

import socket
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address

import psutil

from mpnet_ds.errors import UserError

ELSEWHERE = "192.0.2.1"
"""An address that belongs to nobody (RFC 5737): packets to it take the default route."""


@dataclass(frozen=True)
class Interface:
    """A network interface with one of its addresses."""

    name: str
    address: str
    mtu: int = 0
    """Largest packet, bytes."""
    speed: int = 0
    """Mbit/s; 0 if unknown."""

    @property
    def is_loopback(self) -> bool:
        """Whether it leads only to this machine itself."""
        return ip_address(self.address).is_loopback


def find_interface(host: str, is_elsewhere: bool = True) -> Interface:
    """Find the interface through which packets to ``host``, a name or an address, leave; nothing is sent.

    Args:
        is_elsewhere: whether other machines must reach this one through it. On ``host`` itself its name often stands for
            127.0.1.1; then the interface of the default route is taken, or the only one.

    Raises ``UserError`` if the name is unknown, no route leads to it, or several interfaces are possible.
    """
    address = _source_towards(resolve(host), host)
    if is_elsewhere and ip_address(address).is_loopback:
        return _outward()
    return _holder(address)


def address_here(host: str) -> str:
    """Return ``host`` if that is this machine, else the address of this machine from which packets to it would come."""
    address = resolve(host)
    is_here = ip_address(address.partition("%")[0]).is_loopback or any(one.address == address for one in interfaces())
    return host if is_here else _source_towards(address, host)


def resolve(host: str) -> str:
    """Resolve a name or an address to its first address, IPv6 with its scope; ``UserError`` if it is unknown here."""
    try:
        return socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)[0][4][0]
    except socket.gaierror as error:
        text = f"{socket.gethostname()} does not know the host {host} ({error.strerror})"
        raise UserError(f"{text}: use its address, or add it to /etc/hosts or to the name server.") from error


def is_this_machine(host: str) -> bool | None:
    """Tell whether a name or an address is one of this machine; None for a name that is unknown here."""
    if host in ("localhost", socket.gethostname()):
        return True
    with suppress(UserError):
        address = resolve(host).partition("%")[0]
        return ip_address(address).is_loopback or address in (one.address for one in interfaces())
    return None


def _source_towards(address: str, host: str) -> str:
    """Find the address of this machine from which packets to ``address`` would come."""
    family = socket.AF_INET6 if ip_address(address.partition("%")[0]).version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # a datagram socket only looks up the route
        except OSError as error:
            text = f"no route leads from {socket.gethostname()} to {host} ({address}): {error.strerror}"
            raise UserError(f"{text}. Use an address in a network that all hosts share.") from error
        return probe.getsockname()[0]


def _outward() -> Interface:
    with suppress(UserError):  # without a default route there may still be only one interface
        return _holder(_source_towards(ELSEWHERE, ELSEWHERE))
    found = [interface for interface in interfaces() if not interface.is_loopback]
    if len(found) != 1:
        names = ", ".join(interface.name for interface in found) or "none"
        text = f"{socket.gethostname()} has no default route, and its network interfaces are: {names}"
        raise UserError(f"{text}. Set GLOO_SOCKET_IFNAME (and NCCL_SOCKET_IFNAME) to the one between the hosts.")
    return found[0]


def _holder(address: str) -> Interface:
    for interface in interfaces():
        if interface.address == address:
            return interface
    raise UserError(f"no network interface of {socket.gethostname()} has the address {address}.")


def interfaces() -> list[Interface]:
    """List the interfaces that are up, one entry for each IPv4 or IPv6 address; link-local addresses are left out."""
    states, found = psutil.net_if_stats(), []
    for name, addresses in psutil.net_if_addrs().items():
        state = states.get(name)
        for entry in addresses:
            if entry.family in (socket.AF_INET, socket.AF_INET6) and state and state.isup:
                address = entry.address.partition("%")[0]
                if not ip_address(address).is_link_local:
                    found.append(Interface(name, address, state.mtu, state.speed))
    return found
