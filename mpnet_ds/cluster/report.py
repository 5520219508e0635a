"""What a check has learnt, and how it is shown to a person."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mpnet_ds.cluster.bandwidth import SIZES, Row
from mpnet_ds.cluster.hostfile import Host
from mpnet_ds.cluster.verdict import GB, Outcomes, show_size
from mpnet_ds.errors import UserError
from mpnet_ds.findings import Finding


@dataclass
class Report:
    """Facts, routes and outcomes of connections by host, bandwidth, and what is wrong."""

    hosts: Sequence[Host]
    findings: list[Finding]
    facts: dict[str, dict] = field(default_factory=dict)
    routes: dict[str, dict] = field(default_factory=dict)
    outcomes: Outcomes = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    why_no_rows: str = ""

    def raise_if_fatal(self) -> None:
        """Raises ``UserError`` with everything that must be changed."""
        fatal = [finding.text for finding in self.findings if finding.is_fatal]
        if fatal:
            raise UserError(*fatal)

    def __str__(self) -> str:
        parts = [_table("host slots accelerators address interface torch disk\xa0free clock", map(self._host, self.hosts))]
        if self.rows:
            parts.append(_table("collective size time algorithm\xa0GB/s bus\xa0GB/s", map(_bandwidth, self.rows)))
            if self.rows[-1].size < SIZES[-1] // 2:
                parts[-1] += "\nLarger sizes were left out: they would take too long."
        if self.why_no_rows:
            parts.append(f"Bandwidth was not measured: {self.why_no_rows}.")
        warnings = [f"warning: {finding.text}" for finding in self.findings if not finding.is_fatal]
        return "\n\n".join(parts + (["\n".join(warnings)] if warnings else []))

    def _host(self, host: Host) -> list[str]:
        """A line of the table; what was not learnt is a dash. Clocks: seconds ahead of this machine's."""
        cells = [host.name, str(host.slots), *6 * ["-"]]
        if fact := self.facts.get(host.name):
            gpus, free = fact.get("gpus"), fact["disk"]["free"] / GB
            cells[2] = f"{len(gpus)} x {gpus[0]['name']}" if gpus else f"{fact['cores']} cores"
            cells[5:] = fact["versions"].get("torch", "broken"), f"{free:.0f} GB", f"{fact['clock']:+.2f} s"
        if route := self.routes.get(host.name):
            speed = f", {route['speed'] / 1000:g} Gbit/s" if route["speed"] else ""
            cells[3:5] = route["address"], f"{route['interface']} (MTU {route['mtu']}{speed})"
        return cells


def _bandwidth(row: Row) -> list[str]:
    bandwidths = [f"{value / GB:.3g}" for value in (row.algorithm_bandwidth, row.bus_bandwidth)]
    return [row.collective, show_size(row.size), f"{row.seconds * 1000:.2f} ms", *bandwidths]


def _table(heads: str, rows: Iterable[list[str]]) -> str:
    """Columns as wide as they must be, two spaces between them."""
    lines = [heads.split(" "), *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
