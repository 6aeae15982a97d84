"""Many sessions on one socket."""

import asyncio
import contextlib

import pytest

import tomada.asyncio
from dtls_child import ServerChild
from dtls_pairs import psk_client
from families import LONG

pytestmark = [
    pytest.mark.thread_unsafe(reason="it opens as many sockets as it may"),
]

SESSIONS = 10_000 if LONG else 300
AT_ONCE = 50


@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.timeout(1200)
def test_server_has_many_sessions():
    context = psk_client()
    context.set_ciphers("PSK-AES128-GCM-SHA256")

    async def main(server):
        async with contextlib.AsyncExitStack() as stack:
            limit = asyncio.Semaphore(AT_ONCE)

            async def connect():
                async with limit:
                    endpoint = await stack.enter_async_context(
                        tomada.asyncio.open_endpoint(remote_addr=server.address, dtls=context)
                    )
                    await ask(endpoint, b"first")
                    return endpoint

            await connect()
            before = server.state()
            endpoints = await asyncio.gather(*(connect() for _ in range(SESSIONS)))
            state = server.state()
            each = (state["memory"] - before["memory"]) / SESSIONS
            print(f"{each:.0f} bytes of memory for each session")
            assert state["sessions"] == SESSIONS + 1
            # One after another, in an order in which none is the last that was used.
            for number, endpoint in enumerate(endpoints):
                await ask(endpoint, b"number %d" % number)
            state = server.state()
            assert state["sessions"] == SESSIONS + 1
            assert state["ended"] == state["evicted"] == state["failed"] == 0

    with ServerChild(max_handshakes=2 * AT_ONCE) as server:
        tomada.asyncio.run(main(server))


async def ask(endpoint, text):
    """Send a text until its reply arrives: the test is not about loss."""
    while True:
        endpoint.send(text)
        with contextlib.suppress(TimeoutError):
            data, _ = await asyncio.wait_for(endpoint.recv(), 30)
            assert data == text.upper()
            return
