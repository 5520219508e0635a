"""The whole check of a cluster: asks all hosts at the same time, step by step, and gathers what is wrong.

    connect → facts and clocks → rank 0's address → routes → links and port → bandwidth

A host that is lost on the way is a finding, and the others go on without it. At the end, and when the check is
interrupted, every connection is closed, upon which the agents leave.
"""

import asyncio
import os
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mpnet_ds.cluster import verdict
from mpnet_ds.cluster.bandwidth import Row
from mpnet_ds.cluster.hostfile import Host, read_hostfile
from mpnet_ds.cluster.launch_environment import check_pdsh, exported_variables, start_folder
from mpnet_ds.cluster.links import AT_ONCE
from mpnet_ds.cluster.remote import HostLost, RemoteAgent, Route
from mpnet_ds.cluster.tables import table_of_bandwidth, table_of_hosts
from mpnet_ds.errors import UserError
from mpnet_ds.findings import Finding
from mpnet_ds.progress import Progress
from mpnet_ds.ranks.launchers import PORT

SECONDS_FOR_ANSWER = 30.0
SECONDS_FOR_FACTS = 240.0
SECONDS_FOR_VERIFYING = 24 * 3600.0
SECONDS_FOR_CONNECTION = 5.0
SECONDS_FOR_BANDWIDTH = 120.0
CLOCK_ROUNDS = 5


@dataclass(frozen=True)
class Wishes:
    """What a check is told, beside the hosts."""

    data: list[str] = field(default_factory=list)
    """Dataset folders."""
    output_dir: str = "runs"
    min_disk: int = 10 * 10**9
    """Bytes that must be free there."""
    ssh_port: int | None = None
    master_port: int = PORT
    master_addr: str | None = None
    """None: the first address of the first host, as DeepSpeed's launcher takes it."""
    verify_data: bool = False
    """Read every byte of the datasets on every host."""
    skip_bandwidth: bool = False


@dataclass
class Report:
    """What was learnt, by host, and what is wrong."""

    hosts: Sequence[Host]
    facts: dict[str, dict] = field(default_factory=dict)
    offsets: dict[str, float] = field(default_factory=dict)
    """Seconds by which a host's clock is ahead of this machine's."""
    routes: dict[str, dict] = field(default_factory=dict)
    outcomes: dict[tuple[str, str], str] = field(default_factory=dict)
    """Of connections from one host to another."""
    rows: list[Row] = field(default_factory=list)
    why_no_rows: str = ""
    findings: list[Finding] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [table_of_hosts(self.hosts, self.facts, self.routes, self.offsets)]
        parts += [table_of_bandwidth(self.rows)] if self.rows else []
        parts += [f"Bandwidth was not measured: {self.why_no_rows}."] if self.why_no_rows else []
        warnings = [f"warning: {finding.text}" for finding in self.findings if not finding.is_fatal]
        return "\n\n".join([*parts, *(["\n".join(warnings)] if warnings else [])])


def check_cluster(hostfile: str, wishes: Wishes) -> Report:
    """Checks all hosts of a hostfile for a run that would be started here. ``UserError`` if the hostfile is no good."""
    hosts, folder = read_hostfile(hostfile), start_folder()
    variables, findings = exported_variables(os.environ, folder)
    route = Route(sys.executable, str(folder), variables, wishes.ssh_port)
    report = Report(hosts, findings=findings + (check_pdsh() if len(hosts) > 1 else []))
    return asyncio.run(_Check(report, route, wishes).run())


def conclude(report: Report) -> None:
    """Raises ``UserError`` with everything that must be changed."""
    fatal = [finding.text for finding in report.findings if finding.is_fatal]
    if fatal:
        raise UserError(*fatal)


class _Check:
    """The connections of one check, and its report."""

    def __init__(self, report: Report, route: Route, wishes: Wishes):
        self.wishes, self.report = wishes, report
        self._agents = {host.name: RemoteAgent(host, route) for host in report.hosts}
        self._alive = dict(self._agents)
        self._token = secrets.token_hex(16)  # so that the listeners of another check are strangers

    async def run(self) -> Report:
        try:
            await self._connect()
            await self._look()
            if await self._find_routes():
                await self._test_links()
                await self._measure()
        finally:
            await asyncio.gather(*(agent.close() for agent in self._agents.values()))
        return self.report

    async def _connect(self) -> None:
        await self._each("Connecting", lambda agent: agent.start())

    async def _look(self) -> None:
        """Facts and clocks, and what they tell."""
        wishes, report = self.wishes, self.report
        data = {"data": wishes.data, "output_dir": wishes.output_dir, "verify_data": wishes.verify_data}
        seconds = SECONDS_FOR_VERIFYING if wishes.verify_data else SECONDS_FOR_FACTS
        report.offsets = await self._each("Reading clocks", _read_clock)
        report.facts = await self._each("Looking", lambda agent: agent.ask("look", seconds, **data))
        report.findings += verdict.check_facts(report.hosts, report.facts, wishes.min_disk)
        report.findings += verdict.check_clocks(report.offsets)

    async def _find_routes(self) -> bool:
        """How each host speaks to the first one; whether that is known of any."""
        if not self._alive:
            return False
        first = self._first = next(iter(self._alive))  # where rank 0 runs, as far as it can be asked
        self._master = self.wishes.master_addr
        if self._master is None:
            own = await self._each("", lambda agent: agent.ask("addresses", SECONDS_FOR_ANSWER), [first])
            if not own.get(first):
                text = f"{first}: 'hostname -I' names no address, from which deepspeed takes rank 0's: name --master_addr."
                self.report.findings.append(Finding(text))
                return False
            self._master = own[first][0]
        routes = await self._each("Finding routes", lambda agent: agent.ask("route", SECONDS_FOR_ANSWER, to=self._master))
        self.report.routes = routes
        self.report.findings += verdict.check_routes(routes, self._first, self._master)
        return bool(routes)

    async def _test_links(self) -> None:
        """Everybody connects to everybody, and to the port on which the ranks will meet."""
        report, names = self.report, list(self.report.routes)
        report.outcomes = await self._connect_all(names)
        report.findings += verdict.check_links(report.outcomes)
        if self._first in self._ports and self._first == report.hosts[0].name and report.routes[self._first]["is_own"]:
            await self._test_port()
        await self._each("", lambda agent: agent.ask("hush", SECONDS_FOR_ANSWER), list(self._ports))

    async def _connect_all(self, names: Sequence[str]) -> dict[tuple[str, str], str]:
        """What came of a connection from each of these hosts to each other."""
        routes = self.report.routes
        listening = await self._each("", lambda agent: self._listen(agent.name, routes[agent.name]["address"]), names)
        self._ports = {name: answer["port"] for name, answer in listening.items()}
        where = [(name, routes[name]["address"], port) for name, port in self._ports.items()]
        self._patience = SECONDS_FOR_ANSWER + 2 * SECONDS_FOR_CONNECTION * (1 + len(where) // AT_ONCE)

        def connect(agent: RemoteAgent):
            place = list(self._ports).index(agent.name)
            peers = where[place + 1 :] + where[:place]
            return agent.ask("connect", self._patience, peers=peers, token=self._token, seconds=SECONDS_FOR_CONNECTION)

        found = await self._each("Testing links", connect, list(self._ports))
        return {(here, there): outcome for here, ways in found.items() for there, outcome in ways.items()}

    def _listen(self, name: str, address: str, port: int = 0):
        return self._agents[name].ask("listen", SECONDS_FOR_ANSWER, name=name, token=self._token, address=address, port=port)

    async def _test_port(self) -> None:
        first, port = self._first, self.wishes.master_port
        answer = (await self._each("", lambda agent: self._listen(agent.name, "", port), [first])).get(first)
        if answer is None:
            return
        peer = {"peers": [(first, self._master, port)], "token": self._token, "seconds": SECONDS_FOR_CONNECTION}
        others = [name for name in self._ports if name != first] if "port" in answer else []
        reached = await self._each("", lambda agent: agent.ask("connect", self._patience, **peer), others)
        outcomes = {name: ways[first] for name, ways in reached.items()}
        self.report.findings += verdict.check_port(first, port, answer, outcomes, self.report.outcomes)

    async def _measure(self) -> None:
        report = self.report
        names = [name for name in report.routes if name in self._alive and name in self._ports]
        backend, ranks = _plan_ranks(report.hosts, report.facts, names)
        report.why_no_rows = self._obstacle(names, sum(ranks.values()))
        if report.why_no_rows:
            return
        first_ranks = dict(zip(names, [sum(list(ranks.values())[:place]) for place in range(len(names))], strict=True))
        address, port = report.routes[names[0]]["address"], self._ports[names[0]]
        common = {"world_size": sum(ranks.values()), "address": address, "port": port, "backend": backend}

        def measure(agent: RemoteAgent):
            own = {"first_rank": first_ranks[agent.name], "ranks_here": ranks[agent.name]}
            own |= {"interface": report.routes[agent.name]["interface"], "seconds": SECONDS_FOR_BANDWIDTH}
            return agent.ask("measure", SECONDS_FOR_BANDWIDTH + SECONDS_FOR_ANSWER, **own, **common)

        answers = await self._each("Measuring bandwidth", measure, names)
        report.rows = [Row(**row) for answer in answers.values() for row in answer["rows"]]
        problems = {name: answer["problem"] for name, answer in answers.items() if answer["problem"]}
        report.findings += verdict.check_bandwidth(report.rows, problems, report.routes)
        if problems:  # a link may have broken since
            report.findings += verdict.check_links(await self._connect_all(names))

    def _obstacle(self, names: Sequence[str], ranks: int) -> str:
        """Why no bandwidth can be measured; empty if it can."""
        if self.wishes.skip_bandwidth:
            return "--skip_bandwidth was given"
        if verdict.broken_links(self.report.outcomes):
            return "a link is broken"
        broken = [name for name in names if "error" in self.report.facts[name]["libraries"].get("torch", {"error": ""})]
        if broken:
            return f"torch cannot be imported on {verdict.show_hosts(broken)}"
        return "" if ranks > 1 else "there is only one host to be asked"

    async def _each(
        self, what: str, act: Callable[[RemoteAgent], Any], names: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """What hosts (by default all that are left) answer, by name; those that do not are findings.

        ``what`` is shown while they are at it.
        """
        agents = [agent for name, agent in self._alive.items() if names is None or name in names]
        with Progress(what, len(agents), unit="hosts", enabled=bool(what)) as progress:
            answers = await asyncio.gather(*(self._attempt(agent, act, progress) for agent in agents))
        return {agent.name: answer for agent, (was_answered, answer) in zip(agents, answers, strict=True) if was_answered}

    async def _attempt(self, agent: RemoteAgent, act, progress: Progress) -> tuple[bool, Any]:
        try:
            return True, await act(agent)
        except HostLost as lost:
            self.report.findings.append(Finding(str(lost)))
            self._alive.pop(agent.name)
        except UserError as error:
            self.report.findings += map(Finding, error.findings)
        finally:
            progress.update()
        return False, None


async def _read_clock(agent: RemoteAgent) -> float:
    """Seconds by which the host's clock is ahead: of the fastest of a few answers, which is the most exact."""
    readings = []
    for _ in range(CLOCK_ROUNDS):
        before = time.time()
        there = await agent.ask("time", SECONDS_FOR_ANSWER)
        after = time.time()
        readings.append((after - before, there - (before + after) / 2))
    return min(readings)[1]


def _plan_ranks(hosts: Sequence[Host], facts: dict[str, dict], names: Sequence[str]) -> tuple[str, dict[str, int]]:
    """With which backend bandwidth is measured, and how many ranks on each host."""
    slots = {host.name: host.slots for host in hosts}
    gpus = {name: len(verdict.gpus_of(facts[name])) for name in names if name in facts}
    if gpus and all(gpus.get(name) for name in names):
        return "nccl", {name: min(slots[name], gpus[name]) for name in names}
    return "gloo", dict.fromkeys(names, 1)
