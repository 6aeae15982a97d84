"""``Endpoint.request`` returns the reply to its own request, with and without a match."""

import asyncio
import contextlib
import errno
import random
import socket as std
import time

import pytest

from answering import LONG, Server, Slow, echo, same, silence
from support import RefusalError, eventually, open_descriptors
from tomada import Guard
from tomada.asyncio import open_endpoint

SLOW = 0.08


@pytest.fixture
def asking(runner):  # noqa: ARG001 - tests run on it
    """Open endpoints with a server as their peer."""

    @contextlib.asynccontextmanager
    async def opened(server, **options):
        async with open_endpoint(remote_addr=server.address, **options) as endpoint:
            yield endpoint

    return opened


async def test_request_is_sent_once_to_a_server_that_takes_80_ms(asking, inet, match):
    with Slow(inet, SLOW) as server:
        async with asking(server) as endpoint:
            for number in range(10):
                question = b"question %d" % number
                assert await endpoint.request(question, match=match) == question
    # On a busy machine some requests are retransmitted, but not all.
    assert len(server.asked) < 1.5 * 10


async def test_request_to_a_server_slower_than_the_first_wait_gets_the_right_reply(
    asking, inet, match
):
    with Slow(inet, SLOW) as server:
        async with asking(server) as endpoint:
            for number in range(10):
                question = b"question %d" % number
                reply = await endpoint.request(question, timeout=0.4, retries=6, match=match)
                assert reply == question


async def test_request_in_many_tasks_at_once(asking, inet, match):
    with Server(inet, echo) as server:
        async with asking(server) as endpoint:
            questions = [b"%d" % number for number in range(200)]
            replies = await asyncio.gather(
                *(endpoint.request(question, timeout=LONG, match=match) for question in questions)
            )
    assert replies == questions
    assert (len({sender for _, sender in server.asked}) == 1) == (match is same)


async def test_request_with_match_is_sent_from_the_endpoints_port(asking, inet):
    with Server(inet, echo) as server:
        async with asking(server) as endpoint:
            own = endpoint.get_extra_info("sockname")
            await endpoint.request(b"x", timeout=LONG, match=same)
            await endpoint.request(b"y", timeout=LONG)
    (_, first), (_, second) = server.asked
    assert first == own
    assert second != own
    assert second[0] == own[0]


async def test_request_does_not_take_datagrams_of_other_tasks(asking, inet):
    with Server(inet, echo) as server:
        async with asking(server) as endpoint:
            endpoint.send(b"before")
            eventually(lambda: server.asked)
            assert await endpoint.request(b"x", timeout=LONG) == b"x"
            assert await asyncio.wait_for(endpoint.recv(), LONG) == (b"before", server.address)


async def test_request_ports_have_the_options_of_the_endpoint(asking, inet, monkeypatch):
    seen = []
    from tomada._asyncio import separate_ports

    real = separate_ports._make_alike  # noqa: SLF001

    def look(model, secured, connection):
        real(model, secured, connection)
        seen.append(
            (
                connection.getsockopt(std.IPPROTO_IP, std.IP_TTL),
                connection.getsockopt(std.IPPROTO_IP, std.IP_TOS),
                connection.guard,
            )
        )

    monkeypatch.setattr(separate_ports, "_make_alike", look)
    guard = Guard()
    with Server(inet, echo) as server:
        async with asking(server, guard=guard) as endpoint:
            endpoint.socket.setsockopt(std.IPPROTO_IP, std.IP_TTL, 7)
            endpoint.socket.setsockopt(std.IPPROTO_IP, std.IP_TOS, 0x20)
            assert await endpoint.request(b"x", timeout=LONG) == b"x"
    assert seen == [(7, 0x20, guard)]


async def test_request_does_not_get_the_reply_to_a_cancelled_one(asking, inet, match):
    with Slow(inet, 0.005) as server:
        async with asking(server) as endpoint:
            chance = random.Random(5)  # noqa: S311 - not for secrets
            for number in range(40):
                task = asyncio.ensure_future(
                    endpoint.request(b"cancelled %d" % number, timeout=LONG, match=match)
                )
                for _ in range(chance.randrange(6)):
                    await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                question = b"question %d" % number
                assert await endpoint.request(question, timeout=LONG, match=match) == question


async def test_request_does_not_get_the_reply_to_one_that_timed_out(asking, inet, match):
    late = []

    def answer(data):
        if data == b"late":
            late.append(data)
            return []
        return [*late, data] if match else [data]

    with Server(inet, answer) as server:
        async with asking(server) as endpoint:
            with pytest.raises(TimeoutError, match=r"no reply from 127\.0\.0\.1:\d+: \d attempt"):
                await endpoint.request(b"late", timeout=0.05, match=match)
            for _, sender in server.asked:
                server.sock.sendto(b"late", sender)
            assert await endpoint.request(b"x", timeout=LONG, match=match) == b"x"


async def test_request_with_retry_refused_false_raises_refusals(asking, inet, match):
    with Server(inet, echo) as server:
        pass
    async with asking(server) as endpoint:
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                await endpoint.request(b"x", timeout=LONG, match=match, retry_refused=False)
        with pytest.raises(TimeoutError, match="no reply") as caught:
            await endpoint.request(b"x", timeout=0.2, match=match)
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)


async def test_request_succeeds_when_the_server_starts_later(asking, inet, match):
    with Server(inet, echo) as server:
        pass
    async with asking(server) as endpoint:
        task = asyncio.ensure_future(endpoint.request(b"x", timeout=LONG, retries=12, match=match))
        await asyncio.sleep(0)
        with Server(inet, echo, server.address):
            assert await task == b"x"


async def test_close_ends_requests_and_leaves_no_descriptor(asking, inet, match):
    with Server(inet, silence) as server:
        async with asking(server):
            pass  # a loop keeps what its first endpoint has opened for all of them
        before = open_descriptors()
        for _ in range(2):
            async with asking(server) as endpoint:
                tasks = [
                    asyncio.ensure_future(endpoint.request(b"x", timeout=LONG, match=match))
                    for _ in range(100)
                ]
                while not server.asked:  # noqa: ASYNC110 - a thread fills the list
                    await asyncio.sleep(0)
            for task in tasks:
                with pytest.raises(OSError, match=r"closed|Bad file descriptor") as caught:
                    await task
                assert caught.value.errno == errno.EBADF
            with pytest.raises(OSError, match="the endpoint is closed"):
                await endpoint.request(b"x", match=match)
        assert open_descriptors() <= before


async def test_request_propagates_an_exception_of_match(asking, inet):
    def refuse(*_):
        raise RefusalError("this", "that")

    with Server(inet, echo) as server:
        async with asking(server) as endpoint:
            for _ in range(3):
                with pytest.raises(RefusalError):
                    await endpoint.request(b"x", timeout=LONG, match=refuse)
            assert await endpoint.request(b"y", timeout=LONG, match=same) == b"y"
            with pytest.raises(TypeError, match="match must be a function"):
                await endpoint.request(b"x", match=5)


async def test_request_with_a_slow_match_still_times_out(asking, inet):
    def slow(*_):
        time.sleep(0.01)
        return False

    with Server(inet, lambda data: [data] * 5) as server:
        async with asking(server) as endpoint:
            with pytest.raises(TimeoutError):
                await endpoint.request(b"x", timeout=0.05, match=slow)


async def test_request_rejects_a_payload_too_long_for_a_datagram(asking, inet, match):
    with Server(inet, echo) as server:
        async with asking(server) as endpoint:
            with pytest.raises(OSError, match="Message too long"):
                await endpoint.request(bytes(65_508), timeout=LONG, match=match)
            with pytest.raises(TypeError):
                await endpoint.request("text", timeout=LONG, match=match)
            assert await endpoint.request(b"x", timeout=LONG, match=match) == b"x"
