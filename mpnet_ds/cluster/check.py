"""The whole check of a cluster: asks all hosts at the same time, step by step, and gathers what is wrong.

A host that is lost on the way is a finding, and the others continue without it. When the check ends, or is interrupted, all
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
from mpnet_ds.cluster.launcher_files import exported_variables, read_hostfile
from mpnet_ds.cluster.shell_line import check_start
from mpnet_ds.cluster.ssh import Launch, RemoteCall
from mpnet_ds.errors import UserError
from mpnet_ds.findings import Finding
from mpnet_ds.progress import Progress

LIBRARIES = ("mpnet_ds", "numpy", "torch", "deepspeed", "transformers", "tokenizers")
SECONDS_FOR_FACTS, SECONDS_FOR_VERIFYING = 240.0, 24 * 3600.0
SECONDS_FOR_CONNECTION = 5.0
SECONDS_FOR_COLLECTIVE, SECONDS_FOR_BANDWIDTH = 30.0, 150.0
PerHost = Sequence[tuple[str, dict]]
"""Hosts, each with the arguments of a function or with its result."""


class ClusterCheck:
    """A check of the hosts of a hostfile for a run that would be started here, and what it has learnt of them.

    ``options`` are those of tools/check_cluster.py. ``UserError`` if the hostfile is invalid.
    """

    def __init__(self, options: Namespace):
        self.options, self.hosts = options, read_hostfile(options.hostfile)
        variables, self.findings = exported_variables(os.environ, Path.cwd())
        if len(self.hosts) > 1:
            self.findings += check_start(sys.executable, Path.cwd(), variables)
        if len(self.hosts) > 1 and not shutil.which("pdsh"):
            text = "pdsh is not installed on this machine: deepspeed --hostfile needs it where the run is started"
            self.findings.append(verdict.warning(f"{text} (apt install pdsh); mpirun, srun and torchrun do not."))
        self.facts: dict[str, dict] = {}
        self.routes: dict[str, dict] = {}
        self.outcomes: verdict.Outcomes = {}
        self.rows: list[bandwidth.Row] = []
        self.why_no_rows = ""
        self._launch = Launch(sys.executable, str(Path.cwd()), variables, options.ssh_port)
        self._token = secrets.token_hex(16)  # so that the listeners of another check are strangers

    async def run(self) -> None:
        """Facts, then routes, links and the port of rank 0, then bandwidth: each step with the hosts that are left."""
        options = self.options
        asked = {"data": options.data, "output_dir": options.output_dir, "verify_data": options.verify_data}
        asked = [(host.name, asked | {"libraries": LIBRARIES}) for host in self.hosts]
        seconds = SECONDS_FOR_VERIFYING if options.verify_data else SECONDS_FOR_FACTS
        async with self._on_hosts("Asking", probe.look, seconds, asked) as found:
            self.facts = dict(found)
        self.findings += verdict.check_facts(self.hosts, self.facts, options.min_disk)
        usable = [host for host, fact in self.facts.items() if "mpnet_ds" in fact["versions"]]
        addresses = [options.master_addr] if options.master_addr else self.facts[usable[0]]["addresses"] if usable else []
        if usable and not addresses:
            text = f"{usable[0]}: 'hostname -I' names no address, from which deepspeed takes rank 0's: name --master_addr."
            self.findings.append(Finding(text))
        elif usable:
            await self._test_links(usable, addresses[0])
            self.findings += verdict.check_routes(self.routes, usable[0], addresses[0])
            self.findings += verdict.check_port(options.master_port, self.routes, self.outcomes)
            ranks = self._plan_ranks()
            self.why_no_rows = self._obstacle(len(ranks))
            if not self.why_no_rows and not await self._measure(ranks):
                await self._test_links(usable, addresses[0])  # one may have broken since

    async def _test_links(self, hosts: Sequence[str], master: str) -> None:
        """Finds routes; then everybody connects to everybody, and to the port on which ranks will meet."""
        first, port = self.hosts[0].name, self.options.master_port
        common = {"token": self._token, "to": master}
        asked = [(host, common | {"name": host, "master_port": port if host == first else None}) for host in hosts]
        seconds = 2 * SECONDS_FOR_CONNECTION * (4 + len(hosts) // links.AT_ONCE)
        async with self._on_hosts("Finding routes", links.listen, seconds, asked) as listening:
            peers = [(host, route["address"], route["port"]) for host, route in listening]
            rank_0 = [(links.RANK_0, master, port) for _, route in listening if "port" in route.get("master", {})]
            common, asked = {"token": self._token, "seconds": SECONDS_FOR_CONNECTION}, []
            for place, (host, _) in enumerate(listening):  # from its successor on, so that no host is met by all at once
                own = peers[place + 1 :] + peers[:place] + (rank_0 if host != first else [])
                asked.append((host, common | {"peers": own}))
            async with self._on_hosts("Testing links", links.connect, seconds, asked) as found:
                ways = [(here, there, how) for here, answer in found for there, how in answer["outcomes"].items()]
        self.routes, self.outcomes = dict(listening), {(here, there): how for here, there, how in ways}
        self.findings += verdict.check_links(self.outcomes)

    def _plan_ranks(self) -> list[tuple[str, int]]:
        """Host and local rank of each rank that measures bandwidth: one for each GPU in use or, without, for each host."""
        gpus, slots = {host: len(self.facts[host]["gpus"] or []) for host in self.routes}, dict(self.hosts)
        return [(host, i) for host in gpus for i in range(min(slots[host], gpus[host]) if all(gpus.values()) else 1)]

    def _obstacle(self, num_ranks: int) -> str:
        """Why no bandwidth can be measured; empty if it can."""
        broken = [host for host in self.routes if self.facts[host]["gpus"] is None]
        reasons = {
            "--skip_bandwidth was given": self.options.skip_bandwidth,
            "a link is broken": any(verdict.check_links(self.outcomes)),
            f"torch cannot be imported on {verdict.show(broken)}": broken,
            "there is only one host to be asked": num_ranks < 2,
        }
        return next((reason for reason, is_so in reasons.items() if is_so), "")

    async def _measure(self, ranks: list[tuple[str, int]]) -> bool:
        """Whether it went well."""
        first, asked = self.routes[ranks[0][0]], []
        backend = "nccl" if all(self.facts[host]["gpus"] for host, _ in ranks) else "gloo"
        for rank, (host, local_rank) in enumerate(ranks):
            interface = ",".join(self.routes[host]["wanted"]) or self.routes[host]["interface"]
            variables = {"MASTER_ADDR": first["address"], "MASTER_PORT": first["port"], "GLOO_SOCKET_IFNAME": interface}
            variables |= {"WORLD_SIZE": len(ranks), "RANK": rank, "LOCAL_RANK": local_rank}
            common = {"backend": backend, "seconds": SECONDS_FOR_COLLECTIVE, "sizes": bandwidth.SIZES}
            asked.append((host, common | {"variables": {name: str(value) for name, value in variables.items()}}))
        async with self._on_hosts("Measuring bandwidth", bandwidth.measure, SECONDS_FOR_BANDWIDTH, asked) as found:
            self.rows = [bandwidth.Row(*row) for _, answer in found[:1] for row in answer["rows"]]
        problems = {host: answer["problem"] for host, answer in found if answer["problem"]}
        self.findings += verdict.check_bandwidth(self.rows, problems, self.routes)
        return len(found) == len(ranks) and not problems

    @asynccontextmanager
    async def _on_hosts(self, what: str, function: Callable, seconds: float, asked: PerHost) -> AsyncIterator[PerHost]:
        """Calls a function on hosts; gives the results of those that answer. What they have started lives in the block."""
        calls = [RemoteCall(host, self._launch, function, seconds, arguments) for host, arguments in asked]
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
            self.findings += map(Finding, error.findings)
            return None
        finally:
            progress.update()
