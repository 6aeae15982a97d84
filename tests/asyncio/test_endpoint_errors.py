"""Errors about peers do not end an endpoint with many peers, which reports them on request."""

import asyncio
import errno
import logging
import socket as std

import pytest

import tomada
from attack import LONGEST, send_from_port_0, vanish
from skips import NO_RAW
from support import DEADLINE
from tomada import socket
from tomada.asyncio import open_endpoint

NOWHERE = ("127.0.0.1", 0)


async def heard(endpoint):
    """Receive from a well-behaved peer, by every receiving method."""
    ways = (
        endpoint.recv,
        lambda: first(endpoint.recv_many()),
        lambda: pair(endpoint.recv_datagram()),
        lambda: anext(aiter(endpoint)),
    )
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        for number, receive in enumerate(ways):
            peer.sendto(b"%d" % number, endpoint.get_extra_info("sockname"))
            data, address = await asyncio.wait_for(receive(), DEADLINE)
            assert (data, address) == (b"%d" % number, peer.getsockname())


async def first(datagrams):
    return (await datagrams)[0]


async def pair(waiting):
    datagram = await waiting
    return datagram.data, datagram.address


def refused_by_port(endpoint):
    for _ in range(3):  # the first is sent at once, the others at the end of the iteration
        endpoint.send(b"x", NOWHERE)


def refused_by_broadcast(endpoint):
    for _ in range(3):
        endpoint.send(b"x", ("255.255.255.255", 9))


def refused_by_guard(endpoint):
    endpoint.socket.guard = tomada.Guard(amplification=1)
    for _ in range(3):
        endpoint.send(b"x", ("127.0.0.1", 9))


REFUSALS = {
    errno.EINVAL: refused_by_port,
    errno.EACCES: refused_by_broadcast,
    errno.EPERM: refused_by_guard,
}


@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
async def test_send_errors_are_reported_by_errors_and_raise_nowhere(
    runner,  # noqa: ARG001
    number,
    caplog,
):
    async with open_endpoint(("127.0.0.1", 0)) as endpoint:
        with caplog.at_level(logging.WARNING, "tomada"):
            REFUSALS[number](endpoint)
            endpoint.send_many([(b"x", NOWHERE)] * 2)
            await endpoint.drain()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        endpoint.socket.guard = None
        await heard(endpoint)
        await endpoint.drain()
        errors = endpoint.errors()
        assert [error.errno for error in errors].count(number) >= 3
        assert {type(error) for error in errors} == {tomada.DatagramError}
        assert len(errors) == endpoint.stats().send_errors == 5
        assert {error.data for error in errors} == {b"x"}
        assert NOWHERE in {error.peer for error in errors}
        assert endpoint.errors() == []
        # One message of each kind per second.
        assert [record.name for record in caplog.records] == ["tomada"]


async def test_icmp_errors_in_any_number_do_not_end_an_endpoint(runner, caplog):  # noqa: ARG001
    async with open_endpoint(("127.0.0.1", 0)) as endpoint:
        endpoint.socket.setsockopt(std.IPPROTO_IP, socket.IP_RECVERR, 1)
        for _ in range(4):
            vanish(endpoint.get_extra_info("sockname"), 100)
            for _ in range(100):
                _, address = await asyncio.wait_for(endpoint.recv(), DEADLINE)
                endpoint.send(b"gone", address)
        await asyncio.sleep(0)
        await heard(endpoint)
        errors = endpoint.errors()
        assert {error.errno for error in errors} == {errno.ECONNREFUSED}
        # The kernel's queue is limited by the receive buffer; the endpoint keeps the newest errors.
        assert len(errors) <= 256 < endpoint.stats().errors <= 400
        assert endpoint.stats().send_errors == 0


async def test_icmp_error_does_not_cost_another_peer_its_reply(runner, inet):  # noqa: ARG001
    with inet.bound(std) as honest:
        async with open_endpoint(("127.0.0.1", 0)) as endpoint:
            endpoint.socket.setsockopt(std.IPPROTO_IP, socket.IP_RECVERR, 1)
            with inet.bound(std) as sock:
                gone = sock.getsockname()
            for number in range(20):
                endpoint.send(b"gone", gone)
                endpoint.send(b"%d" % number, honest.getsockname())
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        assert [honest.recv(100) for _ in range(20)] == [b"%d" % number for number in range(20)]


async def test_waiting_task_is_not_ended_by_an_error(runner):  # noqa: ARG001
    async with open_endpoint(("127.0.0.1", 0)) as endpoint:
        endpoint.socket.setsockopt(std.IPPROTO_IP, socket.IP_RECVERR, 1)
        task = asyncio.create_task(endpoint.recv())
        await asyncio.sleep(0)
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            gone = sock.getsockname()
        for _ in range(50):
            endpoint.send(b"gone", gone)
            await asyncio.sleep(0)
        assert not task.done()
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
            sock.sendto(b"here", endpoint.get_extra_info("sockname"))
            assert (await asyncio.wait_for(task, DEADLINE))[0] == b"here"


async def test_source_port_0_ends_no_loop(runner):  # noqa: ARG001
    async def serve():
        async for data, address in endpoint:
            endpoint.send(data, address)

    async with open_endpoint(("127.0.0.1", 0)) as endpoint:
        if not send_from_port_0(endpoint.get_extra_info("sockname")):
            pytest.skip(NO_RAW)
        task = asyncio.create_task(serve())
        async with open_endpoint(remote_addr=endpoint.get_extra_info("sockname")) as client:
            client.send(b"ping")
            assert (await asyncio.wait_for(client.recv(), DEADLINE))[0] == b"ping"
        assert not task.done()
        assert endpoint.stats().send_errors == 3
    await task


@pytest.mark.parametrize("is_connected", [False, True])
async def test_invalid_arguments_raise_at_once(runner, inet, is_connected):  # noqa: ARG001
    with inet.bound(std) as peer:
        address = peer.getsockname()
        where = {"remote_addr": address} if is_connected else {"local_addr": ("127.0.0.1", 0)}
        async with open_endpoint(**where) as endpoint:
            to = None if is_connected else address
            endpoint.send(b"first of the turn", to)
            for _ in range(2):
                with pytest.raises(OSError, match="Message too long") as raised:
                    endpoint.send(bytes(LONGEST + 1), to)
                assert raised.value.errno == errno.EMSGSIZE
                with pytest.raises(TypeError):
                    endpoint.send("text", to)
            with pytest.raises(OSError, match="Message too long"):
                endpoint.send_many([b"before", bytes(70_000), b"after"], to)
            endpoint.send(bytes(LONGEST), to)
            await endpoint.drain()
            await asyncio.sleep(0)
            received = [await asyncio.to_thread(peer.recv, 1 << 17) for _ in range(4)]
            assert received == [b"first of the turn", b"before", b"after", bytes(LONGEST)]
            assert endpoint.errors() == []


async def test_endpoint_with_a_peer_raises_errors(runner, inet):  # noqa: ARG001
    with inet.bound(std) as sock:
        gone = sock.getsockname()
    async with open_endpoint(remote_addr=gone) as endpoint:
        endpoint.send(b"lost")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.wait_for(endpoint.recv(), DEADLINE)
        assert endpoint.errors() == []


async def test_errors_of_a_closed_endpoint_can_still_be_read(runner):  # noqa: ARG001
    async with open_endpoint(("127.0.0.1", 0)) as endpoint:
        endpoint.send(b"x", NOWHERE)
    assert [error.peer for error in endpoint.errors()] == [NOWHERE]
    assert endpoint.errors() == []
