"""What comes of connections, and on which side it fails."""

import errno
import os
import socket
import threading

import pytest

from mpnet_ds.cluster import links
from tests.runs import free_port

TOKEN = "0123456789abcdef"


@pytest.fixture
def listen():
    """``links.serve`` on this machine's own address; what listens ends with the tests."""
    return lambda name="me", token=TOKEN, port=0: links.serve(name, token, "127.0.0.1", port)


@pytest.fixture
def server():
    """A function (what to do with a connection): the port of a foreign program."""
    listeners = []

    def serve(act):
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        if act:
            threading.Thread(target=lambda: act(listener.accept()[0]), daemon=True).start()
        return listener.getsockname()[1]

    yield serve
    for listener in listeners:
        listener.close()


def outcome(port, name="me", seconds=2.0):
    return links.connect([(name, "127.0.0.1", port)], TOKEN, seconds)["outcomes"][name]


def test_a_host_that_listens_is_reached_as_often_as_one_likes(listen):
    port = listen()["port"]
    assert outcome(port) == links.OK
    assert outcome(port) == links.OK


def test_a_port_on_which_nobody_listens_is_refused():
    assert outcome(free_port()) == links.REFUSED


def test_names_are_compared_whole(listen):
    port = listen("node1")["port"]
    assert outcome(port, "node1") == links.OK
    assert outcome(port, "node") == outcome(port, "node11") == links.STRANGER


def test_many_hosts_are_reached_at_once(listen):
    ports = {f"host-{i}": listen(f"host-{i}")["port"] for i in range(2 * links.AT_ONCE + 1)}
    found = links.connect([(name, "127.0.0.1", port) for name, port in ports.items()], TOKEN, 10)
    assert found["outcomes"] == dict.fromkeys(ports, links.OK)


def test_the_host_of_another_name_is_a_stranger(listen):
    assert outcome(listen("you")["port"]) == links.STRANGER


def test_the_listener_of_another_check_is_a_stranger(listen):
    assert outcome(listen(token="f" * len(TOKEN))["port"]) == links.STRANGER


def test_another_program_is_a_stranger(server):
    assert outcome(server(lambda connection: connection.close())) == links.STRANGER
    assert outcome(server(lambda connection: connection.sendall(b"220 mail\n") or connection.close())) == links.STRANGER


def test_a_connection_through_which_nothing_comes_is_stalled(server):
    assert outcome(server(None), seconds=0.5) == links.STALLED  # the kernel shakes hands, nobody reads


def test_unknown_names_are_told():
    found = links.connect([("a", "nowhere.invalid", 1)], TOKEN, 2)
    assert found["outcomes"] == {"a": links.UNKNOWN_NAME}


def test_a_port_in_use_is_told_with_its_holder(listen):
    port = listen()["port"]
    (holder,) = listen(port=port)["in_use_by"]
    assert holder.startswith(f"process {os.getpid()} ")


def test_a_port_that_only_root_may_use_is_told(listen, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    assert listen(port=80) == {"not_allowed": True}


def test_the_port_of_the_ranks_is_open_on_all_addresses():
    port = links.serve("me", TOKEN, "", 0)["port"]
    addresses = ["127.0.0.1", *(["::1"] if socket.has_dualstack_ipv6() else [])]
    for address in addresses:
        assert links.connect([("me", address, port)], TOKEN, 2) == {"outcomes": {"me": links.OK}}


def test_the_first_host_listens_on_the_port_of_the_ranks_too(monkeypatch):
    port = free_port()
    assert links.listen("me", TOKEN, "127.0.0.1", port)["master"] == {"port": port}
    assert "in_use_by" in links.listen("me", TOKEN, "127.0.0.1", port)["master"]
    assert "master" not in links.listen("me", TOKEN, "127.0.0.1", None)
    assert outcome(port, links.RANK_0) == links.OK
    monkeypatch.setattr(links, "route", lambda to: {"address": "127.0.0.1", "is_own": False})
    assert "master" not in links.listen("me", TOKEN, "192.0.2.1", free_port())  # rank 0 is expected elsewhere


def test_the_route_to_oneself_is_told():
    found = links.route("127.0.0.1")
    assert found["is_own"]
    assert found["leads_to"] == "127.0.0.1"
    assert found["interface"] in found["interfaces"]


def test_the_interface_that_gloo_is_told_to_take_is_taken(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,other")
    found = links.route("127.0.0.1")
    assert (found["interface"], found["wanted"]) == ("lo", ["lo", "other"])
