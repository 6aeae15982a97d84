"""Datagram.reply sends from the requested address, so that a connected client receives it."""

import socket as std

import pytest

from support import CLOSED, DEADLINE
from tomada import socket

ANY = "0.0.0.0"  # noqa: S104 - the wildcard address is tested


@pytest.fixture
def server(inet):
    """Provide a socket bound to every IPv4 address, and its port."""
    with inet.open(socket) as sock:
        sock.bind((ANY, 0))
        yield sock, sock.getsockname()[1]


def client_of(address):
    """Open a plain socket that receives only from a server at this address."""
    family = std.AF_INET6 if ":" in address[0] else std.AF_INET
    sock = std.socket(family, std.SOCK_DGRAM)
    sock.settimeout(DEADLINE)
    sock.connect(address)
    return sock


@pytest.mark.parametrize("asked", ["127.0.0.1", "127.0.0.2", "127.9.9.9"])
def test_reply_reaches_a_client_that_used_any_local_address(server, asked):
    sock, port = server
    # A socket's first datagram arrives before it has requested metadata.
    with client_of((asked, port)) as client:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv_datagrams()
        sock.settimeout(DEADLINE)
        client.send(b"question")
        assert sock.recv_datagram().reply(b"answer") == 6
        assert client.recv(100) == b"answer"


def test_sendto_from_the_default_address_is_not_received(server):
    sock, port = server
    with client_of(("127.0.0.2", port)) as client:
        client.send(b"question")
        data, address = sock.recvfrom(100)
        sock.sendto(data, address)
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(100)


def test_reply_reaches_clients_of_several_addresses(server):
    sock, port = server
    clients = [client_of((f"127.0.0.{last}", port)) for last in range(1, 9)]
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv_datagrams()
    for number, client in enumerate(clients):
        client.send(b"%d" % number)
    for datagram in sock.recv_datagrams():
        datagram.reply(datagram.data * 3)
    for number, client in enumerate(clients):
        assert client.recv(100) == b"%d" % number * 3
        client.close()


@pytest.mark.parametrize("asked", ["127.0.0.2", "::1"])
def test_reply_on_a_dual_stack_socket_reaches_both_families(inet6, asked):
    with inet6.open(socket) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", 0))
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv_datagrams()
        sock.settimeout(DEADLINE)
        with client_of((asked, sock.getsockname()[1])) as client:
            client.send(b"question")
            sock.recv_datagram().reply(b"answer")
            assert client.recv(100) == b"answer"


def test_reply_to_a_named_af_unix_peer(unix):
    with unix.bound(socket) as sock, unix.bound(std) as client:
        client.sendto(b"question", sock.getsockname())
        assert sock.recv_datagram().reply(b"answer") == 6
        assert client.recvfrom(100) == (b"answer", sock.getsockname())


def test_reply_to_a_peer_without_a_name_raises(unix):
    with unix.bound(socket) as sock, unix.open(std) as client:
        client.sendto(b"question", sock.getsockname())
        with pytest.raises(OSError, match="not connected"):
            sock.recv_datagram().reply(b"answer")


@pytest.mark.parametrize("data", [b"", b"x", bytearray(b"abc"), memoryview(b"abc")[1:]], ids=repr)
def test_reply_accepts_every_bytes_like_object(server, data):
    sock, port = server
    with client_of(("127.0.0.1", port)) as client:
        client.send(b"question")
        assert sock.recv_datagram().reply(data) == len(data)
        assert client.recv(100) == bytes(data)


@pytest.mark.parametrize("data", ["text", None, 5])
def test_reply_rejects_objects_that_are_not_bytes_like(server, data):
    sock, port = server
    with client_of(("127.0.0.1", port)) as client:
        client.send(b"question")
        datagram = sock.recv_datagram()
        with pytest.raises(TypeError):
            datagram.reply(data)
        with pytest.raises(OSError, match="Message too long"):
            datagram.reply(bytes(65_508))
        datagram.reply(b"after all")
        assert client.recv(100) == b"after all"


def test_reply_may_be_called_many_times(server):
    sock, port = server
    with client_of(("127.0.0.3", port)) as client:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv_datagrams()
        sock.settimeout(DEADLINE)
        client.send(b"question")
        datagram = sock.recv_datagram()
        for number in range(10):
            datagram.reply(b"%d" % number)
        assert [client.recv(10) for _ in range(10)] == [b"%d" % number for number in range(10)]
        assert sock.stats().sent == 10


def test_reply_on_a_closed_socket_raises(server):
    sock, port = server
    with client_of(("127.0.0.1", port)) as client:
        client.send(b"question")
        datagram = sock.recv_datagram()
        sock.close()
        with pytest.raises(OSError, match=CLOSED):
            datagram.reply(b"too late")
