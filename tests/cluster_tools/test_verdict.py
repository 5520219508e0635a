"""What the facts of hosts come to: each finding names the host and what to do."""

import copy

import pytest

from mpnet_ds.cluster import verdict
from mpnet_ds.cluster.bandwidth import Row
from mpnet_ds.cluster.launcher_files import Host
from mpnet_ds.cluster.links import OK, RANK_0, REFUSED, STALLED, TIMED_OUT

HOSTS = [Host("a", 2), Host("b", 2), Host("c", 2)]
GPU = {"name": "H200", "memory": 140 * 10**9, "free": 139 * 10**9}


@pytest.fixture
def facts():
    """Three hosts that have everything in common."""
    fact = {
        "versions": {"Python": "3.12.1", "the git revision": "0123456789ab", "the tokenizer of dataset d": "44"}
        | {"mpnet_ds": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"},
        "problems": [],
        "files": {"the code of mpnet_ds": {"__init__.py": "11", "tokenizer.py": "22"}}
        | {"dataset d": {"s.bin": "55", "s.idx": "66"}},
        "changed": [],
        "cores": 4,
        "gpus": [],
        "clock": 0.0,
        "disk": {"folder": "/runs", "free": 10**11, "is_writable": True},
    }
    return {host.name: copy.deepcopy(fact) | {"machine": f"machine of {host.name}"} for host in HOSTS}


def texts(facts, min_disk=10**10, hosts=HOSTS):
    return [finding.text for finding in verdict.check_facts(hosts, facts, min_disk)]


def test_hosts_that_have_all_in_common_are_in_order(facts):
    assert texts(facts) == []


def test_a_host_that_could_not_be_asked_is_not_looked_at(facts):
    del facts["b"]
    assert texts(facts) == []


def test_one_machine_under_two_names(facts):
    facts["c"]["machine"] = facts["b"]["machine"]
    (text,) = texts(facts)
    assert text.startswith("b, c are one machine")


def test_versions_that_differ_name_the_host(facts):
    facts["b"]["versions"]["torch"] = "2.12.0"
    facts["c"]["versions"]["Python"] = "3.11.7"
    python, torch = texts(facts)
    assert python.startswith('Python is "3.12.1" on a, b, but "3.11.7" on c: all hosts must')
    assert torch.startswith('torch is "2.13.0" on a, c, but "2.12.0" on b')


def test_a_library_that_is_missing_names_the_host_and_hides_nothing_else(facts):
    del facts["b"]["versions"]["torch"]
    facts["b"] |= {"problems": ["cannot import torch: ModuleNotFoundError: No module named 'torch'"], "gpus": None}
    facts["c"]["versions"]["numpy"] = "1.0"
    missing, numpy = texts(facts)
    assert missing == "b: cannot import torch: ModuleNotFoundError: No module named 'torch'"
    assert numpy.startswith('numpy is "2.4.6" on a, b, but "1.0" on c')


def test_code_that_differs_names_the_files(facts):
    facts["b"]["files"]["the code of mpnet_ds"]["tokenizer.py"] = "77"
    del facts["b"]["files"]["the code of mpnet_ds"]["__init__.py"]
    facts["b"]["files"]["the code of mpnet_ds"]["new.py"] = "88"
    (text,) = texts(facts)
    assert text.startswith("b: the code of mpnet_ds is not that of a, c: ")
    assert "differing: tokenizer.py; missing: __init__.py; only there: new.py" in text


def test_revisions_that_differ_name_the_host(facts):
    facts["c"]["versions"]["the git revision"] = "f" * 12
    (text,) = texts(facts)
    assert text.startswith('the git revision is "0123456789ab" on a, b, but "ffffffffffff" on c')


def test_local_changes_that_all_have_are_only_told(facts):
    for fact in facts.values():
        fact["changed"] = ["tokenizer.py"]
    (finding,) = verdict.check_files(facts)
    assert not finding.is_fatal
    assert finding.text.startswith("local changes that are in no git revision (a, b, c): tokenizer.py")


def test_hosts_without_git_are_compared_by_their_files(facts):
    for fact in facts.values():
        del fact["versions"]["the git revision"]
    assert texts(facts) == []


def test_slots_must_be_cores_where_there_is_no_gpu(facts):
    facts["b"]["cores"] = 1
    (text,) = texts(facts)
    assert text.startswith("b: the hostfile says slots=2, but there is no GPU and 1 usable core: correct it to slots=1")


def test_slots_must_be_gpus_where_there_are_some(facts):
    facts["a"]["gpus"] = [GPU, GPU]
    facts["b"]["gpus"] = [GPU]
    few, none = texts(facts)
    assert few.startswith("b: the hostfile says slots=2, torch sees 1 GPUs there: correct it to slots=1")
    assert none.startswith("c: the hostfile says slots=2, torch sees 0 GPUs there: take the host out")


def test_idle_busy_and_unlike_gpus_are_only_told(facts):
    gpus = [[GPU, GPU, GPU], [GPU, GPU | {"free": 40 * 10**9}], [GPU | {"name": "H100"}] * 2]
    for fact, own in zip(facts.values(), gpus, strict=True):
        fact["gpus"] = own
    findings = list(verdict.check_slots(HOSTS, facts))
    assert not any(finding.is_fatal for finding in findings)
    idle, busy, unlike = [finding.text for finding in findings]
    assert idle.startswith("a: the hostfile says slots=2, torch sees 3 GPUs there: the others stay idle")
    assert busy.startswith("b: 100 of 140 GB of GPU 1 are taken by other programs")
    assert unlike.startswith("GPUs differ (a H200, b H200, c H100)")


def test_data_that_differs_names_host_and_file(facts):
    facts["b"]["files"]["dataset d"]["s.bin"] = "99"
    del facts["c"]["files"]["dataset d"]
    facts["c"]["problems"] = ["dataset d: no dataset folder d. Build one."]
    missing, other = texts(facts)
    assert missing == "c: dataset d: no dataset folder d. Build one."
    assert other.startswith("b: dataset d is not that of a: differing: s.bin. Copy")


def test_many_files_are_counted(facts):
    facts["b"]["files"]["dataset d"] = {f"s-{i}.bin": "0" for i in range(5)}
    (text,) = texts(facts)
    assert "missing: s.bin, s.idx; only there: s-0.bin, s-1.bin, s-2.bin and 2 more" in text


def test_disks_that_are_full_or_closed_name_the_host(facts):
    facts["a"]["disk"]["free"] = 5 * 10**9
    facts["b"]["disk"]["is_writable"] = False
    full, closed = texts(facts)
    assert full.startswith("a: /runs has 5.0 GB free, 10.0 GB are wanted")
    assert closed.startswith("b: this user may not write to /runs")


def test_a_dataset_with_another_tokenizer_names_the_host(facts):
    facts["b"]["versions"]["the tokenizer of dataset d"] = "45"
    (text,) = texts(facts)
    assert text.startswith('the tokenizer of dataset d is "44" on a, c, but "45" on b')


def test_clocks_are_held_against_the_usual_one():
    (finding,) = verdict.check_clocks({"a": 0.1, "b": -0.2, "c": 12.34})
    assert finding.text.startswith("c: its clock is 12.2 s ahead of that of a")
    (finding,) = verdict.check_clocks({"a": 100.0, "b": 100.3, "c": 10.0})  # this machine's own clock does not matter
    assert finding.text.startswith("c: its clock is 90.0 s behind that of a")
    assert not list(verdict.check_clocks({"a": 100.0, "b": 100.9}))


ROUTE = {"interface": "eth0", "mtu": 1500, "speed": 10000, "wanted": [], "interfaces": ["lo", "eth0"], "is_own": False}


@pytest.fixture
def routes():
    """Of three hosts to the first, at 10.0.0.1."""
    found = {host.name: ROUTE | {"leads_to": "10.0.0.1"} for host in HOSTS}
    found["a"]["is_own"] = True
    return found


def route_texts(routes):
    return [finding.text for finding in verdict.check_routes(routes, "a", "head")]


def test_routes_through_one_network_are_in_order(routes):
    assert route_texts(routes) == []


def test_a_name_that_means_the_host_itself_is_told(routes):
    routes["b"] |= {"leads_to": "127.0.1.1", "is_own": True}
    (text,) = route_texts(routes)
    assert text.startswith("b: head (127.0.1.1 there), where a is expected, is b itself: correct its /etc/hosts")


def test_an_address_that_is_not_the_first_hosts_is_told(routes):
    routes["a"]["is_own"] = False
    (text,) = route_texts(routes)
    assert text.startswith("a: head (10.0.0.1 there) is not an address of a, where rank 0 runs")


def test_loopback_and_unknown_interfaces_are_told(routes):
    routes["b"]["interface"] = "lo"
    routes["c"]["wanted"] = ["ib0"]
    loopback, unknown = route_texts(routes)
    assert loopback.startswith("b: its route to head is the loopback interface")
    assert unknown.startswith("c: GLOO_SOCKET_IFNAME is ib0, its interfaces are lo, eth0")


def test_interfaces_that_differ_are_only_told(routes):
    routes["b"]["mtu"], routes["c"]["speed"] = 9000, 1000
    findings = list(verdict.check_routes(routes, "a", "head"))
    assert not any(finding.is_fatal for finding in findings)
    mtu, speed = [finding.text for finding in findings]
    assert mtu.startswith("the MTU of the interface (bytes) is 1500 on a, c, but 9000 on b")
    assert speed.startswith("the speed of the interface (Mbit/s) is 10000 on a, b, but 1000 on c")


def link_texts(broken):
    names = [host.name for host in HOSTS]
    outcomes = {(here, there): OK for here in names for there in names if here != there}
    return [finding.text for finding in verdict.check_links(outcomes | broken)]


def test_links_that_all_work_are_in_order():
    assert link_texts({}) == []


def test_a_broken_link_is_named_by_its_two_ends():
    (text,) = link_texts({("b", "c"): TIMED_OUT, ("c", "b"): TIMED_OUT})
    assert text.startswith("the link between b and c is broken: neither reaches the other (no answer); look at the firewall")


def test_a_link_that_works_one_way_tells_which():
    (text,) = link_texts({("c", "b"): REFUSED})
    assert text.startswith("the link between c and b is broken: c does not reach b (refused), the other way works")


def test_a_link_that_fails_in_two_ways_tells_both():
    (text,) = link_texts({("b", "c"): STALLED, ("c", "b"): TIMED_OUT})
    assert "from b to c: connects, but large packets vanish; from c to b: no answer" in text


def test_a_host_without_any_link_is_one_finding():
    ways = [("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")]
    (text,) = link_texts(dict.fromkeys(ways, TIMED_OUT))
    assert text.startswith("the links between c and all other hosts (a, b) are broken: no answer. On c, look")


def port_texts(listening, outcomes):
    return [finding.text for finding in verdict.check_port(29500, {"a": {"master": listening}, "b": {}}, outcomes)]


def test_a_port_in_use_names_its_holder():
    (text,) = port_texts({"in_use_by": ["process 7 (python x.py)"]}, {})
    assert text.startswith("a: port 29500 is in use by process 7 (python x.py): end that program")


def test_a_port_that_only_root_may_use_is_told():
    (text,) = port_texts({"not_allowed": True}, {})
    assert text.startswith("a: this user may not listen on port 29500: give the run another with --master_port, above 1023")


def test_a_port_behind_a_firewall_names_who_cannot_reach_it():
    links = {("b", "a"): OK, ("c", "a"): OK}
    assert port_texts({"port": 29500}, links | {("b", RANK_0): OK, ("c", RANK_0): OK}) == []
    (text,) = port_texts({"port": 29500}, links | {("b", RANK_0): OK, ("c", RANK_0): TIMED_OUT})
    assert text.startswith("a: its port 29500 cannot be reached from c (no answer): open it in the firewall")
    assert link_texts({("b", RANK_0): TIMED_OUT}) == []  # it is not a link


def test_a_port_behind_a_broken_link_is_no_second_finding():
    assert port_texts({"port": 29500}, {("b", RANK_0): TIMED_OUT, ("b", "a"): TIMED_OUT}) == []


def test_bandwidth_that_was_not_measured_names_the_hosts():
    (finding,) = verdict.check_bandwidth([Row("all_reduce", 1 << 20, 2, 1.0)], {"b": "rank 1 failed: x"}, {})
    assert finding.is_fatal
    assert "it ended after all_reduce of 1 MiB: b: rank 1 failed: x" in finding.text


def test_bandwidth_far_below_the_interface_is_only_told(routes):
    fast, slow = Row("all_reduce", 10**9, 2, 1.0), Row("all_reduce", 10**9, 2, 10.0)
    assert list(verdict.check_bandwidth([fast, slow], {}, routes)) == []
    (finding,) = verdict.check_bandwidth([slow], {}, routes)
    assert not finding.is_fatal
    assert finding.text.startswith("collectives reach 0.10 GB/s at most, the slowest interface (a) has 1.25 GB/s")
