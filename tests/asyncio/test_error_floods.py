"""Floods of ICMP errors: loops, and the transports and endpoints on them, keep running."""

import asyncio
import contextlib
import errno
import socket as std
import time
from collections import Counter

import pytest

import tomada
from peer import DEADLINE
from support import fill
from tomada import socket
from tomada._peer_errors import PeerErrors
from tomada.asyncio import DatagramTransport, open_endpoint
from transports import Recorder, hear, turns


def vacant(kind):
    with kind.bound(std) as sock:
        return sock.getsockname()


def twin(transport_or_endpoint):
    """Return a duplicate of the socket, with which a test reads its errors first."""
    sock = transport_or_endpoint.get_extra_info("socket")
    sock.setsockopt(std.IPPROTO_IP, socket.IP_RECVERR, 1)
    return std.socket(fileno=sock.dup().detach())


def provoke(other, gone, count):
    """Fill the kernel's error queue. No pending error is left for a call to raise."""
    for _ in range(count):
        with contextlib.suppress(ConnectionRefusedError):
            other.sendto(b"lost", gone)
        other.getsockopt(std.SOL_SOCKET, std.SO_ERROR)


def queued(other):
    """Return whether the kernel's error queue has an entry."""
    try:
        other.recvmsg(10, 1000, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    return True


async def refused_and_answered(sock, upstream, front):
    """Arrange for a loop to see an error and a datagram, where the error is then gone.

    The loop calls back for the socket that became ready first; that callback reads the error.
    """

    def take_the_error():
        front.recv(10)
        assert sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == errno.ECONNREFUSED

    asyncio.get_running_loop().add_reader(front, take_the_error)
    await turns(3)  # now the loop watches it
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as client:
        client.sendto(b"first", front.getsockname())
    sock.send(b"lost")
    upstream.bind(sock.getpeername())
    upstream.sendto(b"reply", sock.getsockname())


@pytest.fixture
def connected(inet):
    """Yield a socket connected to a free port, one that can bind that port, and a third."""
    with (
        std.socket(std.AF_INET, std.SOCK_DGRAM) as sock,
        std.socket(std.AF_INET, std.SOCK_DGRAM) as upstream,
        inet.bound(std) as front,
    ):
        sock.bind(("127.0.0.1", 0))
        sock.connect(vacant(inet))
        for each in (sock, front):
            each.setblocking(False)
        yield sock, upstream, front


async def test_transport_receives_after_an_error_that_was_already_read(endpoint, connected):
    sock, upstream, front = connected
    _, protocol = await endpoint(sock=sock.dup())
    await turns()
    await refused_and_answered(sock, upstream, front)
    await protocol.received(1)
    await turns()
    upstream.sendto(b"later", sock.getsockname())
    assert await protocol.received(2) == [b"reply", b"later"]
    asyncio.get_running_loop().remove_reader(front)


async def test_endpoint_receives_after_an_error_that_was_already_read(runner, connected):  # noqa: ARG001
    sock, upstream, front = connected
    async with open_endpoint(sock=sock.dup()) as endpoint:
        task = asyncio.create_task(endpoint.recv())
        await turns()
        await refused_and_answered(sock, upstream, front)
        assert (await asyncio.wait_for(task, DEADLINE))[0] == b"reply"
        task = asyncio.create_task(endpoint.recv())
        await turns()
        upstream.sendto(b"later", sock.getsockname())
        assert (await asyncio.wait_for(task, DEADLINE))[0] == b"later"
        asyncio.get_running_loop().remove_reader(front)


class Turns:
    """Counts events in each iteration of the running loop."""

    def __init__(self):
        self._number = 0
        self.counts = Counter()
        self._next()

    def _next(self):
        self._number += 1
        self._handle = asyncio.get_running_loop().call_soon(self._next)

    def note(self, *_):
        self.counts[self._number] += 1

    def stop(self):
        self._handle.cancel()


async def test_endpoint_in_a_flood_of_errors_lets_other_callbacks_run(
    runner,  # noqa: ARG001
    inet,
    monkeypatch,
):
    async with open_endpoint(("127.0.0.1", 0)) as endpoint:
        told = Turns()
        monkeypatch.setattr(PeerErrors, "note", told.note)
        gone = vacant(inet)
        with twin(endpoint) as other:
            task = asyncio.create_task(endpoint.recv())
            provoke(other, gone, 100)
            for _ in range(20):
                endpoint.send(b"lost", gone)
                await turns()
            while sum(told.counts.values()) < 100:  # noqa: ASYNC110 - it counts iterations
                await asyncio.sleep(0)
            # From another socket: this one may have an error, which its next send would raise.
            with inet.bound(std) as peer:
                peer.sendto(b"here", endpoint.get_extra_info("sockname"))
            assert (await asyncio.wait_for(task, DEADLINE))[0] == b"here"
        told.stop()
        assert max(told.counts.values()) <= 16


@pytest.mark.parametrize("count", [1, 40])
async def test_transport_reports_each_error_once(endpoint, inet, count):
    told = Turns()

    class Noting(Recorder):
        def error_received(self, error):
            told.note()
            super().error_received(error)

    transport, protocol = await endpoint(Noting)
    transport.get_extra_info("socket").setsockopt(std.IPPROTO_IP, socket.IP_RECVERR, 1)
    gone = vacant(inet)
    for _ in range(count):
        transport.sendto(b"lost", gone)
        await asyncio.sleep(0)
    await protocol.until(lambda: len(protocol.errors) >= count)
    await turns(10)
    assert [error.datagram_error.peer for error in protocol.errors] == [gone] * count
    assert transport.get_extra_info("stats").errors == count
    assert max(told.counts.values()) <= 16
    told.stop()


async def test_endpoint_with_a_peer_raises_each_error_once(runner, inet):  # noqa: ARG001
    async with open_endpoint(remote_addr=vacant(inet)) as endpoint:
        endpoint.socket.setsockopt(std.IPPROTO_IP, socket.IP_RECVERR, 1)
        endpoint.send(b"lost")
        with pytest.raises(ConnectionRefusedError) as raised:
            await asyncio.wait_for(endpoint.recv(), DEADLINE)
        assert type(raised.value.datagram_error) is tomada.DatagramError
        await turns(3)
        await endpoint.drain()


async def test_endless_datagrams_do_not_keep_the_error_queue_full(endpoint, inet):
    class Endless(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            sock = self.transport.get_extra_info("socket")
            if len(self.datagrams) < 200:
                other.sendto(data, sock.getsockname())
            else:
                self.is_full = queued(other)

    transport, protocol = await endpoint(Endless)
    with twin(transport) as other:
        provoke(other, vacant(inet), 50)
        other.sendto(b"x", transport.get_extra_info("sockname"))
        await protocol.received(200)
        assert not protocol.is_full
        await protocol.until(lambda: len(protocol.errors) == 50)


async def test_endpoint_with_many_datagrams_empties_the_error_queue(runner, inet):  # noqa: ARG001
    async with open_endpoint(("127.0.0.1", 0)) as endpoint:
        with twin(endpoint) as other:
            provoke(other, vacant(inet), 50)
            for _ in range(40):
                other.sendto(b"x", endpoint.get_extra_info("sockname"))
            for _ in range(32):
                assert (await endpoint.recv())[0] == b"x"
            assert not queued(other)
        await turns(5)
        assert len(endpoint.errors()) == 50


def test_errors_returns_a_limited_number_per_call(inet):
    gone = vacant(inet)
    with inet.bound(socket) as sock:
        sock.setsockopt(std.IPPROTO_IP, socket.IP_RECVERR, 1)
        try:
            sock.setsockopt(std.SOL_SOCKET, socket.SO_RCVBUFFORCE, 1 << 24)
        except PermissionError:
            pytest.skip("only root may")
        with std.socket(fileno=sock.dup().detach()) as other:
            provoke(other, gone, 1500)
        counts = [len(sock.errors()) for _ in range(3)]
    assert counts == [1024, 1500 - 1024, 0]


async def test_transport_continues_after_a_failed_resume(endpoint, inet, problems, monkeypatch):
    class SometimesSlow(Recorder):
        is_slow = False

        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            if self.is_slow:
                self.is_slow = False
                time.sleep(5e-3)  # longer than a turn, while others are left

    act, failures = DatagramTransport._act, []  # noqa: SLF001

    def fail_once(transport, step):
        if step == "deliver" and not failures:
            failures.append(MemoryError("once"))
            raise failures[0]
        act(transport, step)

    monkeypatch.setattr(DatagramTransport, "_act", fail_once)
    transport, protocol = await endpoint(SometimesSlow)
    with inet.bound(std) as other:
        count = 0
        while not failures:
            protocol.is_slow = count % 1024 == 960
            for _ in range(64):
                other.sendto(b"x", transport.get_extra_info("sockname"))
            count += 64
            while not failures and len(protocol.datagrams) < count:  # noqa: ASYNC110
                await asyncio.sleep(0)
        other.sendto(b"last", transport.get_extra_info("sockname"))
        await protocol.until(lambda: b"last" in protocol.payloads)
    assert [problem["exception"] for problem in problems] == failures
    problems.clear()


# Replies to strangers.


@pytest.fixture
def deaf(unix):
    """Return a peer that does not read and whose queue is full."""
    with unix.bound(std) as peer, unix.open(std) as stranger:
        fill(stranger, peer.getsockname())
        yield peer


async def test_peer_that_does_not_read_costs_the_others_nothing(runner, unix, deaf):  # noqa: ARG001
    with unix.bound(std) as honest, unix.bound(socket) as sock:
        async with open_endpoint(sock=sock) as endpoint:
            for number in range(20):
                endpoint.send(b"deaf", deaf.getsockname())
                endpoint.send(b"%d" % number, honest.getsockname())
                assert await hear(honest, 1) == [b"%d" % number]
            # A datagram that waits for room is dropped after a while, so closing is not delayed.
            async with asyncio.timeout(DEADLINE):
                await endpoint.aclose()
            lost = [(error.peer, error.errno) for error in endpoint.errors()]
            assert lost[-16:] == [(deaf.getsockname(), errno.EAGAIN)] * 16
            assert sock.stats().send_errors == 20


@pytest.mark.parametrize("size", [0, 1000])
async def test_backlog_for_a_peer_is_limited(runner, unix, deaf, size, caplog):  # noqa: ARG001
    with unix.bound(socket) as sock:
        async with open_endpoint(sock=sock) as endpoint:
            limit = (1 << 20) // (size + 256)
            for _ in range(2 * limit):
                endpoint.send(bytes(size), deaf.getsockname())
            endpoint.send_many([bytes(size)] * limit, deaf.getsockname())
            waiting = endpoint._core  # noqa: SLF001
            assert waiting.buffered <= limit * size
            assert waiting.queued <= limit
            stats = endpoint.stats()
            assert 2 * limit <= stats.send_errors <= 3 * limit
            assert stats.send_errors + waiting.queued == 3 * limit
            errors = endpoint.errors()
            assert len(errors) == 256
            assert {(error.peer, error.errno) for error in errors} == {
                (deaf.getsockname(), errno.EAGAIN)
            }
            # The loop still runs, and logs one line per second.
            assert len(caplog.records) <= 1 + DEADLINE
            endpoint.abort()
