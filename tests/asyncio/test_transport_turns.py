"""Fair scheduling: datagrams next to busy callbacks, and several transports on one loop."""

import asyncio
import socket as std

import pytest

import tomada.asyncio
from transports import Recorder

pytestmark = pytest.mark.thread_unsafe(reason="it counts the iterations of one loop")

LOOPS = {"asyncio": asyncio.SelectorEventLoop, "tomada": tomada.asyncio.EventLoop}


class Slow(Recorder):
    """Takes some time for each datagram, and records the loop iteration of each."""

    turn = 0

    def datagram_received(self, data, addr):
        super().datagram_received(data, addr)
        self.notes = [*getattr(self, "notes", []), Slow.turn]
        sum(range(5_000))


def turns_of_datagrams(new_loop, count, rounds):
    """Return how many iterations of a busy loop each datagram waits, for several rounds."""

    async def main():
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_datagram_endpoint(Slow, local_addr=("127.0.0.1", 0))
        waits = []
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as sender:
            for _ in range(rounds):
                for _ in range(count):
                    sender.sendto(b"x", transport.get_extra_info("sockname"))
                Slow.turn, protocol.notes = 0, []
                while len(protocol.notes) < count and Slow.turn < 100:
                    Slow.turn += 1
                    await asyncio.sleep(0)  # keeps the loop busy
                waits.append(protocol.notes)
        transport.close()
        return waits

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main())


@pytest.mark.parametrize("count", [1, 2, 4])
def test_datagram_beside_a_busy_task_waits_no_longer_than_on_the_standard_loop(count):
    standard = turns_of_datagrams(LOOPS["asyncio"], count, 10)
    ours = turns_of_datagrams(LOOPS["tomada"], count, 10)
    for there, here in zip(standard, ours, strict=True):
        assert all(mine <= theirs for mine, theirs in zip(here, there, strict=True)), (here, there)


class Counting(asyncio.DatagramProtocol):
    def __init__(self):
        self.count = 0

    def datagram_received(self, data, addr):  # noqa: ARG002
        self.count += 1


@pytest.mark.parametrize("is_busy", [False, True])
def test_flooded_transports_have_equal_shares(is_busy):
    count = 3_000

    async def main():
        loop = asyncio.get_running_loop()
        pairs = [
            await loop.create_datagram_endpoint(Counting, local_addr=("127.0.0.1", 0), gro=False)
            for _ in range(3)
        ]
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as sender:
            for transport, _ in pairs:
                transport.pause_reading()
                sock = transport.get_extra_info("socket")
                sock.setsockopt(std.SOL_SOCKET, FORCE, 1 << 23)
                for _ in range(count):
                    sender.sendto(b"x", transport.get_extra_info("sockname"))
        for transport, _ in pairs:
            transport.resume_reading()
        if is_busy:
            task = asyncio.create_task(spin())
        counts = [0]
        for _ in range(count):
            await wake(loop)
            counts = [protocol.count for _, protocol in pairs]
            if max(counts) >= count:
                break
        if is_busy:
            task.cancel()
        for transport, _ in pairs:
            transport.close()
        return counts

    with asyncio.Runner(loop_factory=tomada.asyncio.EventLoop) as runner:
        counts = runner.run(main())
    assert max(counts) == count
    assert min(counts) * 3 >= max(counts), counts


FORCE = 33  # SO_RCVBUFFORCE, which requires root; other users get up to net.core.rmem_max


async def wake(loop):
    """Wait for an iteration of the loop that has nothing else to do."""
    waiter = loop.create_future()
    loop.call_later(0, waiter.set_result, None)
    await waiter


async def spin():
    while True:  # noqa: ASYNC110 - it imitates a busy program
        await asyncio.sleep(0)
