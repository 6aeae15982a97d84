"""``Endpoint.shutdown`` ends an endpoint without losing the replies of the tasks under way."""

import asyncio
import contextlib
import errno
import socket as std

import pytest

from answering import LONG, Server, echo
from support import DEADLINE, open_descriptors
from tomada.asyncio import open_endpoint
from transports import open_first, turns

pytestmark = pytest.mark.usefixtures("runner")


class Service:
    """Replies in a task for each datagram, when it is told to."""

    def __init__(self, endpoint):
        self.endpoint = endpoint
        self.may_reply = asyncio.Event()
        self.tasks = set()
        self.is_over = False

    async def run(self):
        async for data, address in self.endpoint:
            task = asyncio.create_task(self.reply(data, address))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        self.is_over = True

    async def reply(self, data, address):
        await self.may_reply.wait()
        self.endpoint.send(data, address)

    async def busy_with(self, count):
        while len(self.tasks) < count:
            await turns()


@pytest.fixture
def client():
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE)
        yield sock


@contextlib.asynccontextmanager
async def serving(client, count):
    """Provide a service with some tasks under way."""
    async with open_endpoint(("127.0.0.1", 0)) as endpoint:
        service = Service(endpoint)
        running = asyncio.create_task(service.run())
        client.connect(endpoint.get_extra_info("sockname"))
        for number in range(count):
            client.send(b"%d" % number)
        await service.busy_with(count)
        yield service
        await running


def received(client, count):
    return {client.recv(100) for _ in range(count)}


async def test_shutdown_sends_the_replies_of_the_tasks_under_way(client):
    async with serving(client, 112) as service:
        closing = asyncio.create_task(service.endpoint.shutdown(LONG, service.tasks))
        await turns(3)
        assert service.is_over
        assert not closing.done()
        service.may_reply.set()
        assert await closing == 0
        assert service.endpoint.is_closing()
        assert received(client, 112) == {b"%d" % number for number in range(112)}
        with pytest.raises(OSError, match="the endpoint is closed"):
            service.endpoint.send(b"x", ("127.0.0.1", 9))


async def test_shutdown_cancels_tasks_that_take_too_long(client):
    async with serving(client, 3) as service:
        assert await service.endpoint.shutdown(0.01, service.tasks) == 3
        assert not service.tasks
        assert service.endpoint.is_closing()


async def test_cancelled_tasks_may_still_send(client):
    async with serving(client, 1) as service:

        async def last(data, address):
            try:
                await asyncio.sleep(LONG)
            finally:
                service.endpoint.send(data, address)

        service.tasks.add(asyncio.create_task(last(b"sorry", client.getsockname())))
        await turns()
        assert await service.endpoint.shutdown(0, service.tasks) == 2
        assert client.recv(100) == b"sorry"


async def test_shutdown_waits_for_tasks_that_tasks_start(client):
    async with serving(client, 0) as service:

        async def parent():
            await turns(2)
            service.tasks.add(asyncio.create_task(service.reply(b"child", client.getsockname())))

        service.tasks.add(asyncio.create_task(parent()))
        service.may_reply.set()
        assert await service.endpoint.shutdown(LONG, service.tasks) == 0
        assert client.recv(100) == b"child"


async def test_shutdown_from_one_of_the_tasks(client):
    async with serving(client, 2) as service:
        service.may_reply.set()

        async def last():
            return await service.endpoint.shutdown(LONG, service.tasks)

        task = asyncio.create_task(last())
        service.tasks.add(task)
        assert await task == 0


async def test_cancelled_shutdown_leaves_the_endpoint_open(client):
    async with serving(client, 1) as service:
        closing = asyncio.create_task(service.endpoint.shutdown(None, service.tasks))
        await turns(2)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert not service.endpoint.is_closing()
        service.may_reply.set()
        assert await service.endpoint.shutdown(LONG, service.tasks) == 0
        assert client.recv(100) == b"0"


async def test_waiting_receivers_end_when_the_endpoint_stops_receiving():
    async with open_endpoint(("127.0.0.1", 0)) as endpoint:
        ways = (endpoint.recv, endpoint.recv_many, endpoint.recv_datagram)
        waiting = [asyncio.ensure_future(way()) for way in ways]
        await turns(2)
        endpoint.stop_receiving()
        endpoint.stop_receiving()
        for error in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(error, OSError)
            assert error.errno == errno.ESHUTDOWN
        for way in ways:
            with pytest.raises(OSError, match="has stopped receiving"):
                await way()
        assert [datagram async for datagram in endpoint] == []


async def test_requests_continue_when_the_endpoint_stops_receiving(inet, match):
    with Server(inet, echo) as server:
        async with open_endpoint(remote_addr=server.address) as endpoint:
            endpoint.stop_receiving()
            assert await endpoint.request(b"x", timeout=LONG, match=match) == b"x"


async def test_shutdown_leaks_nothing(endpoint):
    await open_first(endpoint)
    before = open_descriptors()
    closing = await open_endpoint(("127.0.0.1", 0))
    await closing.shutdown()
    await closing.shutdown(1)
    assert open_descriptors() == before


async def test_shutdown_ends_although_the_backlog_cannot_be_sent(unix):
    with std.socket(std.AF_UNIX, std.SOCK_DGRAM) as peer:
        peer.bind(unix.address())
        async with open_endpoint(
            unix.address(), peer.getsockname(), family=std.AF_UNIX
        ) as endpoint:
            for _ in range(2000):
                endpoint.send(b"x")
            assert await endpoint.shutdown(0.01) == 0
            assert endpoint.is_closing()


async def test_shutdown_cancels_the_tasks_of_an_iterator(client):
    async with serving(client, 3) as service:
        tasks = list(service.tasks)
        assert await service.endpoint.shutdown(0.01, iter(tasks)) == 3
        assert all(task.done() for task in tasks)


async def test_shutdown_says_that_coroutines_are_no_tasks():
    async with open_endpoint(("127.0.0.1", 0)) as endpoint:
        waiting = asyncio.sleep(0)
        with pytest.raises(TypeError, match=r"must be made by asyncio\.create_task"):
            await endpoint.shutdown(0.01, [waiting])
        waiting.close()
        assert not endpoint.is_closing()
