"""coalesce: transports and endpoints that collect datagrams after the first one."""

import asyncio
import time

import pytest

import tomada.asyncio
from collecting import every_endpoint_take as every_take
from peer import DEADLINE
from tomada import Batch, _core, socket
from tomada.asyncio import open_endpoint
from traffic import numbered
from transports import Batches, Recorder, hear, recorder, turns

pytestmark = pytest.mark.usefixtures("runner")

LONG = 60.0
WINDOW = 0.02
LEAST = WINDOW - 0.0005  # the clocks differ


async def create(protocol=Recorder, coalesce=WINDOW, **options):
    """Create an endpoint that collects, on any loop."""
    loop = asyncio.get_running_loop()
    options = options or {"local_addr": ("127.0.0.1", 0)}
    return await tomada.asyncio.create_datagram_endpoint(
        loop, protocol, coalesce=coalesce, **options
    )


async def close(transport, protocol):
    transport.close()
    await protocol.lost()


def send(sender, transport, payloads):
    for payload in payloads:
        sender.sendto(payload, transport.get_extra_info("sockname"))


@pytest.mark.parametrize("kind", [Recorder, Batches])
async def test_protocol_is_called_at_the_end_of_the_window(sender, kind):
    transport, protocol = await create(kind)
    total = 0
    # After several datagrams, the next window begins at once; after one, with the next.
    for count in (1, 2, 50, 3, 1):
        send(sender, transport, numbered(count))
        total += count
        await protocol.received(total)
        assert protocol.payloads[total - count :] == numbered(count)
    await close(transport, protocol)


async def test_first_datagram_waits_for_a_whole_window(sender):
    transport, protocol = await create()
    for number in range(1, 4):
        start = time.monotonic()
        send(sender, transport, [b"x"])
        await protocol.received(number)
        assert time.monotonic() - start > LEAST
    await close(transport, protocol)


async def test_given_socket_may_coalesce_already(sender):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.coalesce = WINDOW
        transport, protocol = await create(coalesce=0, sock=sock)
        start = time.monotonic()
        send(sender, transport, [b"x"])
        await protocol.received(1)
        assert time.monotonic() - start > LEAST
        await close(transport, protocol)


async def test_datagrams_beyond_a_receive_do_not_wait_for_another_window(sender):
    transport, protocol = await create(coalesce=0.001)
    for total in (200, 400):
        send(sender, transport, numbered(200))
        assert (await protocol.received(total))[-200:] == numbered(200)
    await close(transport, protocol)


async def test_closing_does_not_wait_for_the_window(sender):
    transport, protocol = await create(coalesce=LONG)
    send(sender, transport, [b"x"])
    await turns(3)
    await asyncio.wait_for(close(transport, protocol), DEADLINE)
    assert protocol.payloads == []


async def test_paused_transport_leaves_the_window_and_resumes(sender):
    transport, protocol = await create()
    for total in (1, 2):
        send(sender, transport, [b"x"])
        await turns(3)
        transport.pause_reading()
        await turns(3)
        transport.resume_reading()
        await protocol.received(total)
    await close(transport, protocol)


async def test_protocol_that_pauses_and_resumes_in_its_callback(sender):
    def datagram_received(self, data, addr):
        Recorder.datagram_received(self, data, addr)
        self.transport.pause_reading()
        self.transport.resume_reading()

    kind = recorder(datagram_received=datagram_received)
    transport, protocol = await create(kind, coalesce=0.001)
    for total in (10, 20):
        send(sender, transport, numbered(10))
        await protocol.received(total)
    await close(transport, protocol)


async def test_protocol_that_closes_in_its_callback(sender):
    def datagram_received(self, data, addr):
        Recorder.datagram_received(self, data, addr)
        self.transport.close()

    transport, protocol = await create(recorder(datagram_received=datagram_received))
    send(sender, transport, numbered(5))
    await protocol.lost()
    assert protocol.payloads == numbered(5)[:1]


async def test_replies_leave_at_the_end_of_the_window(sender):
    def datagram_received(self, data, addr):
        self.transport.sendto(data, addr)

    transport, protocol = await create(recorder(datagram_received=datagram_received))
    send(sender, transport, numbered(5))
    assert await hear(sender, 5) == numbered(5)
    await close(transport, protocol)


@every_take
async def test_endpoint_collects(sender, take):
    async with open_endpoint(("127.0.0.1", 0), coalesce=WINDOW) as endpoint:
        for count in (1, 2, 40, 1):
            send(sender, endpoint, numbered(count))
            received = []
            while len(received) < count:
                received += await asyncio.wait_for(take(endpoint), DEADLINE)
            assert received == numbered(count)


async def test_batch_is_empty_while_its_endpoint_collects():
    batch = Batch()
    batch.append(b"old")
    async with open_endpoint(("127.0.0.1", 0), coalesce=LONG) as endpoint:
        waiting = asyncio.create_task(endpoint.recv_batch(batch))
        await turns(2)
        assert len(batch) == 0
        waiting.cancel()


@every_take
async def test_endpoint_waits_for_a_whole_window(sender, take):
    async with open_endpoint(("127.0.0.1", 0), coalesce=WINDOW) as endpoint:
        for _ in range(3):
            start = time.monotonic()
            send(sender, endpoint, [b"x"])
            assert await asyncio.wait_for(take(endpoint), DEADLINE) == [b"x"]
            assert time.monotonic() - start > LEAST


class Windows:
    """Counts the windows that are opened."""

    kind = _core.ReceiveWindow
    opened = 0

    def __init__(self):
        self._inner = self.kind()
        self.fileno, self.close = self._inner.fileno, self._inner.close

    def open(self, sock):
        return self._count(self._inner.open(sock))

    def renew(self, sock):
        return self._count(self._inner.renew(sock))

    def _count(self, is_open):
        type(self).opened += is_open
        return is_open


@pytest.mark.thread_unsafe(reason="it replaces a class")
@every_take
async def test_endpoint_opens_one_window_for_one_datagram(sender, monkeypatch, take):
    monkeypatch.setattr(_core, "ReceiveWindow", Windows)
    async with open_endpoint(("127.0.0.1", 0), coalesce=WINDOW) as endpoint:
        before = Windows.opened
        waiting = asyncio.create_task(take(endpoint))
        for count in range(1, 4):
            await turns(3)
            send(sender, endpoint, [b"x"])
            assert await asyncio.wait_for(waiting, DEADLINE) == [b"x"]
            waiting = asyncio.create_task(take(endpoint))
            await turns(5)
            assert Windows.opened == before + count
        waiting.cancel()


@every_take
async def test_endpoint_in_two_tasks_returns_every_datagram_once(sender, take):
    async with open_endpoint(("127.0.0.1", 0), coalesce=0.001) as endpoint:
        received = []

        async def receive():
            while len(received) < 100:
                received.extend(await take(endpoint))

        tasks = [asyncio.create_task(receive()) for _ in range(2)]
        for payload in numbered(100):
            send(sender, endpoint, [payload])
            await turns()
        await asyncio.wait_for(asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED), DEADLINE)
        assert received == numbered(100)
        for task in tasks:
            task.cancel()


@every_take
async def test_cancelled_endpoint_loses_nothing(sender, take):
    async with open_endpoint(("127.0.0.1", 0), coalesce=WINDOW) as endpoint:
        for _ in range(3):
            waiting = asyncio.create_task(take(endpoint))
            await turns(2)
            send(sender, endpoint, [b"x"])
            await turns(2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await asyncio.wait_for(take(endpoint), DEADLINE) == [b"x"]


@every_take
async def test_closed_endpoint_ends_the_window(sender, take):
    async with open_endpoint(("127.0.0.1", 0), coalesce=LONG) as endpoint:
        send(sender, endpoint, [b"x"])
        waiting = asyncio.create_task(take(endpoint))
        await turns(3)
        await endpoint.aclose()
        with pytest.raises(OSError, match="the endpoint is closed"):
            await asyncio.wait_for(waiting, DEADLINE)


async def test_endpoint_receives_single_datagrams(sender):
    async with open_endpoint(("127.0.0.1", 0), coalesce=0.001) as endpoint:
        for _ in range(3):
            send(sender, endpoint, numbered(5))
            received = [await asyncio.wait_for(endpoint.recv(), DEADLINE) for _ in range(5)]
            assert [data for data, _ in received] == numbered(5)


@pytest.mark.parametrize(
    ("coalesce", "error"), [(-1, ValueError), (200, ValueError), ("1", TypeError)]
)
async def test_coalesce_is_checked(coalesce, error):
    with pytest.raises(error, match="coalesce must be a number of seconds"):
        await create(coalesce=coalesce)
    with pytest.raises(error, match="coalesce must be a number of seconds"):
        open_endpoint(("127.0.0.1", 0), coalesce=coalesce)
