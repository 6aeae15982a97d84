"""Guards of endpoints and transports: no callback or task sees refused datagrams."""

import asyncio
import contextlib

import pytest

import tomada
import tomada.asyncio
from guards import FAR, NEAR
from support import DEADLINE
from tomada import socket


class Protocol(asyncio.DatagramProtocol):
    def __init__(self):
        self.received = asyncio.Queue()
        self.errors = []

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        self.received.put_nowait((data, addr))

    def error_received(self, exc):
        self.errors.append(exc)


class Batches(Protocol):
    def datagrams_received(self, datagrams):
        for datagram in datagrams:
            self.received.put_nowait(datagram)


def sender(host):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    return sock


@contextlib.asynccontextmanager
async def endpoint(factory, **options):
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(DEADLINE):
        transport, protocol = await tomada.asyncio.create_datagram_endpoint(
            loop, factory, local_addr=(NEAR, 0), **options
        )
        try:
            yield transport, protocol
        finally:
            transport.abort()


@pytest.mark.parametrize("in_kernel", [True, False])
@pytest.mark.parametrize("factory", [Protocol, Batches])
def test_protocol_receives_admitted_datagrams(factory, in_kernel):
    async def main():
        guard = tomada.Guard(deny=[FAR], max_size=5, kernel_filter=in_kernel)
        async with endpoint(factory, guard=guard) as (transport, protocol):
            to = transport.get_extra_info("sockname")
            with sender(NEAR) as near, sender(FAR) as far:
                far.sendto(b"no", to)
                near.send_many([b"too long"] * 100, to)
                near.sendto(b"yes", to)
                assert await protocol.received.get() == (b"yes", near.getsockname())
            assert protocol.received.empty()
            assert guard.stats().oversized == 100
            assert transport.get_extra_info("stats").refused == (100 if in_kernel else 101)

    tomada.asyncio.run(main())


def test_refused_datagrams_delay_no_timer():
    async def main():
        guard = tomada.Guard(max_size=5)
        async with endpoint(Protocol, guard=guard) as (transport, protocol):
            to = transport.get_extra_info("sockname")
            with sender(NEAR) as near:
                for _ in range(20):
                    near.send_many([b"too long"] * 200, to)
                    await asyncio.sleep(0)
                near.sendto(b"yes", to)
                assert (await protocol.received.get())[0] == b"yes"

    tomada.asyncio.run(main())


def test_protocol_is_told_of_replies_that_would_amplify():
    async def main():
        guard = tomada.Guard(amplification=2)
        async with endpoint(Protocol, guard=guard) as (transport, protocol):
            with sender(NEAR) as peer:
                peer.settimeout(DEADLINE)
                peer.sendto(bytes(10), transport.get_extra_info("sockname"))
                _, addr = await protocol.received.get()
                transport.sendto(bytes(21), addr)
                transport.sendto(bytes(20), addr)
                assert await asyncio.to_thread(peer.recv, 100) == bytes(20)
            (error,) = protocol.errors
            assert isinstance(error, PermissionError)

    tomada.asyncio.run(main())


def test_tasks_receive_admitted_datagrams():
    async def main():
        guard = tomada.Guard(max_size=5)
        async with (
            asyncio.timeout(DEADLINE),
            tomada.asyncio.open_endpoint(local_addr=(NEAR, 0), guard=guard) as opened,
        ):
            to = opened.get_extra_info("sockname")
            with sender(NEAR) as near:
                receiving = asyncio.ensure_future(opened.recv())
                near.send_many([b"too long"] * 200, to)
                await asyncio.sleep(0)
                near.send_many([b"too long", b"yes", b"too long", b"more"], to)
                assert (await receiving)[0] == b"yes"
                assert [data for data, _ in await opened.recv_many()] == [b"more"]

    tomada.asyncio.run(main())


def test_given_socket_keeps_its_guard_unless_another_is_given():
    async def main():
        loop = asyncio.get_running_loop()
        for own, given in ((tomada.Guard(), None), (tomada.Guard(), tomada.Guard()), (None, None)):
            sock = sender(NEAR)
            sock.setblocking(False)
            sock.guard = own
            transport, _ = await loop.create_datagram_endpoint(Protocol, sock=sock, guard=given)
            assert sock.guard is (given or own)
            transport.abort()

    tomada.asyncio.run(main())
