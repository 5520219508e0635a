"""The whole check of a cluster: asks all hosts at the same time, step by step, and gathers what is wrong.

    facts → libraries → routes, links and port → bandwidth

A host that is lost on the way is a finding, and the others go on without it. When the check ends, or is interrupted, all
connections are closed, and with them ends what runs on the hosts.
"""

import asyncio
import os
import secrets
import shutil
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from mpnet_ds.cluster import bandwidth, links, probe, verdict
from mpnet_ds.cluster.hostfile import read_hostfile
from mpnet_ds.cluster.launch_environment import exported_variables
from mpnet_ds.cluster.report import Report
from mpnet_ds.cluster.ssh import Launch, RemoteCall
from mpnet_ds.errors import UserError
from mpnet_ds.findings import Finding
from mpnet_ds.progress import Progress

SECONDS_FOR_FACTS = 240.0
SECONDS_FOR_VERIFYING = 24 * 3600.0
SECONDS_FOR_CONNECTION = 5.0
SECONDS_FOR_COLLECTIVE = 30.0
SECONDS_FOR_BANDWIDTH = 150.0

Calls = Sequence[tuple[str, dict]]
"""Hosts, each with arguments of a function or its result."""


def check_cluster(options: Namespace) -> Report:
    """Checks all hosts of a hostfile for a run that would be started here; ``options`` are those of tools/check_cluster.py.

    ``UserError`` if the hostfile is invalid; what is wrong with the hosts is in the report.
    """
    hosts, folder = read_hostfile(options.hostfile), Path.cwd()
    variables, findings = exported_variables(os.environ, folder)
    if len(hosts) > 1 and not shutil.which("pdsh"):
        text = "pdsh is not installed on this machine: deepspeed --hostfile needs it where the run is started"
        findings.append(verdict.warning(f"{text} (apt install pdsh); mpirun, srun and torchrun do not."))
    check = _Check(options, Launch(sys.executable, str(folder), variables, options.ssh_port), Report(hosts, findings))
    asyncio.run(check.run())
    return check.report


class _Check:
    """The steps of one check, and its report."""

    def __init__(self, options: Namespace, launch: Launch, report: Report):
        self.options, self.launch, self.report = options, launch, report
        self._token = secrets.token_hex(16)  # so that the listeners of another check are strangers

    async def run(self) -> None:
        await self._gather_facts()
        usable = [host for host, fact in self.report.facts.items() if "mpnet_ds" in fact["versions"]]
        if not usable:
            return
        addresses = [self.options.master_addr] if self.options.master_addr else self.report.facts[usable[0]]["addresses"]
        if not addresses:
            text = f"{usable[0]}: 'hostname -I' names no address, from which deepspeed takes rank 0's: name --master_addr."
            self.report.findings.append(Finding(text))
            return
        await self._test_links(usable, addresses[0])
        self.report.findings += verdict.check_routes(self.report.routes, usable[0], addresses[0])
        self.report.findings += verdict.check_links(self.report.outcomes)
        listening = self.report.routes.get(usable[0], {}).get("master", {})
        self.report.findings += verdict.check_port(usable[0], self.options.master_port, listening, self.report.outcomes)
        self.report.why_no_rows = self._obstacle()
        if not self.report.why_no_rows and not await self._measure():  # a link may have broken since
            await self._test_links(usable, addresses[0])
            self.report.findings += verdict.check_links(self.report.outcomes)

    async def _gather_facts(self) -> None:
        options, hosts = self.options, self.report.hosts
        asked = {"data": options.data, "output_dir": options.output_dir, "verify_data": options.verify_data}
        seconds = SECONDS_FOR_VERIFYING if options.verify_data else SECONDS_FOR_FACTS
        async with self._on_hosts("Asking", probe.look, seconds, [(host.name, asked) for host in hosts]) as found:
            facts = self.report.facts = dict(found)
        asked = {"names": probe.LIBRARIES}
        seconds = SECONDS_FOR_FACTS
        async with self._on_hosts("Importing", probe.import_libraries, seconds, [(host, asked) for host in facts]) as found:
            for host, libraries in found:
                facts[host]["versions"] |= libraries["libraries"]
                facts[host]["problems"] += libraries["problems"]
                facts[host]["gpus"] = libraries["gpus"]
        self.report.findings += verdict.check_facts(hosts, facts, options.min_disk)

    async def _test_links(self, hosts: Sequence[str], master: str) -> None:
        """Finds routes; then everybody connects to everybody, and to the port on which ranks will meet."""
        first, port = self.report.hosts[0].name, self.options.master_port
        common = {"token": self._token, "to": master}
        asked = [(host, common | {"name": host, "master_port": port if host == first else None}) for host in hosts]
        seconds = 2 * SECONDS_FOR_CONNECTION * (4 + len(hosts) // links.AT_ONCE)
        async with self._on_hosts("Finding routes", links.listen, seconds, asked) as found:
            self.report.routes = dict(found)
            peers = [(host, route["address"], route["port"]) for host, route in found]
            rank_0 = [(links.RANK_0, master, port) for _, route in found if "port" in route.get("master", {})]
            common = {"token": self._token, "seconds": SECONDS_FOR_CONNECTION}
            asked = []
            for place, (host, _) in enumerate(found):  # from its successor on, so that no host is met by all at once
                own = peers[place + 1 :] + peers[:place] + (rank_0 if host != first else [])
                asked.append((host, common | {"peers": own}))
            async with self._on_hosts("Testing links", links.connect, seconds, asked) as found:
                ways = [(here, there, how) for here, answer in found for there, how in answer["outcomes"].items()]
                self.report.outcomes = {(here, there): how for here, there, how in ways}

    def _obstacle(self) -> str:
        """Why no bandwidth can be measured; empty if it can."""
        report = self.report
        if self.options.skip_bandwidth:
            return "--skip_bandwidth was given"
        if any(verdict.check_links(report.outcomes)):
            return "a link is broken"
        broken = [host for host in report.routes if report.facts[host].get("gpus") is None]
        if broken:
            return f"torch cannot be imported on {verdict.show_hosts(broken)}"
        return "" if len(self._ranks()) > 1 else "there is only one host to be asked"

    def _ranks(self) -> list[tuple[str, int]]:
        """Host and local rank of each rank with which bandwidth is measured: one for each GPU in use, or for each host."""
        slots, gpus = dict(self.report.hosts), {host: len(self.report.facts[host]["gpus"]) for host in self.report.routes}
        with_gpus = all(gpus.values())
        return [(host, local) for host in gpus for local in range(min(slots[host], gpus[host]) if with_gpus else 1)]

    async def _measure(self) -> bool:
        report, ranks = self.report, self._ranks()
        first, asked = report.routes[ranks[0][0]], []
        backend = "nccl" if all(report.facts[host]["gpus"] for host, _ in ranks) else "gloo"
        for rank, (host, local_rank) in enumerate(ranks):
            route = report.routes[host]
            variables = {"MASTER_ADDR": first["address"], "MASTER_PORT": first["port"], "RANK": rank, "LOCAL_RANK": local_rank}
            variables |= {"WORLD_SIZE": len(ranks), "GLOO_SOCKET_IFNAME": ",".join(route["wanted"]) or route["interface"]}
            variables = {name: str(value) for name, value in variables.items()}
            asked.append((host, {"variables": variables, "backend": backend, "seconds": SECONDS_FOR_COLLECTIVE}))
        async with self._on_hosts("Measuring bandwidth", bandwidth.measure, SECONDS_FOR_BANDWIDTH, asked) as found:
            rows = next((answer["rows"] for _, answer in found), [])
        report.rows = [bandwidth.Row(*row) for row in rows]
        problems = {host: answer["problem"] for host, answer in found if answer["problem"]}
        report.findings += verdict.check_bandwidth(report.rows, problems, report.routes)
        return len(found) == len(ranks) and not problems

    @asynccontextmanager
    async def _on_hosts(self, what: str, function: Callable, seconds: float, asked: Calls) -> AsyncIterator[Calls]:
        """Calls a function on hosts, with the arguments for each, and gives the results of those that answer.

        What the calls have started lives as long as the block. ``what`` is shown meanwhile.
        """
        calls = [RemoteCall(host, self.launch, function, seconds, arguments) for host, arguments in asked]
        try:
            with Progress(what, len(calls), unit="hosts") as progress:
                results = await asyncio.gather(*(self._result(call, progress) for call in calls))
            yield [(call.host, result) for call, result in zip(calls, results, strict=True) if result is not None]
        finally:
            await asyncio.gather(*(call.close() for call in calls))

    async def _result(self, call: RemoteCall, progress: Progress) -> dict | None:
        try:
            return await call.result()
        except UserError as error:
            self.report.findings += map(Finding, error.findings)
            return None
        finally:
            progress.update()
