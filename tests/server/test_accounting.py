"""Accounting of servers and asyncio: a whole flood is received, refused or dropped."""

import asyncio
import os
import socket as std
import time

import pytest

import tomada
import tomada.asyncio
from floods import (
    RUN,
    SMALL_BUFFER,
    Flood,
    accounted,
    assert_bounded,
    assert_settled,
    is_overrun,
    needs_loadgen,
)
from peer import DEADLINE
from serving import server
from support import eventually
from tomada import socket
from traffic import everything, send_run
from transports import turns

pytestmark = [
    needs_loadgen,
    pytest.mark.thread_unsafe(reason="it forks"),
]

GUARDS = {
    "no guard": lambda: None,
    "a guard": lambda: tomada.Guard(rate=1000, burst=10),
    "a guard in the kernel": lambda: tomada.Guard(deny=["127.0.0.0/8"]),
}
guards = pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
# Each worker has its own socket, and each sender reaches one of them.
workers = pytest.mark.parametrize("workers", [1, 2])


def slow(data, _):
    time.sleep(1e-4)
    return data[:1]


def slow_batch(batch):
    time.sleep(1e-4 * len(batch))


def seen(guard):
    """Make a condition on counters: everything that a guard can cause has happened."""

    def condition(stats):
        if guard is None:
            return is_overrun(stats)
        if guard.kernel_filter is not None:
            return stats.filter_drops > 1000
        return stats.received > 0 and stats.refused > 0 and stats.kernel_drops > 1000

    return condition


@workers
@guards
@pytest.mark.parametrize(
    ("takes", "handler"), [("data", slow), ("batch", slow_batch)], ids=["data", "batch"]
)
def test_server_accounts_for_a_whole_flood(takes, handler, guard, workers):
    guard = guard()
    options = {"takes": takes, "workers": workers, "gro": False, "rcvbuf": SMALL_BUFFER}
    with server(handler, guard=guard, **options) as serving:
        with Flood(serving.address, gso=True, senders=2) as flood:
            eventually(lambda: seen(guard)(serving.stats()))
            sent = flood.stop()
        assert_settled(os.sched_yield, serving.stats, sent)
    assert accounted(serving.stats()) == sent


@workers
def test_stopped_server_has_counted_the_datagrams_that_it_drained(workers):
    with (
        server(slow, workers=workers, gro=False) as serving,
        Flood(serving.address, senders=2) as flood,
    ):
        eventually(lambda: is_overrun(serving.stats()))
        sent = flood.stop()
    assert accounted(serving.stats()) == sent


def test_replaced_workers_lose_nothing_in_a_flood():
    with server(slow, workers=2, gro=False) as serving, Flood(serving.address, senders=2) as flood:
        eventually(lambda: is_overrun(serving.stats()))
        serving.replace_workers()
        before = serving.stats().received
        eventually(lambda: serving.stats().received > before + 1000)
        sent = flood.stop()
    assert accounted(serving.stats()) == sent


@workers
def test_server_counts_a_dropped_run_as_one_datagram(workers):
    with (
        server(slow_batch, takes="batch", workers=workers) as serving,
        Flood(serving.address, gso=True, senders=2) as flood,
    ):
        eventually(lambda: is_overrun(serving.stats()))
        sent = flood.stop()
    assert_bounded(serving.stats(), sent)


@workers
def test_given_socket_keeps_datagrams_that_the_server_leaves(inet, workers):
    with inet.bound(socket) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        with Flood(sock.getsockname()) as flood:
            eventually(lambda: sock.stats().kernel_drops > 100)
            with server(slow, None, sock=sock, workers=workers, drain=0.1) as serving:
                eventually(lambda: serving.stats().received > 100)
            # More arrive meanwhile, for the owner of the socket.
            before = sock.stats().kernel_drops
            eventually(lambda: sock.stats().kernel_drops > before)
            sent = flood.stop()
        received = serving.stats().received
        eventually(lambda: everything(sock) or accounted(sock.stats()) + received == sent)
        assert accounted(sock.stats()) + received == sent


@workers
def test_datagrams_not_drained_in_time_count_as_received(inet, workers):
    runs = 20
    with inet.bound(socket) as sock, inet.bound(std) as sender:
        with server(slow, None, sock=sock, workers=workers, drain=0.0) as serving:
            send_run(sender, sock.getsockname(), bytes(RUN), 1)
            eventually(lambda: serving.stats().received)
            for _ in range(runs - 1):
                send_run(sender, sock.getsockname(), bytes(RUN), 1)
        left = len(everything(sock))
        assert serving.stats().received + left == runs * RUN


def test_server_does_not_count_earlier_drops(inet):
    with inet.bound(socket) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        sock.send_many([b"x"] * 500, sock.getsockname())
        assert sock.stats().kernel_drops > 0
        with server(lambda *_: None, None, sock=sock) as serving:
            eventually(lambda: serving.stats().received)
            assert serving.stats().kernel_drops == 0


class Slow(asyncio.DatagramProtocol):
    """Handles datagrams one by one, slowly."""

    def datagram_received(self, data, addr):
        slow(data, addr)


class SlowBatches(asyncio.DatagramProtocol):
    """Handles whole batches, slowly."""

    def datagrams_received(self, datagrams):
        slow_batch(datagrams)


async def until(condition):
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await turns()


async def opened(protocol, guard=None, **options):
    loop = asyncio.get_running_loop()
    transport, _ = await tomada.asyncio.create_datagram_endpoint(
        loop, protocol, local_addr=("127.0.0.1", 0), guard=guard, **options
    )
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    return transport, lambda: transport.get_extra_info("stats")


@guards
@pytest.mark.parametrize("protocol", [Slow, SlowBatches])
def test_transport_accounts_for_a_whole_flood(protocol, guard):
    guard = guard()

    async def main():
        transport, stats = await opened(protocol, guard, gro=False)
        with Flood(transport.get_extra_info("sockname"), gso=True) as flood:
            await until(lambda: seen(guard)(stats()))
            sent = await asyncio.to_thread(flood.stop)
        await until(lambda: accounted(stats()) >= sent)
        assert accounted(stats()) == sent
        transport.close()

    tomada.asyncio.run(main())


def test_transport_counts_a_dropped_run_as_one_datagram():
    async def main():
        transport, stats = await opened(SlowBatches, gro=True)
        with Flood(transport.get_extra_info("sockname"), gso=True) as flood:
            await until(lambda: is_overrun(stats()))
            sent = await asyncio.to_thread(flood.stop)
        # The flood is over, and the queued datagrams are delivered.
        received = -1
        while received != stats().received:
            received = stats().received
            await asyncio.sleep(0.05)
        assert_bounded(stats(), sent)
        transport.close()

    tomada.asyncio.run(main())


def test_paused_transport_counts_drops_without_receiving():
    async def main():
        transport, stats = await opened(Slow, gro=False)
        transport.pause_reading()
        with Flood(transport.get_extra_info("sockname")) as flood:
            await until(lambda: stats().kernel_drops > 1000)
            sent = await asyncio.to_thread(flood.stop)
        assert stats().received == 0
        transport.resume_reading()
        await until(lambda: accounted(stats()) >= sent)
        assert accounted(stats()) == sent
        transport.close()

    tomada.asyncio.run(main())


@guards
@pytest.mark.parametrize("way", ["recv", "recv_many"])
def test_endpoint_accounts_for_a_whole_flood(way, guard):
    guard = guard()

    async def take(endpoint):
        async with asyncio.timeout(0.01):
            await getattr(endpoint, way)()

    async def main():
        async with tomada.asyncio.open_endpoint(
            local_addr=("127.0.0.1", 0), guard=guard, gro=False
        ) as endpoint:
            endpoint.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            with Flood(endpoint.get_extra_info("sockname"), gso=True) as flood:
                while not seen(guard)(endpoint.stats()):
                    await asyncio.gather(take(endpoint), return_exceptions=True)
                sent = await asyncio.to_thread(flood.stop)
            while accounted(endpoint.stats()) < sent:
                # Some are cancelled while they wait, and lose nothing.
                await asyncio.gather(take(endpoint), return_exceptions=True)
            assert accounted(endpoint.stats()) == sent

    tomada.asyncio.run(main())
