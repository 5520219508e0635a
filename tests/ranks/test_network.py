"""The interface that leads to another host, on this machine and in a network namespace where it can be made."""

import socket
import subprocess
import sys

import psutil
import pytest

from mpnet_ds.errors import UserError
from mpnet_ds.ranks.network import find_interface, interfaces


def test_the_way_to_this_machine_itself_is_its_loopback():
    interface = find_interface("localhost", is_elsewhere=False)
    assert interface.is_loopback
    assert interface.name in psutil.net_if_addrs()


def test_the_interface_holds_the_address_from_which_packets_come():
    addresses = {interface.address for interface in interfaces() if not interface.is_loopback}
    if not addresses:
        pytest.skip("this machine has no network but its own loopback")
    assert find_interface(next(iter(addresses))).address in addresses


def test_unknown_names_are_named():
    with pytest.raises(UserError, match=r"does not know the host nobody\.invalid"):
        find_interface("nobody.invalid")


UP = "ip link set lo up;"
ADD = (
    "ip link add {0} type veth peer name {0}-end; ip address add {1}/24 dev {0}; ip link set {0} up; ip link set {0}-end up;"
)
ONE, TWO = ADD.format("one", "10.8.0.1"), ADD.format("two", "10.9.0.1")
ASK = "from mpnet_ds.ranks.network import find_interface as find\nprint(find('{}').name)"


def ask(setup: str, host: str) -> subprocess.CompletedProcess:
    """The interface that is found in a network of its own."""
    script = f'{setup} exec {sys.executable} -c "{ASK.format(host)}"'
    done = subprocess.run(["unshare", "--net", "bash", "-c", script], capture_output=True, text=True, timeout=60)
    if any(word in done.stderr for word in ("unshare", "ip:", "RTNETLINK", "Unknown device type")):
        pytest.skip(f"no network namespace, or no interfaces in it, can be made here: {done.stderr.strip()}")
    return done


@pytest.mark.parametrize(
    ("setup", "host", "expected"),
    [
        (UP + ONE + TWO, "10.8.0.7", "one"),
        (UP + ONE + TWO, "10.9.0.1", "two"),
        (UP + ONE, "127.0.1.1", "one"),  # the only one that leads anywhere
        (UP + ONE + TWO + "ip route add default dev two;", "127.0.1.1", "two"),
    ],
)
def test_the_interface_that_leads_to_a_host_is_found(setup, host, expected):
    assert ask(setup, host).stdout.strip() == expected


@pytest.mark.parametrize(
    ("setup", "host", "words"),
    [
        (UP + ONE, "10.99.0.1", "no route leads from"),
        (UP, "127.0.0.1", "network interfaces are: none"),
        (UP + ONE + TWO, "127.0.1.1", "network interfaces are: one, two. Set GLOO_SOCKET_IFNAME"),
    ],
)
def test_where_the_way_is_unknown_the_cure_is_named(setup, host, words):
    assert words in ask(setup, host).stderr


def test_this_hosts_own_name_leads_outwards_where_something_does():
    if all(interface.is_loopback for interface in interfaces()):
        pytest.skip("this machine has no network but its own loopback")
    assert not find_interface(socket.gethostname()).is_loopback
