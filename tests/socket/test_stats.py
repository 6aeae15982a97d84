"""stats(): datagrams, calls, and drops of the kernel."""

import socket as std
import threading

import pytest

import tomada
from support import Call
from tomada import socket
from traffic import RECEIVE_SOME, SEND_ALL, everything, numbered, receive, send_run

NAMES = (
    "received",
    "received_bytes",
    "receive_calls",
    "sent",
    "sent_bytes",
    "send_calls",
    "truncated",
    "kernel_drops",
    "filter_drops",
    "errors",
)


def test_stats_of_a_new_socket_are_zero(kind):
    with kind.open(socket) as sock:
        assert [getattr(sock.stats(), name) for name in NAMES] == [0] * len(NAMES)
        assert "received=0" in repr(sock.stats())


# For the kernel and the user a run is one datagram.
@pytest.mark.parametrize("send", [way for way in SEND_ALL if way != "a run"])
def test_stats_counts_sent_datagrams(inet, send):
    data = [b"a", b"", *numbered(10), bytes(1000)]
    with inet.bound(socket) as sock, inet.bound(std) as other:
        SEND_ALL[send](sock, [(item, other.getsockname()) for item in data])
        stats = sock.stats()
        assert (stats.sent, stats.sent_bytes) == (13, 1081)
        assert 1 <= stats.send_calls <= 13


@pytest.mark.parametrize("way", RECEIVE_SOME)
@pytest.mark.parametrize("gro", [False, True])
def test_stats_counts_received_datagrams(inet, way, gro):
    with inet.bound(socket) as sock, inet.bound(std) as sender:
        sock.gro = gro
        here = sock.getsockname()
        for data in (b"a", b"", bytes(1000)):
            sender.sendto(data, here)
        send_run(sender, here, b"".join(numbered(10)), 8)
        receive(sock, 13, way)
        stats = sock.stats()
        assert (stats.received, stats.received_bytes) == (13, 1081)
        assert 1 <= stats.receive_calls <= 13


def test_stats_counts_calls_for_many_datagrams(inet):
    with inet.bound(socket) as sock:
        sock.send_many([(b"%d" % number * number, sock.getsockname()) for number in range(1, 40)])
        assert len(sock.recv_many()) == 39
        assert (sock.stats().send_calls, sock.stats().receive_calls) == (1, 1)


def test_stats_counts_the_backlog_as_received(inet):
    with inet.bound(socket) as sock, inet.bound(std) as sender:
        sock.gro = True
        send_run(sender, sock.getsockname(), b"onetwosix", 3)
        sock.recv(10)
        assert (sock.pending, sock.stats().received, sock.stats().received_bytes) == (2, 3, 9)


def test_stats_does_not_count_failures_as_sent(inet):
    with inet.bound(socket) as sock:
        items = [b"a", bytes(65_508), b"b"]
        sock.send_many(items, sock.getsockname(), errors="continue")
        assert (sock.stats().sent, sock.stats().sent_bytes) == (2, 2)


def test_stats_counts_truncated_datagrams(inet):
    batch = tomada.Batch(slot_size=64)
    with inet.bound(socket) as sock:
        for _ in range(4):
            sock.sendto(bytes(100), sock.getsockname())
        sock.recv(10)
        sock.recv_into(bytearray(99))
        sock.recvmsg(1)
        sock.recv_batch(batch)
        assert sock.stats().truncated == 4
        sock.sendto(bytes(100), sock.getsockname())
        sock.recv(100)
        assert sock.stats().truncated == 4


@pytest.mark.parametrize("fresh", [False, True], ids=["plain", "after a look"])
def test_stats_counts_kernel_drops(inet, fresh):
    with inet.bound(socket) as sock, inet.bound(std) as sender:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for number in range(500):
            sender.sendto(b"%d" % number, sock.getsockname())
            if fresh:
                sock.stats()
        received = len(everything(sock))
        assert 0 < received < 500
        assert sock.stats().kernel_drops == 500 - received
        assert sock.stats().received == received


def test_stats_of_af_unix_has_no_drops(unix):
    with unix.bound(socket) as sock:
        sock.sendto(b"x", sock.getsockname())
        assert sock.stats().kernel_drops == 0


def test_stats_can_be_read_after_close(inet):
    with inet.bound(socket) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.send_many(numbered(500), sock.getsockname())
        sock.recv_many()
        before = sock.stats()
    assert sock.stats() == before
    assert before.kernel_drops > 0


def test_stats_is_a_snapshot(inet):
    with inet.bound(socket) as sock:
        before, same = sock.stats(), sock.stats()
        assert before == same
        sock.sendto(b"x", sock.getsockname())
        assert before == same != sock.stats()
        for name in NAMES:
            with pytest.raises(AttributeError):
                setattr(before, name, 1)
        with pytest.raises(TypeError):
            type(before)()


def test_stats_counts_all_threads(inet):
    with inet.bound(std) as other, inet.open(socket) as sock:
        begin = threading.Barrier(4)

        def send():
            begin.wait()
            for _ in range(100):
                sock.send_many(numbered(10), other.getsockname())

        calls = [Call(send) for _ in range(4)]
        for call in calls:
            call.result()
        assert (sock.stats().sent, sock.stats().sent_bytes) == (4000, 32_000)
