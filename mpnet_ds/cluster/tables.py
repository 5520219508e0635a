"""Tables of a cluster for a person."""

from collections.abc import Mapping, Sequence

from mpnet_ds.cluster.bandwidth import SIZES, Row
from mpnet_ds.cluster.hostfile import Host
from mpnet_ds.cluster.verdict import GB, gpus_of, show_size


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be, two spaces between them."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (heads, *rows))
    return "\n".join(line.rstrip() for line in lines)


def table_of_hosts(
    hosts: Sequence[Host], facts: Mapping[str, dict], routes: Mapping[str, dict], offsets: Mapping[str, float]
) -> str:
    """A line for each host of the hostfile; what was not learnt is a dash. Clocks: seconds ahead of this machine's."""
    heads = ("host", "slots", "accelerators", "address", "interface", "torch", "disk free", "clock")
    rows = []
    for host in hosts:
        fact, route, offset = facts.get(host.name), routes.get(host.name), offsets.get(host.name)
        torch = fact["libraries"].get("torch", {}).get("version", "broken") if fact else "-"
        rows.append(
            (
                host.name,
                str(host.slots),
                _accelerators(fact) if fact else "-",
                route["address"] if route else "-",
                _interface(route) if route else "-",
                torch,
                f"{fact['disk']['free'] / GB:.0f} GB" if fact else "-",
                f"{offset:+.2f} s" if offset is not None else "-",
            )
        )
    return table(heads, rows)


def _accelerators(fact: dict) -> str:
    gpus = gpus_of(fact)
    if not gpus:
        return f"{fact['cores']} cores"
    return f"{len(gpus)} x {gpus[0]['name']}"


def _interface(route: dict) -> str:
    speed = f", {route['speed'] / 1000:g} Gbit/s" if route["speed"] else ""
    return f"{route['interface']} (MTU {route['mtu']}{speed})"


def table_of_bandwidth(rows: Sequence[Row]) -> str:
    """A line for each collective and size; see bandwidth.py for what the two bandwidths are."""
    heads = ("collective", "size", "time", "algorithm GB/s", "bus GB/s")
    lines = [
        (
            row.collective,
            show_size(row.size),
            f"{row.seconds * 1000:.2f} ms",
            f"{row.algorithm_bandwidth / GB:.3g}",
            f"{row.bus_bandwidth / GB:.3g}",
        )
        for row in rows
    ]
    note = "\nLarger sizes were left out: they would take too long." if rows[-1].size < SIZES[-1] // 2 else ""
    return table(heads, lines) + note
