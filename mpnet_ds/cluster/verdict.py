"""What is wrong with a cluster, from what its hosts said: pure functions that yield findings.

Each names the host, or both hosts, and says what to do. Facts are what ``probe.look`` said, routes what ``links.listen``
said, by host in the order of the hostfile; hosts that could not be asked are missing.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from mpnet_ds.cluster.bandwidth import Row
from mpnet_ds.cluster.launcher_files import Host
from mpnet_ds.cluster.links import OK, RANK_0, REFUSED, STALLED, STRANGER, TIMED_OUT, UNKNOWN_NAME, UNREACHABLE
from mpnet_ds.findings import Finding, describe_disagreements

GB = 10**9
MAX_CLOCK_DIFFERENCE = 1.0  # seconds
BUSY_SHARE = 0.1  # of a GPU's memory in the hands of others
LEAST_SHARE_OF_SPEED = 0.2  # of an interface's, in a collective

Facts = Mapping[str, dict]
Outcomes = Mapping[tuple[str, str], str]  # (from, to) → what came of the connection
warning = partial(Finding, is_fatal=False)


def check_facts(hosts: Sequence[Host], facts: Facts, min_disk: int) -> Iterator[Finding]:
    """Everything that the hosts' own facts tell. ``min_disk``: bytes that checkpoints need."""
    for names in _hosts_by((fact["machine"], host) for host, fact in facts.items()).values():
        if len(names) > 1:
            yield Finding(f"{show(names)} are one machine: name it once in the hostfile, with all its slots.")
    problems = _hosts_by((problem, host) for host, fact in facts.items() for problem in fact["problems"])
    yield from (Finding(f"{show(names)}: {problem}") for problem, names in problems.items())
    versions = [(host, fact["versions"]) for host, fact in facts.items()]
    yield from map(Finding, describe_disagreements(versions, show, "hosts"))
    yield from check_files(facts)
    yield from check_slots(hosts, facts)
    for host, disk in ((host, fact["disk"]) for host, fact in facts.items()):
        if not disk["is_writable"]:
            yield Finding(f"{host}: this user may not write to {disk['folder']}: choose another --output_dir.")
        elif disk["free"] < min_disk:
            text = f"{host}: {disk['folder']} has {disk['free'] / GB:.1f} GB free, {min_disk / GB:.1f} GB are wanted"
            yield Finding(f"{text}: free some, choose another --output_dir, or lower --min_disk.")
    yield from check_clocks({host: fact["clock"] for host, fact in facts.items()})


def show(names: Iterable[str], most: int = 6) -> str:
    """``node-a, node-b``, or the first few and how many there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _hosts_by(pairs: Iterable[tuple[Hashable, str]]) -> dict[Hashable, list[str]]:
    """Groups hosts by what they have, from pairs of that and a host."""
    groups: dict[Hashable, list[str]] = {}
    for key, host in pairs:
        groups.setdefault(key, []).append(host)
    return groups


def check_files(facts: Facts) -> Iterator[Finding]:
    """Whether all hosts have the same code and data, and whether git has the code too."""
    for name in dict.fromkeys(name for fact in facts.values() for name in fact["files"]):
        known = {host: fact["files"][name] for host, fact in facts.items() if name in fact["files"]}
        yield from _odd_files(name, _hosts_by((tuple(sorted(files.items())), host) for host, files in known.items()))
    if changed := {host: fact["changed"] for host, fact in facts.items() if fact["changed"]}:
        files = show(dict.fromkeys(file for files in changed.values() for file in files), 3)
        text = f"local changes that are in no git revision ({show(changed)}): {files}"
        yield warning(f"{text}. Commit them, if the run shall be repeatable.")


def _odd_files(name: str, groups: Mapping[tuple, Sequence[str]]) -> Iterator[Finding]:
    """Hosts that have not the files (pairs of file and checksum) that most have."""
    usual, *others = sorted(groups, key=lambda group: -len(groups[group]))
    for odd in others:
        there, expected = dict(odd), dict(usual)
        differing = [file for file in expected if file in there and there[file] != expected[file]]
        missing, extra = [file for file in expected if file not in there], [file for file in there if file not in expected]
        kinds = (("differing", differing), ("missing", missing), ("only there", extra))
        how = "; ".join(f"{kind}: {show(files, 3)}" for kind, files in kinds if files)
        text = f"is not that of {show(groups[usual])}: {how}. Copy the same files to all hosts."
        yield from (Finding(f"{host}: {name} {text}") for host in groups[odd])


def check_slots(hosts: Sequence[Host], facts: Facts) -> Iterator[Finding]:
    """Whether each host has the accelerators that its slots claim: GPUs where any host has some, else cores."""
    gpus = {host: fact["gpus"] for host, fact in facts.items() if fact["gpus"] is not None}
    for host, slots in ((host, slots) for host, slots in hosts if host in gpus):
        claim, cores = f"{host}: the hostfile says slots={slots}", facts[host]["cores"]
        if any(gpus.values()):
            yield from _check_gpus(host, slots, gpus[host], f"{claim}, torch sees {len(gpus[host])} GPUs there")
        elif slots > cores:
            found = f"there is no GPU and {cores} usable core{'' if cores == 1 else 's'}"
            yield Finding(f"{claim}, but {found}: correct it to slots={cores} or fewer.")
    kinds = {host: " and ".join(sorted({gpu["name"] for gpu in own})) for host, own in gpus.items() if own}
    if len(set(kinds.values())) > 1:
        text = ", ".join(f"{host} {kind}" for host, kind in kinds.items())
        yield warning(f"GPUs differ ({text}): every step takes as long as on the slowest.")


def _check_gpus(host: str, slots: int, gpus: Sequence[dict], claim: str) -> Iterator[Finding]:
    if slots > len(gpus):
        cure = f"correct it to slots={len(gpus)}" if gpus else "take the host out"
        yield Finding(f"{claim}: {cure}, or look at nvidia-smi and CUDA_VISIBLE_DEVICES on {host}.")
    elif slots < len(gpus):
        yield warning(f"{claim}: the others stay idle.")
    for number, gpu in enumerate(gpus[:slots]):
        taken, memory = gpu["memory"] - gpu["free"], gpu["memory"]
        if taken > BUSY_SHARE * memory:
            text = f"{taken / GB:.0f} of {memory / GB:.0f} GB of GPU {number} are taken by other programs"
            yield warning(f"{host}: {text} (nvidia-smi names them).")


def check_clocks(ahead: Mapping[str, float]) -> Iterator[Finding]:
    """Clocks that are wrong. ``ahead``: seconds by which each host's is ahead of one and the same clock."""
    usual = sorted(ahead, key=ahead.get)[(len(ahead) - 1) // 2 :][:1]
    for host in ahead:
        seconds = ahead[host] - ahead[usual[0]]
        if abs(seconds) > MAX_CLOCK_DIFFERENCE:
            text = f"its clock is {abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} that of {usual[0]}"
            yield Finding(f"{host}: {text}: set it, and keep it with NTP (timedatectl set-ntp true).")


def check_routes(routes: Mapping[str, dict], first: str, master: str) -> Iterator[Finding]:
    """The interfaces through which hosts speak to ``first``, where rank 0 runs, at the address ``master``."""
    is_there = first not in routes or routes[first]["is_own"]
    for host, route in routes.items():
        what = f"{host}: {master}" if route["leads_to"] == master else f"{host}: {master} ({route['leads_to']} there)"
        if host == first and not is_there:
            yield Finding(f"{what} is not an address of {first}, where rank 0 runs: name one that is with --master_addr.")
        if is_there and route["is_own"] and host != first:
            text = f"{what}, where {first} is expected, is {host} itself"
            yield Finding(f"{text}: correct its /etc/hosts, or name another --master_addr.")
        if route["interface"] == "lo" and len(routes) > 1:
            text = f"{host}: its route to {master} is the loopback interface, through which no other host reaches it"
            yield Finding(f"{text}: set GLOO_SOCKET_IFNAME, and NCCL_SOCKET_IFNAME, to the right one.")
        if not set(route["wanted"]) <= set(route["interfaces"]):
            text = f"GLOO_SOCKET_IFNAME is {','.join(route['wanted'])}, its interfaces are {', '.join(route['interfaces'])}"
            yield Finding(f"{host}: {text}: unset it, and each host finds its own.")
    names = {"mtu": "the MTU of the interface (bytes)", "speed": "the speed of the interface (Mbit/s)"}
    known = [(host, {name: route[key] for key, name in names.items() if route[key]}) for host, route in routes.items()]
    yield from (warning(text.replace(" must ", " should ")) for text in describe_disagreements(known, show, "hosts"))


_CURES = {
    TIMED_OUT: "look at the firewall, the cable and the switch",
    UNREACHABLE: "look at the addresses, the cable and the switch",
    REFUSED: "a firewall rejects it: let the hosts reach each other on all ports",
    STALLED: "look at the MTU of both and of all between them",
    STRANGER: "find out whether another host has the same address",
    UNKNOWN_NAME: "add it to DNS or /etc/hosts",
}


def check_links(outcomes: Outcomes) -> Iterator[Finding]:
    """Links between hosts that do not work, each named by its two ends; one finding for a host that has no other link."""
    hosts = list(dict.fromkeys(host for pair in outcomes for host in pair if host != RANK_0))
    broken: dict[frozenset, dict] = {}
    for pair, outcome in outcomes.items():
        if outcome != OK and RANK_0 not in pair:
            broken.setdefault(frozenset(pair), {})[pair] = outcome
    for host in hosts if len(hosts) > 2 else ():
        ways = [outcome for ends, ways in broken.items() if host in ends for outcome in ways.values()]
        if len(ways) == 2 * (len(hosts) - 1) and len(set(ways)) == 1:
            what = f"all other hosts ({show(other for other in hosts if other != host)})"
            yield Finding(f"the links between {host} and {what} are broken: {ways[0]}. On {host}, {_CURES[ways[0]]}.")
            broken = {ends: ways for ends, ways in broken.items() if host not in ends}
    for ways in broken.values():
        (here, there), outcome = next(iter(ways.items()))
        how = "; ".join(f"from {one} to {other}: {outcome}" for (one, other), outcome in ways.items())
        if len(ways) == 1:
            how = f"{here} does not reach {there} ({outcome}), the other way works"
        elif len(set(ways.values())) == 1:
            how = f"neither reaches the other ({outcome})"
        yield Finding(f"the link between {here} and {there} is broken: {how}; {_CURES[outcome]}.")


def check_port(port: int, routes: Mapping[str, dict], outcomes: Outcomes) -> Iterator[Finding]:
    """The port on which ranks meet; the ``route`` of the host that tried to listen there has what came of it."""
    other = "give the run another with --master_port"
    for first, listening in ((host, route["master"]) for host, route in routes.items() if "master" in route):
        if "in_use_by" in listening:
            who = f" by {', '.join(listening['in_use_by'])}" if listening["in_use_by"] else ""
            yield Finding(f"{first}: port {port} is in use{who}: end that program, or {other}.")
        if "not_allowed" in listening:
            yield Finding(f"{first}: this user may not listen on port {port}: {other}, above 1023.")
        reached = [(how, host) for (host, there), how in outcomes.items() if there == RANK_0 and how != OK]
        for how, hosts in _hosts_by((how, host) for how, host in reached if outcomes.get((host, first)) == OK).items():
            text = f"{first}: its port {port} cannot be reached from {show(hosts)} ({how})"
            yield Finding(f"{text}: open it in the firewall, or {other}.")


def check_bandwidth(rows: Sequence[Row], problems: Mapping[str, str], routes: Mapping[str, dict]) -> Iterator[Finding]:
    """Collectives that failed, or are far slower than the interfaces. ``problems``: host → what went wrong there."""
    speeds = {host: route["speed"] * 1e6 / 8 / GB for host, route in routes.items() if route["speed"]}
    if problems:
        done = f"after {rows[-1].collective} of {rows[-1].size / 2**20:.0f} MiB" if rows else "before anything was measured"
        text = "; ".join(f"{host}: {problem}" for host, problem in problems.items())
        yield Finding(f"the bandwidth could not be measured, it ended {done}: {text}")
    elif rows and speeds:
        best, slowest = max(row.bus_bandwidth / GB for row in rows), min(speeds, key=speeds.get)
        if best < LEAST_SHARE_OF_SPEED * speeds[slowest]:
            text = f"collectives reach {best:.2f} GB/s at most, the slowest interface ({slowest}) has {speeds[slowest]:.2f}"
            yield warning(f"{text} GB/s: look for a slow cable, a switch or other traffic between the hosts.")
