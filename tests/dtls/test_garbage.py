"""Closed sockets, clients and endpoints with sessions are freed, and what they need is not."""

import asyncio
import gc
from weakref import ref

import pytest

import tomada.asyncio
from dtls_pairs import psk_client, psk_server, serving, session
from tomada import Client
from tomada._client.connection import Connection

pytestmark = pytest.mark.thread_unsafe(reason="it counts the objects of the process")


def connections():
    gc.collect()
    return sum(type(found) is Connection for found in gc.get_objects())


def test_closed_sockets_are_freed():
    with session(psk_client(), psk_server()) as (near, far):
        watched = [ref(near), ref(far)]
    del near, far
    gc.collect()
    assert [watch() for watch in watched] == [None, None]


def test_closed_clients_leave_no_connection():
    context = psk_client()
    before = connections()
    with serving(psk_server()) as server:
        for _ in range(3):
            with Client(server.address, dtls=context) as client:
                assert list(client.request_many([b"a", b"b"])) == [b"A", b"B"]
            del client
    assert connections() == before


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, tomada.asyncio.EventLoop])
def test_closed_endpoints_are_freed(new_loop):
    before = connections()

    async def main(address):
        endpoint = await tomada.asyncio.open_endpoint(remote_addr=address, dtls=psk_client())
        assert await endpoint.request(b"a") == b"A"
        async with tomada.asyncio.Client(address, dtls=psk_client()) as client:
            assert await client.request(b"a") == b"A"
        await endpoint.aclose()
        return ref(endpoint.socket), ref(endpoint), ref(client)

    with serving(psk_server()) as server, asyncio.Runner(loop_factory=new_loop) as runner:
        watched = runner.run(main(server.address))
    gc.collect()
    assert [watch() for watch in watched] == [None] * 3
    assert connections() == before


def test_endpoint_keeps_the_context_for_its_sni_callback():
    asked = []

    async def main():
        context = psk_server()
        context.sni_callback = lambda _handshake, name, _context: asked.append(name)
        server = await tomada.asyncio.open_endpoint(local_addr=("127.0.0.1", 0), dtls=context)
        del context
        gc.collect()
        async with server:
            answering = asyncio.create_task(server.recv())
            async with tomada.asyncio.open_endpoint(
                remote_addr=server.get_extra_info("sockname"),
                dtls=psk_client(),
                server_hostname="server.example",
            ) as client:
                client.send(b"hello")
                assert (await answering)[0] == b"hello"

    asyncio.run(main())
    assert asked == ["server.example"]
