"""Accounting of sockets: every datagram sent is received, refused, or dropped by the kernel."""

import os
import socket as std
import struct
from pathlib import Path

import pytest

import tomada
from floods import (
    SMALL_BUFFER,
    Flood,
    accounted,
    assert_bounded,
    assert_settled,
    is_overrun,
    needs_loadgen,
)
from guards import NEAR, guarded
from support import eventually, fill
from tomada import socket
from traffic import everything, numbered, payloads, send_run

LONG = 100


def by_batch():
    batch = tomada.Batch()
    return lambda sock: sock.recv_batch(batch)


RECEIVERS = {
    "recvfrom": lambda: lambda sock: sock.recvfrom(LONG),
    "recv_many": lambda: lambda sock: sock.recv_many(),
    "recv_batch": by_batch,
}

GUARDS = {
    "no guard": lambda: None,
    "a guard with rates": lambda: tomada.Guard(rate=1000, burst=10),
    "a guard with lengths": lambda: tomada.Guard(max_size=LONG),
}


def without_waiting(sock, receive):
    """Make a function that receives the queued datagrams."""
    sock.setblocking(False)

    def take():
        try:
            receive(sock)
        except BlockingIOError:
            os.sched_yield()

    return take


@needs_loadgen
@pytest.mark.parametrize("gso", [False, True], ids=["plain", "runs"])
@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
@pytest.mark.parametrize("receiver", RECEIVERS.values(), ids=RECEIVERS)
def test_flood_is_fully_accounted_for(receiver, guard, gso):
    receive, guard = receiver(), guard()
    with guarded(guard) as (sock, _):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        here = sock.getsockname()
        with Flood(here, gso=gso) as short, Flood(here, size=2 * LONG) as long:
            receives = 0
            while receives < 100 or (guard is not None and not sock.stats().refused):
                receive(sock)
                receives += 1
                eventually(lambda: is_overrun(sock.stats()))
            sent = short.stop() + long.stop()
        assert_settled(without_waiting(sock, receive), sock.stats, sent)
        assert not payloads(sock)
        assert (sock.stats().refused > 0) == (guard is not None)


@needs_loadgen
@pytest.mark.parametrize("guard", [None, 1000], ids=["no guard", "a guard"])
@pytest.mark.parametrize("receiver", RECEIVERS.values(), ids=RECEIVERS)
def test_dropped_run_counts_as_one_datagram(receiver, guard):
    receive = receiver()
    with guarded(guard and tomada.Guard(rate=guard, burst=10)) as (sock, _):
        sock.gro = True
        with Flood(sock.getsockname(), gso=True) as flood:
            while not (sock.stats().kernel_drops > 100 and sock.stats().received > 100):
                receive(sock)
            sent = flood.stop()
        everything(sock)
        assert_bounded(sock.stats(), sent)


def test_dropped_run_of_maximum_length_counts_as_one_datagram(inet):
    with inet.bound(socket) as sock, inet.open(std) as sender:
        sock.gro = True
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        for _ in range(100):
            send_run(sender, sock.getsockname(), bytes(128 * 100), 100)
        everything(sock)
        stats = sock.stats()
        assert stats.received + 128 * stats.kernel_drops == 100 * 128
        assert stats.kernel_drops > 0


@needs_loadgen
def test_truncated_datagrams_count_as_received(inet):
    with inet.bound(socket) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        with Flood(sock.getsockname(), size=2 * LONG) as flood:
            for _ in range(100):
                sock.recvfrom(LONG)
                eventually(lambda: is_overrun(sock.stats()))
            sent = flood.stop()
        assert_settled(without_waiting(sock, RECEIVERS["recvfrom"]()), sock.stats, sent)
        assert sock.stats().truncated == sock.stats().received


@needs_loadgen
def test_gro_counts_are_exact_for_single_datagrams(inet):
    with inet.bound(socket) as sock:
        sock.gro = True
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        with Flood(sock.getsockname()) as flood:
            for _ in range(100):
                sock.recv_many()
                eventually(lambda: is_overrun(sock.stats()))
            sent = flood.stop()
        assert_settled(lambda: everything(sock), sock.stats, sent)


@needs_loadgen
def test_guard_kernel_filter_refusals_count_as_filter_drops():
    guard = tomada.Guard(deny=["127.0.0.0/8"])
    with guarded(guard) as (sock, _), Flood(sock.getsockname(), gso=True) as flood:
        eventually(lambda: sock.stats().filter_drops > 10_000)
        sent = flood.stop()
        assert_settled(os.sched_yield, sock.stats, sent)
        stats = sock.stats()
        assert (stats.received, stats.refused) == (0, 0)
        # While other sockets of the machine overflow, some count as kernel_drops.
        assert stats.kernel_drops + stats.filter_drops == sent
        assert guard.stats().refused == 0
        assert listed_drops(sock) == sent


def test_user_filter_drops_are_counted(inet):
    with inet.bound(socket) as sock, inet.open(std) as sender:
        tomada.Guard(deny=["127.0.0.0/8"]).attach(sock)
        for data in numbered(10):
            sender.sendto(data, sock.getsockname())
        stats = sock.stats()
        assert stats.kernel_drops + stats.filter_drops == listed_drops(sock) == 10


def send_wrong(raw, to, size):
    """Send a datagram with a wrong checksum."""
    raw.sendto(struct.pack("!HHHH", 9, to[1], 8 + size, 0xBAD) + bytes(size), (to[0], 0))


@pytest.mark.parametrize("checks_early", [False, True], ids=["on receiving", "on arrival"])
@pytest.mark.parametrize("receiver", RECEIVERS.values(), ids=RECEIVERS)
def test_wrong_checksum_counts_as_dropped(receiver, checks_early, raw):
    # With a filter, such as a guard's, the kernel verifies the checksum immediately.
    guard = tomada.Guard(deny=["192.0.2.0/24"]) if checks_early else None
    with guarded(guard) as (sock, send):
        for _ in range(5):
            send_wrong(raw, sock.getsockname(), LONG)
        send(b"good", NEAR)
        receiver()(sock)
        assert (sock.stats().received, sock.stats().kernel_drops) == (1, 5)


@pytest.mark.parametrize(("size", "drops"), [(68, 0), (69, 1)])
def test_short_datagram_with_wrong_checksum_is_dropped_before_socket_lookup(size, drops, raw):
    with guarded() as (sock, send):
        send_wrong(raw, sock.getsockname(), size)
        send(b"good", NEAR)
        sock.recv(LONG)
        assert (sock.stats().received, sock.stats().kernel_drops) == (1, drops)


@needs_loadgen
def test_last_drops_of_a_burst_are_counted_without_another_datagram(inet):
    with inet.bound(socket) as sock:
        with Flood(sock.getsockname(), gso=True) as flood:
            eventually(lambda: sock.stats().kernel_drops > 1000)
            sent = flood.stop()
        # Before any datagram is received that could carry a drop count.
        eventually(lambda: sock.stats().kernel_drops == listed_drops(sock))
        dropped = sock.stats().kernel_drops
        queued = len(everything(sock))
        assert queued + dropped == sent
        assert sock.stats().kernel_drops == dropped


def test_close_counts_the_backlog_as_received(inet):
    with inet.bound(socket) as sock, inet.open(std) as sender:
        sock.gro = True
        send_run(sender, sock.getsockname(), b"onetwosix", 3)
        sock.recv(10)
        assert sock.pending == 2
    assert sock.stats().received == 3


@pytest.mark.parametrize("end", ["close", "detach"])
def test_drops_are_remembered_after_the_descriptor_is_closed(end, inet):
    with inet.bound(socket) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.send_many(numbered(500), sock.getsockname())
        before = sock.stats()
        descriptor = getattr(sock, end)()
        assert sock.stats() == before
        assert before.kernel_drops > 0
        if descriptor is not None:
            std.close(descriptor)


def test_duplicate_counts_the_drops_of_the_shared_kernel_socket(inet):
    with inet.bound(socket) as sock, sock.dup() as other:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        other.send_many(numbered(500), sock.getsockname())
        assert sock.stats().kernel_drops == other.stats().kernel_drops > 0
        taken = len(everything(other))
        assert (sock.stats().received, other.stats().received) == (0, taken)
        assert accounted(other.stats()) == 500


def test_af_unix_flood_blocks_the_sender_and_loses_nothing(unix):
    with unix.bound(socket) as sock, unix.open(std) as sender:
        sent = fill(sender, sock.getsockname())
        assert len(everything(sock)) == accounted(sock.stats()) == sent


def listed_drops(sock):
    """Return the last column of the kernel's own list of sockets."""
    (port, lines) = (sock.getsockname()[1], Path("/proc/net/udp").read_text().splitlines()[1:])
    (line,) = [line.split() for line in lines if line.split()[1].endswith(f":{port:04X}")]
    return int(line[-1])
