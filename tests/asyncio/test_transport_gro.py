"""When a transport lets the kernel coalesce datagrams."""

import socket as std

import pytest

import tomada.asyncio
from tomada import socket
from traffic import numbered
from transports import Batches, Recorder


def is_on(transport):
    option = socket.IPPROTO_UDP, socket.UDP_GRO
    return bool(transport.get_extra_info("socket").getsockopt(*option))


@pytest.mark.parametrize("gro", [None, False, True])
async def test_gro_is_on_from_the_start_only_if_it_is_requested(endpoint, gro):
    transport, _ = await endpoint(local_addr=("127.0.0.1", 0), gro=gro)
    assert is_on(transport) == bool(gro)


@pytest.mark.parametrize("factory", [Recorder, Batches])
@pytest.mark.parametrize("gro", [None, False])
async def test_gro_is_switched_on_when_datagrams_arrive_in_volume(endpoint, inet, factory, gro):
    transport, protocol = await endpoint(factory, local_addr=("127.0.0.1", 0), gro=gro)
    with inet.bound(std) as other:
        sent = numbered(100)
        for data in sent:  # while the loop is held up
            other.sendto(data, transport.get_extra_info("sockname"))
        assert await protocol.received(100) == sent
        assert is_on(transport) == (gro is None)
        other.sendto(b"later", transport.get_extra_info("sockname"))
        assert (await protocol.received(101))[-1] == b"later"


async def test_gro_stays_off_while_datagrams_arrive_one_by_one(endpoint, inet):
    transport, protocol = await endpoint(local_addr=("127.0.0.1", 0))
    with inet.bound(std) as other:
        for number, data in enumerate(numbered(100)):
            other.sendto(data, transport.get_extra_info("sockname"))
            await protocol.received(number + 1)
    assert not is_on(transport)


async def test_gro_that_the_user_has_switched_off_stays_off(endpoint, inet):
    transport, protocol = await endpoint(local_addr=("127.0.0.1", 0))
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_UDP, socket.UDP_GRO, 0)
    with inet.bound(std) as other:
        for data in numbered(100):
            other.sendto(data, transport.get_extra_info("sockname"))
        await protocol.received(100)
    assert not is_on(transport)


@pytest.mark.parametrize("most", [1, 16])
async def test_endpoint_switches_gro_on_when_its_task_falls_behind(runner, inet, most):  # noqa: ARG001
    async with tomada.asyncio.open_endpoint(("127.0.0.1", 0)) as endpoint:
        with inet.bound(std) as other:
            for data in numbered(100):
                other.sendto(data, endpoint.get_extra_info("sockname"))
            received = []
            while len(received) < 100:
                received += [data for data, _ in await endpoint.recv_many(most)]
        assert received == numbered(100)
        assert is_on(endpoint)


async def test_gro_that_is_switched_off_by_the_property_stays_off(runner, inet):  # noqa: ARG001
    async with tomada.asyncio.open_endpoint(("127.0.0.1", 0)) as endpoint:
        endpoint.socket.gro = False
        with inet.bound(std) as other:
            for data in numbered(100):
                other.sendto(data, endpoint.get_extra_info("sockname"))
            received = []
            while len(received) < 100:
                received += await endpoint.recv_many(16)
        assert not is_on(endpoint)
