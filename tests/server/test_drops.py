"""Two counters: datagrams dropped by a full buffer, and those dropped by the filter."""

import socket as std

import pytest

import tomada
from serving import ask, server
from support import eventually
from tomada import socket

pytestmark = pytest.mark.thread_unsafe(reason="it forks")

HERE, DENIED = "127.0.0.1", "127.0.0.9"
# Enough datagrams to overflow a small receive buffer.
MANY = 500


@pytest.fixture
def alone(network):
    """Provide a namespace where no other socket drops datagrams."""
    return network.namespace()


def drops(stats):
    return stats.kernel_drops, stats.filter_drops


def send(namespace, source, to, count=1):
    """Send datagrams from an address of the namespace."""
    family = std.AF_INET6 if ":" in source else std.AF_INET
    with namespace.open(std, family) as sock:
        sock.bind((source, 0))
        for _ in range(count):
            sock.sendto(b"x" * 64, to)


@pytest.mark.parametrize(
    ("family", "host", "denied", "to"),
    [
        (std.AF_INET, HERE, DENIED, HERE),
        (std.AF_INET6, "::", DENIED, HERE),
        (std.AF_INET6, "::1", "::1", "::1"),
    ],
    ids=["IPv4", "both", "IPv6"],
)
def test_drops_of_a_filter_and_of_a_full_buffer_are_counted_apart(alone, family, host, denied, to):
    with alone.open(socket, family) as sock:
        if host == "::":
            sock.setsockopt(std.IPPROTO_IPV6, std.IPV6_V6ONLY, 0)
        alone.run(sock.bind, (host, 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        to = (to, sock.getsockname()[1])

        def stats():
            return alone.run(sock.stats)

        lost = 0
        for in_kernel in (1, 2):
            send(alone, to[0], to, MANY)
            sock.setblocking(False)
            received = len(sock.recv_many(MANY))
            sock.setblocking(True)
            lost += MANY - received
            before = 7 * (in_kernel - 1)
            assert lost > 0
            assert drops(stats()) == (lost, before)
            alone.run(setattr, sock, "guard", tomada.Guard(deny=[denied]))
            send(alone, denied, to, 7)
            assert drops(stats()) == (lost, before + 7)
            if denied == to[0]:
                alone.run(setattr, sock, "guard", None)
        stats_at_end = stats()
        alone.run(sock.close)
        assert drops(sock.stats()) == drops(stats_at_end)


def test_drops_of_both_kinds_between_two_reads_are_counted_apart(alone):
    with alone.bound(socket, (HERE, 0)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        alone.run(setattr, sock, "guard", tomada.Guard(deny=[DENIED]))
        send(alone, HERE, sock.getsockname(), MANY)
        send(alone, DENIED, sock.getsockname(), 11)
        sock.setblocking(False)
        received = len(sock.recv_many(MANY))
        assert drops(alone.run(sock.stats)) == (MANY - received, 11)
        assert drops(alone.run(sock.stats)) == (MANY - received, 11)


def test_filter_attached_by_another_holder_is_detected(alone):
    with alone.bound(std, (HERE, 0)) as plain:
        tomada.Guard(deny=[DENIED]).attach(plain)
        with alone.run(lambda: socket.socket(fileno=plain.dup().detach())) as sock:
            send(alone, DENIED, sock.getsockname(), 5)
            assert drops(alone.run(sock.stats)) == (0, 5)


def test_drops_of_unknown_kind_count_as_kernel_drops(alone):
    with alone.bound(socket, (HERE, 0)) as sock:
        alone.run(setattr, sock, "guard", tomada.Guard(deny=[DENIED]))
        send(alone, DENIED, sock.getsockname(), 5)
        # This thread is in another namespace, whose counters say nothing about the socket.
        assert drops(sock.stats()) == (5, 0)
        send(alone, DENIED, sock.getsockname(), 5)
        assert drops(alone.run(sock.stats)) == (10, 0)
        send(alone, DENIED, sock.getsockname(), 5)
        assert drops(alone.run(sock.stats)) == (10, 5)


@pytest.mark.parametrize("workers", [1, 2])
def test_scanners_do_not_count_as_overflow_of_a_server(alone, workers, caplog):
    guard = tomada.Guard(deny=[DENIED])
    serving = server(lambda data, _: data, workers=workers, guard=guard)
    alone.run(serving.start)
    try:
        send(alone, DENIED, serving.address, MANY)
        assert alone.run(ask, serving.address) == b"ping"
        stats = alone.run(serving.stats)
        assert (stats.kernel_drops, stats.filter_drops, stats.received) == (0, MANY, 1)
        # The server reads the drop counters once per second.
        looks = alone.run(lambda: [ask(serving.address) for _ in range(3)])
        assert looks == [b"ping"] * 3
    finally:
        alone.run(serving.stop)
    assert "has begun to drop" not in caplog.text
    assert serving.stats().filter_drops == MANY


def test_sum_of_drops_is_exact_while_other_sockets_drop(inet):
    with inet.bound(socket) as sock, inet.open(std) as sender:
        sock.guard = tomada.Guard(deny=[DENIED])
        sender.bind((DENIED, 0))
        for _ in range(100):
            sender.sendto(b"x", sock.getsockname())
        eventually(lambda: sum(drops(sock.stats())) == 100)
        assert sock.stats().received == 0
