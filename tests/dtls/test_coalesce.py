"""Sessions on sockets and endpoints that collect datagrams: their end does not wait for one."""

import asyncio
import errno

import pytest

from collecting import every_endpoint_take, every_take
from dtls_pairs import psk_client, psk_server, session
from peer import DEADLINE
from support import Call
from tomada import Server
from tomada import asyncio as ours
from traffic import numbered

WINDOW = 0.02


every_count = pytest.mark.parametrize("count", [1, 5])


def take_all(take, near, count):
    """Take a number of datagrams, and then the end of the session, again and again."""
    received = []
    while len(received) < count:
        received += Call(take, near).result()
    assert received == numbered(count)
    for _ in range(2):
        with pytest.raises(OSError, match="shut down for receiving") as caught:
            Call(take, near).result()
        assert caught.value.errno == errno.ESHUTDOWN


@every_count
@pytest.mark.parametrize("timeout", [None, DEADLINE])
@every_take
def test_receive_reports_the_end_of_the_session(take, timeout, count):
    with session(psk_client(), psk_server()) as (near, far):
        near.settimeout(timeout)
        near.coalesce = WINDOW
        call = Call(take, near).until_it_waits()  # the next one knows that it may wait, too
        far.send(b"first")
        assert call.result() == [b"first"]
        for data in numbered(count):
            far.send(data)
        far.close()
        take_all(take, near, count)


@every_take
def test_every_waiting_receive_reports_the_end_of_the_session(take):
    with session(psk_client(), psk_server()) as (near, far):
        near.settimeout(None)
        near.coalesce = WINDOW
        calls = [Call(take, near).until_it_waits() for _ in range(3)]
        far.close()
        for call in calls:
            with pytest.raises(OSError, match="shut down for receiving"):
                call.result()


@every_take
def test_session_delivers_every_datagram_of_a_window(take):
    with session(psk_client(), psk_server()) as (near, far):
        near.coalesce = 0.001
        for count in (1, 3, 100, 2):
            for data in numbered(count):
                far.send(data)
            received = []
            while len(received) < count:
                received += Call(take, near).result()
            assert received == numbered(count)


async def endpoint_takes_all(open_endpoint, take, count):
    """Take what a server has sent before it closed, and then the end of the session."""
    with Server(("127.0.0.1", 0), lambda data, _: data, dtls=psk_server()) as server:
        async with open_endpoint(
            remote_addr=server.address, dtls=psk_client(), coalesce=WINDOW
        ) as near:
            near.send_many(numbered(count))
            server.stop()
            received = []
            while len(received) < count:
                received += await take(near)
            assert received == numbered(count)
            for _ in range(2):
                with pytest.raises(OSError, match=r".") as caught:
                    await take(near)
                assert not isinstance(caught.value, TimeoutError)


@every_count
@every_endpoint_take
@pytest.mark.usefixtures("runner")
async def test_endpoint_reports_the_end_of_the_session(take, count):
    await asyncio.wait_for(endpoint_takes_all(ours.open_endpoint, take, count), DEADLINE)


@every_count
@every_endpoint_take
def test_trio_endpoint_reports_the_end_of_the_session(take, count):
    trio = pytest.importorskip("trio")
    from tomada.trio import open_endpoint

    async def main():
        with trio.fail_after(DEADLINE):
            await endpoint_takes_all(open_endpoint, take, count)

    trio.run(main)
