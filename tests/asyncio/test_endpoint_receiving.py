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
