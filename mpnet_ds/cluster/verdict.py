"""What is wrong with a cluster, from what its hosts said: pure functions that return findings.

Each finding names the host, or both hosts, and says what to do. ``facts`` are those of ``probe.look`` by host, in the
order of the hostfile; hosts that could not be asked are not in it.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from mpnet_ds.cluster.bandwidth import Row
from mpnet_ds.cluster.hostfile import Host
from mpnet_ds.cluster.links import OK, REFUSED, STALLED, STRANGER, TIMED_OUT, UNKNOWN_NAME, UNREACHABLE
from mpnet_ds.findings import Finding, disagreement

GB = 10**9
MAX_CLOCK_DIFFERENCE = 1.0  # seconds
BUSY_SHARE = 0.1  # of a GPU's memory in the hands of others
LEAST_SHARE_OF_SPEED = 0.2  # of an interface's, in a collective
_NAMED_FILES, _NAMED_HOSTS = 3, 6

Facts = Mapping[str, dict]


def check_facts(hosts: Sequence[Host], facts: Facts, min_disk: int) -> list[Finding]:
    """Everything that the hosts' own facts tell. ``min_disk``: bytes that checkpoints need."""
    return [
        *check_machines(facts),
        *check_libraries(facts),
        *check_code(facts),
        *check_slots(hosts, facts),
        *check_data(facts),
        *check_disk(facts, min_disk),
    ]


def check_machines(facts: Facts) -> list[Finding]:
    """Lines of the hostfile that lead to one machine, whose devices would be given out twice."""
    names: dict[str, list[str]] = {}
    for name, fact in facts.items():
        names.setdefault(fact["machine"], []).append(name)
    text = "{} are one machine: name it once in the hostfile, with all its slots."
    return [Finding(text.format(show_hosts(same))) for same in names.values() if len(same) > 1]


def check_libraries(facts: Facts) -> list[Finding]:
    """Python and what a run imports: there, sound, and the same everywhere."""
    findings = []
    libraries = dict.fromkeys(library for fact in facts.values() for library in fact["libraries"])
    for library in libraries:
        errors: dict[str, list[str]] = {}
        for name, fact in facts.items():
            if "error" in (found := fact["libraries"].get(library, {})):
                errors.setdefault(found["error"], []).append(name)
        for error, names in errors.items():
            findings.append(Finding(f"{show_hosts(names)}: cannot import {library}: {error}"))
    versions = {"Python": lambda fact: fact["python"], "mpnet_ds": lambda fact: fact["mpnet_ds"]}
    for library in libraries:
        versions[library] = lambda fact, library=library: fact["libraries"].get(library, {}).get("version")
    versions["CUDA"] = lambda fact: fact["libraries"].get("torch", {}).get("cuda")
    versions["NCCL"] = lambda fact: fact["libraries"].get("torch", {}).get("nccl")
    return findings + _differences(facts, versions)


def _differences(facts: Facts, values: Mapping[str, Callable[[dict], object]]) -> list[Finding]:
    findings = []
    for name, value in values.items():
        known = [(host, value(fact)) for host, fact in facts.items() if value(fact) is not None]
        text = disagreement(name, known, show_hosts, "hosts")
        findings += [Finding(text)] if text else []
    return findings


def check_code(facts: Facts) -> list[Finding]:
    """The project itself: the same revision, and the same files where revisions say nothing."""
    revisions = {host: fact["git"]["revision"][:12] for host, fact in facts.items() if "revision" in fact["git"]}
    text = disagreement("the git revision", revisions.items(), show_hosts, "hosts")
    findings = [Finding(text)] if text else []
    for host, others, files in _odd_files({host: fact["code"] for host, fact in facts.items()}):
        where = facts[host]["code_folder"]
        what = f"{host}: the code of mpnet_ds in {where} is not that of {others}: {files}"
        findings.append(Finding(f"{what}. Bring all hosts to the same state (git status says what was changed)."))
    changed = {host: fact["git"].get("changed") for host, fact in facts.items() if fact["git"].get("changed")}
    if changed and not any(finding.is_fatal for finding in findings):
        files = _name_some(list(dict.fromkeys(file for names in changed.values() for file in names)))
        text = f"local changes that are in no git revision ({show_hosts(changed)}): {files}"
        findings.append(Finding(f"{text}. Commit them, if the run shall be repeatable.", is_fatal=False))
    return findings


def _odd_files(folders: Mapping[str, Mapping[str, str]]) -> Iterable[tuple[str, str, str]]:
    """Hosts whose files (name → checksum) are not those of most: the host, the others, and the differences in words."""
    groups: dict[tuple, list[str]] = {}
    for host, files in folders.items():
        groups.setdefault(tuple(sorted(files.items())), []).append(host)
    by_size = sorted(groups, key=lambda group: -len(groups[group]))
    for group in by_size[1:]:
        usual = by_size[0]
        there, expected = dict(group), dict(usual)
        differing = [file for file in expected if file in there and there[file] != expected[file]]
        missing, extra = [file for file in expected if file not in there], [file for file in there if file not in expected]
        kinds = (("differing", differing), ("missing", missing), ("only there", extra))
        text = "; ".join(f"{kind}: {_name_some(files)}" for kind, files in kinds if files)
        for host in groups[group]:
            yield host, show_hosts(groups[usual]), text


def _name_some(files: Sequence[str]) -> str:
    more = f" and {len(files) - _NAMED_FILES} more" if len(files) > _NAMED_FILES else ""
    return ", ".join(files[:_NAMED_FILES]) + more


def check_slots(hosts: Sequence[Host], facts: Facts) -> list[Finding]:
    """Whether each host has the accelerators that its slots claim: GPUs where any host has some, else cores."""
    findings = []
    with_gpus = any(gpus_of(fact) for fact in facts.values())
    for host in hosts:
        if host.name in facts and "error" not in facts[host.name]["libraries"].get("torch", {}):
            findings += _check_gpus(host, gpus_of(facts[host.name])) if with_gpus else _check_cores(host, facts[host.name])
    kinds = {host: sorted({gpu["name"] for gpu in gpus_of(fact)}) for host, fact in facts.items() if gpus_of(fact)}
    if len({tuple(kind) for kind in kinds.values()}) > 1:
        text = ", ".join(f"{host} {' and '.join(kind)}" for host, kind in kinds.items())
        findings.append(Finding(f"GPUs differ ({text}): every step takes as long as on the slowest.", is_fatal=False))
    return findings


def _check_gpus(host: Host, gpus: Sequence[dict]) -> list[Finding]:
    found = f"{host.name}: the hostfile says slots={host.slots}, torch sees {len(gpus)} GPUs there"
    if host.slots > len(gpus):
        cure = f"correct it to slots={len(gpus)}" if gpus else "take the host out"
        return [Finding(f"{found}: {cure}, or look at nvidia-smi and CUDA_VISIBLE_DEVICES on {host.name}.")]
    findings = [Finding(f"{found}: the others stay idle.", is_fatal=False)] if host.slots < len(gpus) else []
    for number, gpu in enumerate(gpus[: host.slots]):
        taken = gpu["memory"] - gpu["free"]
        if taken > BUSY_SHARE * gpu["memory"]:
            text = (
                f"{host.name}: {taken / GB:.0f} of {gpu['memory'] / GB:.0f} GB of GPU {number} are taken by other programs"
            )
            findings.append(Finding(f"{text} (nvidia-smi names them).", is_fatal=False))
    return findings


def _check_cores(host: Host, fact: dict) -> list[Finding]:
    cores = fact["cores"]
    if host.slots <= cores:
        return []
    text = f"{host.name}: the hostfile says slots={host.slots}, but there is no GPU and {_count(cores, 'usable core')}"
    return [Finding(f"{text}: correct it to slots={cores} or fewer.")]


def gpus_of(fact: dict) -> list[dict]:
    """Of a host, as torch sees them."""
    return fact["libraries"].get("torch", {}).get("gpus", [])


def check_data(facts: Facts) -> list[Finding]:
    """Each dataset: there, whole, and the same everywhere; otherwise which files are not."""
    findings = []
    for folder in dict.fromkeys(folder for fact in facts.values() for folder in fact["data"]):
        entries = {host: fact["data"][folder] for host, fact in facts.items()}
        errors: dict[str, list[str]] = {}
        for host, entry in entries.items():
            if "error" in entry:
                errors.setdefault(entry["error"], []).append(host)
        findings += [Finding(f"{show_hosts(names)}: dataset {folder}: {error}") for error, names in errors.items()]
        sound = {host: entry for host, entry in entries.items() if "error" not in entry}
        for host, others, files in _odd_files({host: entry["files"] for host, entry in sound.items()}):
            what = f"{host}: dataset {folder} is not that of {others} (checksum {sound[host]['checksum']}): {files}"
            findings.append(Finding(f"{what}. Copy the same dataset to all hosts."))
        tokenizers = [(host, entry["tokenizer"]) for host, entry in sound.items()]
        text = disagreement(f"the tokenizer of dataset {folder}", tokenizers, show_hosts, "hosts")
        findings += [Finding(text)] if text else []
    return findings


def check_disk(facts: Facts, min_disk: int) -> list[Finding]:
    """Whether checkpoints have a place."""
    findings = []
    for host, fact in facts.items():
        disk = fact["disk"]
        if not disk["is_writable"]:
            findings.append(Finding(f"{host}: this user may not write to {disk['folder']}: choose another --output_dir."))
        elif disk["free"] < min_disk:
            text = f"{host}: {disk['folder']} has {disk['free'] / GB:.1f} GB free, {min_disk / GB:.1f} GB are wanted"
            findings.append(Finding(f"{text}: free some, choose another --output_dir, or lower --min_disk."))
    return findings


def check_clocks(offsets: Mapping[str, float]) -> list[Finding]:
    """Clocks that go wrong. ``offsets``: seconds by which each host is ahead of one and the same clock."""
    if not offsets:
        return []
    usual = statistics.median_low(offsets.values())
    reference = next(host for host, offset in offsets.items() if offset == usual)
    findings = []
    for host, offset in offsets.items():
        if abs(offset - usual) > MAX_CLOCK_DIFFERENCE:
            way = "ahead of" if offset > usual else "behind"
            text = f"{host}: its clock is {abs(offset - usual):.1f} s {way} that of {reference}"
            findings.append(Finding(f"{text}: set it, and keep it with NTP (timedatectl set-ntp true)."))
    return findings


def check_routes(routes: Mapping[str, dict], first: str, master: str) -> list[Finding]:
    """The interfaces through which hosts speak. ``routes``: of ``probe.route`` by host; ``master``: rank 0's address."""
    findings = []
    is_there = first not in routes or routes[first]["is_own"]
    if not is_there:
        text = f"{first}: {_which(master, routes[first])} is no address of {first}, where rank 0 runs"
        findings.append(Finding(f"{text}: name one that is with --master_addr."))
    for host, route in routes.items():
        if is_there and route["is_own"] and host != first:
            text = f"{host}: {_which(master, route)}, where {first} shall wait, is {host} itself"
            findings.append(Finding(f"{text}: correct its /etc/hosts, or name another --master_addr."))
        if route["interface"] == "lo" and len(routes) > 1:
            text = f"{host}: its way to {master} is the loopback interface, through which no other host reaches it"
            findings.append(Finding(f"{text}: set GLOO_SOCKET_IFNAME, and NCCL_SOCKET_IFNAME, to the right one."))
        if route["wanted"] and not set(route["wanted"]) <= set(route["interfaces"]):
            text = f"{host}: GLOO_SOCKET_IFNAME is {','.join(route['wanted'])}, its interfaces are "
            findings.append(Finding(f"{text}{', '.join(route['interfaces'])}: unset it, and each host finds its own."))
    for name, key, unit in (("MTU", "mtu", "bytes"), ("speed", "speed", "Mbit/s")):
        known = [(host, route[key]) for host, route in routes.items() if route[key]]
        text = disagreement(f"the {name} of the interface ({unit})", known, show_hosts, "hosts")
        findings += [Finding(text.replace("must have", "should have"), is_fatal=False)] if text else []
    return findings


def _which(name: str, route: dict) -> str:
    return name if route["leads_to"] == name else f"{name} ({route['leads_to']} there)"


_MEANING = {
    TIMED_OUT: ("no answer", "look at the firewall, the cable and the switch"),
    UNREACHABLE: ("no way there", "look at the addresses, the cable and the switch"),
    REFUSED: ("refused", "a firewall rejects it: let the hosts reach each other on all ports"),
    STALLED: ("connects, but large packets vanish", "look at the MTU of both and of all between them"),
    STRANGER: ("something else answers", "look whether another host has the same address"),
    UNKNOWN_NAME: ("the name is unknown", "add it to DNS or /etc/hosts"),
}


def check_links(outcomes: Mapping[tuple[str, str], str]) -> list[Finding]:
    """Links that do not carry, each named by its two ends. ``outcomes``: (from, to) → what ``links.connect_to_all`` says."""
    hosts = list(dict.fromkeys(host for pair in outcomes for host in pair))
    broken = broken_links(outcomes)
    findings = []
    for host in hosts if len(hosts) > 2 else ():
        ways = [outcome for pair, ways in broken.items() if host in pair for outcome in ways.values()]
        if len(ways) == 2 * (len(hosts) - 1) and len(set(ways)) == 1:
            meaning, cure = _MEANING[ways[0]]
            others = show_hosts(other for other in hosts if other != host)
            text = f"the links between {host} and all other hosts ({others}) are broken: {meaning}"
            findings.append(Finding(f"{text}. On {host}, {cure}."))
            broken = {pair: ways for pair, ways in broken.items() if host not in pair}
    return findings + [Finding(_describe_link(*pair, ways)) for pair, ways in broken.items()]


def broken_links(outcomes: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], dict[tuple[str, str], str]]:
    """Pair of hosts → the directions between them that do not work, and how."""
    broken: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for (here, there), outcome in outcomes.items():
        if outcome != OK:
            pair = (there, here) if (there, here) in broken else (here, there)
            broken.setdefault(pair, {})[here, there] = outcome
    return broken


def _describe_link(one: str, other: str, ways: Mapping[tuple[str, str], str]) -> str:
    meanings = {way: _MEANING[outcome][0] for way, outcome in ways.items()}
    cure = _MEANING[next(iter(ways.values()))][1]
    if len(ways) == 2 and len(set(meanings.values())) == 1:
        how = f"neither reaches the other ({next(iter(meanings.values()))})"
    elif len(ways) == 2:
        how = "; ".join(f"from {here} to {there}: {meaning}" for (here, there), meaning in meanings.items())
    else:
        ((here, there), meaning), *_ = meanings.items()
        how = f"{here} does not reach {there} ({meaning}), the other way works"
    return f"the link between {one} and {other} is broken: {how}; {cure}."


def check_port(first: str, port: int, listening: Mapping, reached: Mapping[str, str], outcomes: Mapping) -> list[Finding]:
    """The port on which the ranks meet.

    Args:
        listening: what ``links.listen`` said on the first host.
        reached: host → what came of its connection to that port.
        outcomes: of all links; one that is broken anyhow needs no second finding.
    """
    other = "give the run another with --master_port"
    if "in_use_by" in listening:
        who = f" by {', '.join(listening['in_use_by'])}" if listening["in_use_by"] else ""
        return [Finding(f"{first}: port {port} is in use{who}: end that program, or {other}.")]
    if "not_allowed" in listening:
        return [Finding(f"{first}: this user may not listen on port {port}: {other}, above 1023.")]
    closed: dict[str, list[str]] = {}
    for host, outcome in reached.items():
        if outcome != OK and outcomes.get((host, first)) == OK:
            closed.setdefault(_MEANING[outcome][0], []).append(host)
    text = "{}: its port {} cannot be reached from {} ({}): open it in the firewall, or {}."
    return [Finding(text.format(first, port, show_hosts(hosts), how, other)) for how, hosts in closed.items()]


def check_bandwidth(rows: Sequence[Row], problems: Mapping[str, str], routes: Mapping[str, dict]) -> list[Finding]:
    """Collectives that failed, or are far slower than the interfaces. ``problems``: host → what went wrong there."""
    if problems:
        done = f"after {rows[-1].collective} of {show_size(rows[-1].size)}" if rows else "before anything was measured"
        text = "; ".join(f"{host}: {problem}" for host, problem in problems.items())
        return [Finding(f"the bandwidth could not be measured, it ended {done}: {text}")]
    speeds = {host: route["speed"] * 1e6 / 8 for host, route in routes.items() if route["speed"]}
    if not rows or not speeds:
        return []
    best, slowest = max(row.bus_bandwidth for row in rows), min(speeds, key=speeds.get)
    if best >= LEAST_SHARE_OF_SPEED * speeds[slowest]:
        return []
    text = (
        f"collectives reach {best / GB:.2f} GB/s at most, the slowest interface ({slowest}) has {speeds[slowest] / GB:.2f}"
    )
    return [Finding(f"{text} GB/s: look for a slow cable, a switch or other traffic between the hosts.", is_fatal=False)]


def show_hosts(hosts: Iterable[str]) -> str:
    """``node-a, node-b``, or the first few and how many there are."""
    hosts = list(hosts)
    if len(hosts) <= _NAMED_HOSTS:
        return ", ".join(hosts)
    return f"{', '.join(hosts[:_NAMED_HOSTS])} and {len(hosts) - _NAMED_HOSTS} more"


def show_size(size: int) -> str:
    """``16 MiB``."""
    return f"{size / 2**20:.0f} MiB"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
