"""Datagrams whose source is the server's own address: a reply would be the next request."""

import logging
import socket as std
import threading

import pytest

from peer import DEADLINE
from serving import ask, client, server, until_refused
from skips import NO_IPV6
from support import Call, eventually
from tomada import _reports

pytestmark = pytest.mark.thread_unsafe(reason="it forks")

HANDLERS = {
    "data": lambda data, _: data,
    "datagram": lambda datagram: datagram.data,
    "batch": lambda batch: [data for data, _ in batch],
}


@pytest.fixture(autouse=True)
def every_line(monkeypatch, caplog):
    """Disable the limits on log messages."""
    monkeypatch.setattr(_reports, "SECONDS_BETWEEN", 0.0)
    caplog.set_level(logging.INFO, "tomada")


@pytest.mark.parametrize("takes", HANDLERS)
def test_server_does_not_reply_to_itself(kind, takes, caplog):
    with server(HANDLERS[takes], kind.address(), takes=takes) as serving:
        serving.sendto(b"forged", serving.address)
        eventually(lambda: serving.stats().handler_errors == 1)
        with client(serving.address, local=kind.address()) as sock:
            sock.send(b"honest")
            assert sock.recv(100) == b"honest"
    stats = serving.stats()
    # It has sent the forged datagram and one reply.
    assert (stats.received, stats.handler_errors, stats.sent) == (2, 1, 2)
    assert "its source is the server's own address" in caplog.text


@pytest.mark.parametrize("workers", [1, 2])
def test_server_does_not_reply_to_itself_on_a_given_socket(inet, workers):
    with inet.bound(std) as sock:
        with server(HANDLERS["data"], None, sock=sock, workers=workers) as serving:
            sock.sendto(b"forged", sock.getsockname())
            eventually(lambda: serving.stats().handler_errors == 1)
            assert ask(serving.address) == b"ping"
        assert serving.stats().received == 2


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
@pytest.mark.parametrize("destination", ["127.0.0.1", "127.1.2.3"])
def test_server_of_all_addresses_does_not_reply_to_any_of_them(host, destination, speaks_ipv6):
    if host == "::" and not speaks_ipv6:
        pytest.skip(NO_IPV6)
    with server(HANDLERS["data"], (host, 0)) as serving:
        port = serving.address[1]
        serving.sendto(b"forged", (destination, port))
        eventually(lambda: serving.stats().handler_errors == 1)
        assert ask((destination, port)) == b"ping"
    assert serving.stats().received == 2


def test_server_replies_to_its_port_at_another_address():
    with (
        server(HANDLERS["data"]) as serving,
        std.socket(std.AF_INET, std.SOCK_DGRAM) as sock,
    ):
        sock.settimeout(DEADLINE)
        sock.bind(("127.0.0.2", serving.address[1]))
        sock.sendto(b"honest", serving.address)
        assert sock.recv(100) == b"honest"
    assert serving.stats().handler_errors == 0


def test_stop_accepts_no_datagram_from_the_server_itself(ip):
    entered, go_on = threading.Event(), threading.Event()

    def handle(data, _):
        entered.set()
        assert go_on.wait(DEADLINE)
        return data

    with server(handle, ip.address(), drain=DEADLINE) as serving, client(serving.address) as sock:
        sock.send(b"first")
        assert entered.wait(DEADLINE)
        stopping = Call(serving.stop)
        with client(serving.address) as other:
            accepted = until_refused(other)
        serving.sendto(b"late", serving.address)
        go_on.set()
        stopping.result()
        assert sock.recv(100) == b"first"
    stats = serving.stats()
    assert stats.received + stats.kernel_drops == 1 + accepted
    assert stats.handler_errors == 0


@pytest.fixture(params=["inet", "inet6"])
def ip(request):
    return request.getfixturevalue(request.param)
