"""How a check is shown to a person: tables of hosts and of bandwidth, and what should be known. Errors are not in it."""

from collections.abc import Sequence

from mpnet_ds.cluster.bandwidth import SIZES, Row
from mpnet_ds.cluster.check import ClusterCheck
from mpnet_ds.cluster.launcher_files import Host
from mpnet_ds.cluster.verdict import GB

HOSTS = ("host", "slots", "accelerators", "address", "interface", "torch", "disk free", "clock")
BANDWIDTH = ("collective", "size", "time", "bus GB/s")


def report(check: ClusterCheck) -> str:
    """The tables and warnings of a check that has run."""
    parts = [_table(HOSTS, *(_cells(host, check.facts.get(host.name), check.routes.get(host.name)) for host in check.hosts))]
    if check.rows:
        parts.append(_table(BANDWIDTH, *map(_measured, check.rows)))
        if check.rows[-1].size < SIZES[-1] // 2:
            parts[-1] += "\nLarger sizes were left out: they would take too long."
    if check.why_no_rows:
        parts.append(f"Bandwidth was not measured: {check.why_no_rows}.")
    warnings = [f"warning: {finding.text}" for finding in check.findings if not finding.is_fatal]
    return "\n\n".join(parts + (["\n".join(warnings)] if warnings else []))


def _cells(host: Host, fact: dict | None, route: dict | None) -> list[str]:
    """A line for a host; what was not learnt is a dash. Clocks: seconds ahead of this machine's."""
    cells = [host.name, str(host.slots), *6 * ["-"]]
    if fact:
        gpus, free = fact["gpus"], fact["disk"]["free"] / GB
        cells[2] = f"{len(gpus)} x {gpus[0]['name']}" if gpus else f"{fact['cores']} cores"
        cells[5:] = fact["versions"].get("torch", "broken"), f"{free:.0f} GB", f"{fact['clock']:+.2f} s"
    if route:
        speed = f", {route['speed'] / 1000:g} Gbit/s" if route["speed"] else ""
        cells[3:5] = route["address"], f"{route['interface']} (MTU {route['mtu']}{speed})"
    return cells


def _measured(row: Row) -> tuple[str, ...]:
    size, milliseconds = row.size / 2**20, row.seconds * 1000
    return row.collective, f"{size:.0f} MiB", f"{milliseconds:.2f} ms", f"{row.bus_bandwidth / GB:.3g}"


def _table(*lines: Sequence[str]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
