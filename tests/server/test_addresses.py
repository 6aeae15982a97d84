"""The address that a server replies from: the requested one, whatever the routes prefer."""

import socket as std
import struct
import threading

import pytest

from serving import ask, client, refused, server
from skips import NO_IPV6
from support import Call, eventually
from traffic import LO, numbered, send_run


def echo(data, _):
    return data


def echo_datagram(datagram):
    return datagram.data


def echo_batch(batch):
    return [data for data, _ in batch]


HANDLERS = [("data", echo), ("datagram", echo_datagram), ("batch", echo_batch)]


@pytest.mark.parametrize(("takes", "handler"), HANDLERS)
@pytest.mark.parametrize("workers", [1, 2])
def test_reply_comes_from_each_local_address(takes, handler, workers):
    with server(handler, ("0.0.0.0", 0), takes=takes, workers=workers) as serving:
        for host in ("127.0.0.1", "127.0.0.2", "127.3.2.1"):
            # A connected client receives from no other address.
            assert ask((host, serving.address[1]), host.encode()) == host.encode()


@pytest.mark.parametrize(("takes", "handler"), HANDLERS)
def test_reply_source_follows_the_requests_of_one_peer(takes, handler):
    with (
        server(handler, ("0.0.0.0", 0), takes=takes) as serving,
        std.socket(std.AF_INET, std.SOCK_DGRAM) as sock,
    ):
        sock.settimeout(30)
        port = serving.address[1]
        asked = [(b"%d" % number, (f"127.0.0.{1 + number % 3}", port)) for number in range(30)]
        for data, to in asked:
            sock.sendto(data, to)
        assert [sock.recvfrom(100) for _ in asked] == asked


def test_reply_runs_to_two_addresses_come_from_each():
    with server(echo, ("0.0.0.0", 0)) as serving, std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.settimeout(30)
        port, data = serving.address[1], numbered(20, 100)
        for host in ("127.0.0.1", "127.0.0.2"):
            send_run(sock, (host, port), b"".join(data), 100)
            assert [sock.recvfrom(200) for _ in data] == [(item, (host, port)) for item in data]


def test_sendto_after_the_handler_uses_the_requested_address():
    peers = []
    with (
        server(lambda _, address: peers.append(address), ("0.0.0.0", 0)) as serving,
        client(("127.0.0.9", serving.address[1])) as sock,
    ):
        sock.send(b"x")
        serving.sendto(b"later", eventually(lambda: peers)[0])
        assert sock.recv(100) == b"later"


def test_peer_that_cannot_be_sent_to_changes_nothing_for_others(raw):
    peers = []

    def handle(data, peer):
        if data == b"go":  # to all, in one call
            for known in peers:
                serving.sendto(b"later", known)
        else:
            peers.append(peer)

    with (
        server(handle, ("0.0.0.0", 0)) as serving,
        client(("127.0.0.9", serving.address[1])) as sock,
    ):
        # From port 0, to which the kernel does not send: EINVAL.
        raw.sendto(struct.pack("!HHHH", 0, serving.address[1], 8, 0), ("127.0.0.9", 0))
        eventually(lambda: peers)
        sock.send(b"x")
        for _ in range(2):
            sock.send(b"go")
            assert sock.recv(100) == b"later"
        eventually(lambda: serving.stats().send_errors == 2)
        assert [port for _, port in peers] == [0, sock.getsockname()[1]]


@pytest.mark.parametrize("workers", [1, 2])
def test_ipv6_server_replies_to_ipv4_too(speaks_ipv6, workers):
    if not speaks_ipv6:
        pytest.skip(NO_IPV6)
    with server(lambda _, address: repr(address).encode(), ("::", 0), workers=workers) as serving:
        port = serving.address[1]
        for host in ("127.0.0.1", "127.0.0.2"):
            with client((host, port)) as sock:
                sock.send(b"x")
                name, number = sock.getsockname()
                assert sock.recv(100) == repr((f"::ffff:{name}", number, 0, 0)).encode()
        with client(("::1", port, 0, 0)) as sock:
            sock.send(b"x")
            assert sock.recv(100).startswith(b"('::1', ")


def test_sendto_accepts_a_plain_ipv4_address_on_an_ipv6_server(speaks_ipv6, inet):
    if not speaks_ipv6:
        pytest.skip(NO_IPV6)
    with server(echo, ("::", 0)) as serving, inet.bound(std) as sock:
        serving.sendto(b"hello", sock.getsockname())
        data, (_, port) = sock.recvfrom(100)
        assert (data, port) == (b"hello", serving.address[1])


@pytest.mark.parametrize(
    ("host", "asked"), [("0.0.0.0", "127.0.0.5"), ("::", "127.0.0.5"), ("::", "::1")]
)
def test_drained_datagrams_get_replies_from_the_requested_address(host, asked, speaks_ipv6):
    if ":" in host and not speaks_ipv6:
        pytest.skip(NO_IPV6)
    handling, go_on = threading.Event(), threading.Event()

    def handle(data, _):
        handling.set()
        go_on.wait()
        return data

    with server(handle, (host, 0)) as serving:
        port = serving.address[1]
        with client((asked, port, 0, 0) if ":" in asked else (asked, port)) as sock:
            sock.send(b"first")
            handling.wait()
            for data in numbered(50):
                sock.send(data)
            stopping = Call(serving.stop)
            with client(sock.getpeername(), 0.01) as stranger:
                eventually(lambda: refused(stranger))
            go_on.set()
            stopping.result()
            assert [sock.recv(100) for _ in range(51)] == [b"first", *numbered(50)]


GROUP = "239.7.7.7"


@pytest.mark.parametrize("workers", [1, 2])
def test_group_gets_one_reply_from_an_address_of_the_interface(workers):
    with (
        server(echo, ("0.0.0.0", 0), groups=[(GROUP, "lo")], workers=workers) as serving,
        std.socket(std.AF_INET, std.SOCK_DGRAM) as sock,
    ):
        sock.settimeout(30)
        loopback = struct.pack("4s4si", bytes(4), bytes(4), LO)
        sock.setsockopt(std.IPPROTO_IP, std.IP_MULTICAST_IF, loopback)
        sock.bind(("127.0.0.1", 0))
        for data in numbered(10):
            sock.sendto(data, (GROUP, serving.address[1]))
            assert sock.recvfrom(100) == (data, ("127.0.0.1", serving.address[1]))
        assert serving.stats().received == 10


def test_group_must_be_a_multicast_address():
    with pytest.raises(ValueError, match="is not a multicast group"):
        server(echo, groups=["127.0.0.1"]).start()


def test_broadcast_gets_a_reply_from_the_interfaces_address(inet):
    with server(echo, ("0.0.0.0", 0)) as serving, inet.bound(std) as sock:
        sock.setsockopt(std.SOL_SOCKET, std.SO_BROADCAST, 1)
        sock.sendto(b"anyone", ("127.255.255.255", serving.address[1]))
        assert sock.recvfrom(100) == (b"anyone", ("127.0.0.1", serving.address[1]))


def test_spinning_server_replies_and_stops():
    for workers in (1, 2):
        with server(echo, spin=0.005, workers=workers) as serving:
            assert ask(serving.address, b"x") == b"x"


def test_server_without_gro_behaves_the_same():
    with server(echo, gro=False) as serving, client(serving.address) as sock:
        send_run(sock, serving.address, b"".join(numbered(64, 50)), 50)
        assert [sock.recv(100) for _ in range(64)] == numbered(64, 50)
