"""What comes of connections, and on which side it fails."""

import os
import socket
import threading

import pytest

from mpnet_ds.cluster import links

TOKEN = "0123456789abcdef"


@pytest.fixture
def listen():
    """``links.listen`` on this machine's own address; everything is closed in the end."""
    yield lambda name="me", token=TOKEN, port=0: links.listen(name, token, "127.0.0.1", port)
    links.hush()


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
    return links.connect_to_all([(name, "127.0.0.1", port)], TOKEN, seconds)[name]


def test_a_host_that_listens_is_reached_until_it_does_not(listen):
    port = listen()["port"]
    assert outcome(port) == links.OK
    assert outcome(port) == links.OK
    links.hush()
    assert outcome(port) == links.REFUSED


def test_many_hosts_are_reached_at_once(listen):
    ports = {f"host-{i}": listen(f"host-{i}")["port"] for i in range(2 * links.AT_ONCE + 1)}
    found = links.connect_to_all([(name, "127.0.0.1", port) for name, port in ports.items()], TOKEN, 10)
    assert found == dict.fromkeys(ports, links.OK)


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
    assert links.connect_to_all([("a", "nowhere.invalid", 1)], TOKEN, 2) == {"a": links.UNKNOWN_NAME}


def test_a_port_in_use_is_told_with_its_holder(listen):
    port = listen()["port"]
    (holder,) = listen(port=port)["in_use_by"]
    assert holder.startswith(f"process {os.getpid()} ")


def test_the_port_of_the_ranks_is_open_on_all_addresses(listen):
    port = links.listen("me", TOKEN, "", 0)["port"]
    found = links.connect_to_all([("me", "127.0.0.1", port)], TOKEN, 2)
    assert found == {"me": links.OK}
    if socket.has_dualstack_ipv6():
        assert links.connect_to_all([("me", "::1", port)], TOKEN, 2) == {"me": links.OK}
