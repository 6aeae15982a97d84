"""Endpoints receive into batches, and from multicast groups."""

import asyncio
import socket as std

import pytest

from support import DEADLINE
from tomada import Batch
from tomada.asyncio import open_endpoint
from transports import turns

pytestmark = pytest.mark.usefixtures("runner")

GROUP = "239.1.2.3"


async def test_recv_batch_waits_and_receives_what_is_queued(sender):
    async with open_endpoint(("127.0.0.1", 0)) as endpoint:
        batch = Batch(8)
        waiting = asyncio.create_task(endpoint.recv_batch(batch))
        await turns(2)
        for number in range(3):
            sender.sendto(b"%d" % number, endpoint.get_extra_info("sockname"))
        received = []
        count = await asyncio.wait_for(waiting, DEADLINE)
        while True:
            received += [(bytes(data), address) for data, address in batch]
            assert count <= len(received)
            if len(received) == 3:
                break
            count = await asyncio.wait_for(endpoint.recv_batch(batch), DEADLINE)
    assert received == [(b"%d" % number, sender.getsockname()) for number in range(3)]


async def test_cancelled_recv_batch_loses_nothing(sender):
    async with open_endpoint(("127.0.0.1", 0)) as endpoint:
        batch = Batch(8)
        waiting = asyncio.create_task(endpoint.recv_batch(batch))
        await turns(2)
        sender.sendto(b"x", endpoint.get_extra_info("sockname"))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await asyncio.wait_for(endpoint.recv_batch(batch), DEADLINE) == 1
        assert bytes(batch[0]) == b"x"


async def test_closed_endpoint_ends_recv_batch():
    async with open_endpoint(("127.0.0.1", 0)) as endpoint:
        waiting = asyncio.create_task(endpoint.recv_batch(Batch(8)))
        await turns(2)
        await endpoint.aclose()
        with pytest.raises(OSError, match="the endpoint is closed"):
            await waiting


async def by_batch(endpoint):
    batch = Batch(8)
    await endpoint.recv_batch(batch)
    return [(bytes(data), address) for data, address in batch]


async def by_datagram(endpoint):
    datagram = await endpoint.recv_datagram()
    return [(datagram.data, datagram.address)]


async def by_iterating(endpoint):
    return [await anext(aiter(endpoint))]


async def by_recv(endpoint):
    return [await endpoint.recv()]


RECEIVE = {
    "recv": by_recv,
    "recv_many": lambda endpoint: endpoint.recv_many(),
    "recv_datagram": by_datagram,
    "recv_batch": by_batch,
    "async for": by_iterating,
}


@pytest.mark.parametrize("receive", RECEIVE.values(), ids=RECEIVE)
async def test_replies_leave_from_the_address_that_was_asked_after_every_receive(receive, inet):
    async with open_endpoint(("0.0.0.0", 0)) as endpoint:  # noqa: S104 - all addresses are tested
        with inet.bound(std) as asker:
            asker.connect(("127.0.0.2", endpoint.get_extra_info("sockname")[1]))
            asker.send(b"question")
            received = await asyncio.wait_for(receive(endpoint), DEADLINE)
            assert received == [(b"question", asker.getsockname())]
            endpoint.send(b"answer", received[0][1])
            asker.settimeout(DEADLINE)
            assert asker.recv(100) == b"answer"


@pytest.mark.parametrize("receive", RECEIVE.values(), ids=RECEIVE)
async def test_gro_is_switched_on_in_volume_by_every_receive(receive, inet):
    async with open_endpoint(("127.0.0.1", 0)) as endpoint:
        with inet.bound(std) as other:
            for number in range(100):
                other.sendto(b"%04d" % number, endpoint.get_extra_info("sockname"))
            received = []
            while len(received) < 100:
                received += [data for data, _ in await receive(endpoint)]
        assert received == [b"%04d" % number for number in range(100)]
        assert endpoint.socket.gro


@pytest.mark.parametrize("is_given", [False, True])
async def test_endpoint_joins_groups(sender, is_given):
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as own:
        own.bind(("0.0.0.0", 0))  # noqa: S104 - datagrams to the group arrive there
        how = {"sock": own} if is_given else {"local_addr": ("0.0.0.0", 0)}  # noqa: S104 - as above
        sender.setsockopt(std.IPPROTO_IP, std.IP_MULTICAST_IF, std.inet_aton("127.0.0.1"))
        async with open_endpoint(**how, groups=[(GROUP, "127.0.0.1")]) as endpoint:
            sender.sendto(b"to all", (GROUP, endpoint.get_extra_info("sockname")[1]))
            data, _ = await asyncio.wait_for(endpoint.recv(), DEADLINE)
            assert data == b"to all"


async def test_groups_are_checked():
    with pytest.raises(TypeError, match=r"groups must be a list"):
        open_endpoint(("127.0.0.1", 0), groups=GROUP)


@pytest.mark.parametrize(("family", "host"), [("AF_INET", "0.0.0.0"), ("AF_INET6", "::")])  # noqa: S104
async def test_empty_host_is_any_address(request, family, host):
    options = {}
    if family == "AF_INET6":
        request.getfixturevalue("inet6")
        options["family"] = std.AF_INET6
    async with open_endpoint(("", 0), **options) as endpoint:
        assert endpoint.get_extra_info("sockname")[0] == host
