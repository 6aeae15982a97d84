"""``tomada.asyncio.Client``: requests of many tasks, each of which gets its own reply."""

import asyncio
import contextlib
import contextvars
import errno
import gc
import logging
import socket as std
import weakref

import pytest

from answering import LONG, Lossy, Server, Slow, echo, silence
from support import open_descriptors
from tomada.asyncio import Client
from transports import open_first, turns

pytestmark = pytest.mark.usefixtures("runner")


@pytest.fixture(autouse=True)
def _first(runner, endpoint):
    runner.run(open_first(endpoint))


def number(data):
    """Return the key of a request or a reply: its first four bytes."""
    if len(data) < 4:
        raise ValueError("too short")
    return data[:4]


def same_number(request, reply):
    return number(request) == number(reply)


def question(index):
    return index.to_bytes(4, "big") + b" question"


async def asked(server, count):
    """Wait until a server has received some requests."""
    while len(server.asked) < count:
        await turns()


WAYS = {"key": {"key": number}, "match": {"match": same_number}, "ports": {}}


@pytest.fixture(params=WAYS)
def way(request):
    """Make clients with a key, a match, and neither."""
    return WAYS[request.param]


async def test_request_gets_its_reply(kind, way):
    with Server(kind, echo) as server:
        async with Client(server.address, timeout=LONG, **way) as client:
            for index in range(5):
                assert await client.request(question(index)) == question(index)
        assert [data for data, _ in server.asked] == [question(index) for index in range(5)]


async def test_requests_of_many_tasks_share_a_socket_unless_only_the_port_tells(inet, way):
    with Server(inet, echo) as server:
        async with Client(server.address, timeout=LONG, **way) as client:
            questions = [question(index) for index in range(300)]
            assert await asyncio.gather(*map(client.request, questions)) == questions
            stats = client.stats()
    assert (len({sender for _, sender in server.asked}) == 1) == bool(way)
    assert (stats.requests, stats.replies, stats.in_flight, stats.waiting) == (300, 300, 0, 0)


async def test_requests_wait_for_the_server_at_the_same_time(inet, way):
    with Slow(inet, 0.05) as server:
        async with Client(server.address, timeout=LONG, max_in_flight=200, **way) as client:
            started = asyncio.get_running_loop().time()
            await asyncio.gather(*(client.request(question(index)) for index in range(200)))
            took = asyncio.get_running_loop().time() - started
    assert took < 200 * 0.05 / 2  # one after another, they take longer


async def test_replies_in_another_order_reach_their_requests(inet, way):
    with Server(inet, silence) as server:
        async with Client(server.address, timeout=LONG, retries=0, **way) as client:
            tasks = [asyncio.ensure_future(client.request(question(i))) for i in range(20)]
            await asked(server, 20)
            for data, sender in reversed(list(server.asked)):
                server.sock.sendto(data, sender)
            assert await asyncio.gather(*tasks) == [question(index) for index in range(20)]


async def test_lost_datagrams_are_sent_again(inet, way):
    with Server(inet, Lossy(lambda count: count < 10)) as server:
        async with Client(server.address, timeout=LONG, retries=80, backoff=1.0, **way) as client:
            questions = [question(index) for index in range(30)]
            assert await asyncio.gather(*map(client.request, questions)) == questions
            assert client.stats().retransmissions >= 10


@pytest.mark.parametrize("size", [4, 200, 1200, 4000])
@pytest.mark.parametrize("way", ["key", "match"])
async def test_first_burst_does_not_overflow_the_server_s_buffer(inet, way, size):
    count = 500

    def serve(server):
        server.settimeout(3)
        for _ in range(count):
            server.sendto(*server.recvfrom(size))

    with inet.bound(std) as server:
        async with Client(
            server.getsockname(), timeout=LONG, retries=0, max_in_flight=count, **WAYS[way]
        ) as client:
            questions = [number(question(index)).ljust(size) for index in range(count)]
            replies = asyncio.ensure_future(client.request_many(questions))
            await turns(10)  # the server's buffer takes all that is sent before it begins
            await asyncio.to_thread(serve, server)
            assert await replies == questions
            assert client.stats().kernel_drops == 0


async def test_request_without_a_reply_times_out(inet, way):
    with Server(inet, silence) as server:
        async with Client(server.address, timeout=1, retries=1, **way) as client:
            with pytest.raises(TimeoutError, match=r"no reply from .*: 2 attempts in 1\.\d+ s"):
                await client.request(question(1))
            stats = client.stats()
    assert (stats.timeouts, stats.retransmissions, stats.in_flight) == (1, 1, 0)


async def test_max_in_flight_limits_what_is_sent_and_waiting_is_part_of_the_deadline(inet, way):
    with Server(inet, silence) as server:
        async with Client(server.address, timeout=0.5, retries=0, max_in_flight=2, **way) as client:
            tasks = [asyncio.ensure_future(client.request(question(i))) for i in range(5)]
            await turns(2)
            stats = client.stats()
            assert (stats.in_flight, stats.waiting) == (2, 3)
            texts = [str(e) for e in await asyncio.gather(*tasks, return_exceptions=True)]
    # The first one was sent a moment before the others, so another one may just have had its turn.
    assert ["behind other requests" in text for text in texts] == [False] * 2 + [True] * 3
    assert sum(text.startswith("not sent to") for text in texts) >= 2


async def test_request_that_waited_has_the_rest_of_its_time(inet):
    with Slow(inet, 0.1) as server:
        async with Client(server.address, timeout=LONG, max_in_flight=1, key=number) as client:
            questions = [question(index) for index in range(3)]
            assert await asyncio.gather(*map(client.request, questions)) == questions

    def answer(data):
        return [data] if data == question(0) else []

    with Server(inet, answer) as server:
        async with Client(server.address, timeout=0.3, max_in_flight=1, key=number) as client:
            first = asyncio.ensure_future(client.request(question(1)))
            await asyncio.sleep(0)
            await asyncio.sleep(0.1)
            second = asyncio.ensure_future(client.request(question(2)))
            results = await asyncio.gather(first, second, return_exceptions=True)
    assert "behind other requests" not in str(results[0])
    assert "behind other requests" in str(results[1])


async def test_cancelled_request_disturbs_no_other(inet, way):
    with Server(inet, silence) as server:
        async with Client(
            server.address, timeout=LONG, retries=0, max_in_flight=30, **way
        ) as client:
            tasks = [asyncio.ensure_future(client.request(question(i))) for i in range(60)]
            await asked(server, 30)
            for task in tasks[::2]:
                task.cancel()
            await asked(server, 45)
            for data, sender in list(server.asked):
                server.sock.sendto(data, sender)
            replies = await asyncio.gather(*tasks, return_exceptions=True)
            stats = client.stats()
    assert replies[1::2] == [question(index) for index in range(1, 60, 2)]
    assert all(isinstance(error, asyncio.CancelledError) for error in replies[::2])
    assert (stats.replies, stats.cancelled, stats.in_flight, stats.waiting) == (30, 30, 0, 0)


async def test_request_may_be_cancelled_at_any_turn(inet, way):
    with Server(inet, echo) as server:
        async with Client(server.address, timeout=LONG, **way) as client:
            for turns in range(12):
                task = asyncio.ensure_future(client.request(question(turns)))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    assert await task == question(turns)
                assert await client.request(question(1000 + turns)) == question(1000 + turns)
            stats = client.stats()
    assert stats.requests == 23  # the first task was cancelled before it began
    assert stats.replies + stats.cancelled == 23


async def test_cancelled_requests_leak_nothing(inet, way):
    with Server(inet, silence) as server:
        before = open_descriptors()
        client = Client(server.address, timeout=LONG, max_in_flight=20, **way)
        for _ in range(5):
            tasks = [asyncio.ensure_future(client.request(question(i))) for i in range(50)]
            await asyncio.sleep(0.001)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        requests = client._requests  # noqa: SLF001
        assert not requests._outcomes  # noqa: SLF001
        assert not requests.in_flight.requests
        assert not requests.in_flight._groups  # noqa: SLF001
        assert requests._pace.used == 0  # noqa: SLF001
        await client.aclose()
        assert open_descriptors() == before
    assert asyncio.all_tasks() == {asyncio.current_task()}
    alive = weakref.ref(client)
    del client, requests, task, tasks
    await asyncio.sleep(0.001)  # the loop forgets its last callbacks
    gc.collect()
    assert alive() is None


async def test_aclose_ends_requests_and_is_idempotent(inet, way):
    with Server(inet, silence) as server:
        before = open_descriptors()
        client = Client(server.address, timeout=LONG, max_in_flight=2, **way)
        tasks = [asyncio.ensure_future(client.request(question(i))) for i in range(4)]
        await asked(server, 1)
        await client.aclose()
        await client.aclose()
        for error in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(error, OSError)
            assert error.errno == errno.EBADF
            assert "the client is closed" in str(error)
        with pytest.raises(OSError, match="the client is closed"):
            await client.request(b"late")
        assert client.stats().errors == 4
        assert open_descriptors() == before
    assert "closed" in repr(client)


async def test_unclosed_client_warns(inet):
    with Server(inet, echo) as server:
        before = open_descriptors()
        client = Client(server.address, timeout=LONG, key=number)
        await client.request(question(1))
        with pytest.warns(ResourceWarning, match=r"unclosed <tomada\.asyncio\.Client of"):
            client = None
        assert open_descriptors() == before


async def test_request_to_no_server(inet, way):
    with std.socket(inet.family, std.SOCK_DGRAM) as sock:
        sock.bind(inet.address())
        address = sock.getsockname()
    async with Client(address, timeout=0.2, retries=2, **way) as client:
        with pytest.raises(TimeoutError) as caught:
            await client.request(question(1))
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    async with Client(address, timeout=LONG, retry_refused=False, **way) as client:
        with pytest.raises(ConnectionRefusedError):
            await client.request(question(1))
        assert client.stats().errors == 1


async def test_two_requests_with_one_key_raise(inet):
    with Server(inet, silence) as server:
        async with Client(server.address, timeout=LONG, max_in_flight=1, key=number) as client:
            first = asyncio.ensure_future(client.request(question(1)))
            waiting = asyncio.ensure_future(client.request(question(2)))
            await asyncio.sleep(0)
            for index in (1, 2):
                with pytest.raises(ValueError, match=r"another request with the key .* is in"):
                    await client.request(question(index))
            for task in (first, waiting):
                task.cancel()
            await asyncio.gather(first, waiting, return_exceptions=True)
            retry = asyncio.ensure_future(client.request(question(2)))
            await asyncio.sleep(0.01)
            assert not retry.done()  # the key is free again
            retry.cancel()


async def test_key_that_raises_for_a_request_reaches_its_task(inet):
    with Server(inet, echo) as server:
        async with Client(server.address, timeout=LONG, key=number) as client:
            with pytest.raises(ValueError, match="too short"):
                await client.request(b"x")
            assert await client.request(question(1)) == question(1)
        async with Client(server.address, timeout=LONG, key=bytearray) as client:
            with pytest.raises(TypeError, match="unhashable"):
                await client.request(question(1))
            assert client.stats().requests == 0


@pytest.mark.parametrize("way", ["key", "match"])
async def test_function_that_raises_for_a_datagram_is_counted_and_logged(inet, way, caplog):
    with Server(inet, lambda data: [b"x", data]) as server:
        async with Client(server.address, timeout=LONG, **WAYS[way]) as client:
            with caplog.at_level(logging.WARNING, "tomada"):
                assert await client.request(question(1)) == question(1)
            assert client.stats().function_errors == 1
    assert "match or key raised ValueError('too short')" in caplog.text


@pytest.mark.parametrize("way", ["key", "match"])
async def test_repeated_and_foreign_replies_are_counted(inet, way):
    def answer(data):
        return [question(77), data, data]

    with Server(inet, answer) as server:
        async with Client(server.address, timeout=LONG, **WAYS[way]) as client:
            for index in range(10):
                assert await client.request(question(index)) == question(index)
            assert client.stats().unexpected >= 19  # the last one comes after the reply


async def test_datagrams_of_strangers_are_dropped(inet, way):
    with Server(inet, silence) as server, std.socket(inet.family, std.SOCK_DGRAM) as stranger:
        async with Client(server.address, timeout=LONG, retries=0, **way) as client:
            task = asyncio.ensure_future(client.request(question(1)))
            await asked(server, 1)
            (data, sender), *_ = server.asked
            stranger.sendto(data, sender)
            await asyncio.sleep(0.02)
            assert not task.done()
            server.sock.sendto(data, sender)
            assert await task == question(1)


async def test_buffer_may_change_after_request(inet):
    with Server(inet, echo) as server:
        async with Client(server.address, timeout=LONG, max_in_flight=1, key=number) as client:
            buffer = bytearray(question(1))
            first = asyncio.ensure_future(client.request(question(0)))
            second = asyncio.ensure_future(client.request(buffer))
            await asyncio.sleep(0)
            buffer[:] = bytes(len(buffer))
            assert await asyncio.gather(first, second) == [question(0), question(1)]


@pytest.mark.parametrize("data", ["text", None, (b"x", ("127.0.0.1", 1))])
async def test_request_of_a_wrong_type_fails_alone(inet, data):
    with Server(inet, echo) as server:
        async with Client(server.address, timeout=LONG) as client:
            good = asyncio.ensure_future(client.request(question(1)))
            with pytest.raises(TypeError, match="bytes-like"):
                await client.request(data)
            assert await good == question(1)


async def test_request_that_is_too_long_fails_alone(inet, way):
    with Server(inet, echo) as server:
        async with Client(server.address, timeout=LONG, **way) as client:
            requests = [question(1), question(2) + bytes(70_000), question(3)]
            first, error, last = await asyncio.gather(
                *map(client.request, requests), return_exceptions=True
            )
    assert (first, last) == (question(1), question(3))
    assert isinstance(error, OSError)
    assert error.errno == errno.EMSGSIZE


async def test_request_many_keeps_the_order_and_the_window(inet, way):
    with Server(inet, echo) as server:
        async with Client(server.address, timeout=LONG, **way) as client:
            source = (question(index) for index in range(500))
            expected = [question(index) for index in range(500)]
            assert await client.request_many(source, 40) == expected
            assert await client.request_many([]) == []
            assert client.stats().replies == 500


async def test_request_many_errors(inet, way):
    def answer(data):
        return [] if data == question(3) else [data]

    with Server(inet, answer) as server:
        async with Client(server.address, timeout=0.3, retries=8, backoff=1.0, **way) as client:
            requests = [question(index) for index in range(6)]
            with pytest.raises(TimeoutError) as caught:
                await client.request_many(requests)
            assert caught.value.index == 3
            results = await client.request_many(requests, errors="return")
            assert isinstance(results.pop(3), TimeoutError)
            assert results == requests[:3] + requests[4:]

            def broken():
                yield question(9)
                raise KeyError("source")

            with pytest.raises(KeyError, match="source"):
                await client.request_many(broken())
            with pytest.raises(TypeError, match="bytes-like"):
                await client.request_many([question(10), "text"])
            assert client.stats().in_flight == 0


async def test_request_many_may_be_cancelled(inet, way):
    with Server(inet, silence) as server:
        async with Client(server.address, timeout=LONG, **way) as client:
            task = asyncio.ensure_future(client.request_many(map(question, range(40)), 10))
            await asked(server, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            stats = client.stats()
    assert (stats.cancelled, stats.in_flight, stats.waiting) == (10, 0, 0)


@pytest.mark.parametrize("errors", ["raise", "return"])
async def test_aclose_ends_request_many(inet, way, errors):
    with Server(inet, silence) as server:
        client = Client(server.address, timeout=LONG, **way)
        task = asyncio.ensure_future(
            client.request_many(map(question, range(40)), 10, errors=errors)
        )
        await asked(server, 10)
        await client.aclose()
        with pytest.raises(OSError, match="the client is closed") as caught:
            await asyncio.wait_for(task, LONG)
        assert caught.value.errno == errno.EBADF
        assert client.stats().requests == client.stats().errors == 10


async def test_request_many_reads_its_source_in_the_context_of_the_call(inet, way):
    variable = contextvars.ContextVar("variable")
    seen = []

    def source():
        for index in range(20):
            seen.append(variable.get())
            yield question(index)

    async def ask(client, name):
        variable.set(name)
        await client.request(question(100))
        await client.request_many(source(), 4)

    with Server(inet, echo) as server:
        async with Client(server.address, timeout=LONG, **way) as client:
            for name in ("first", "second"):
                await asyncio.create_task(ask(client, name))
    assert seen == ["first"] * 20 + ["second"] * 20


async def test_name_is_resolved_without_blocking_the_loop(inet):
    with Server(inet, echo) as server:
        client = Client(("localhost", server.address[1]), timeout=LONG, key=number, family=2)
        replies = await asyncio.gather(*(client.request(question(i)) for i in range(3)))
        assert replies == [question(0), question(1), question(2)]
        assert client.address == server.address
        await client.aclose()


async def test_name_without_an_address_raises():
    async with contextlib.AsyncExitStack() as stack:
        with pytest.raises(std.gaierror):
            await stack.enter_async_context(Client(("no.such.host.invalid", 1)))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"timeout": 0}, ValueError, "timeout must be"),
        ({"retries": -1}, ValueError, "retries must be"),
        ({"match": 1}, TypeError, "match must be a function"),
        ({"key": 1}, TypeError, "key must be a function"),
        ({"key": number, "match": same_number}, ValueError, "match= or key=, not both"),
        ({"max_in_flight": 0}, ValueError, "max_in_flight must be 1 or more"),
        ({"max_in_flight": 1.5}, TypeError, "max_in_flight must be an int"),
        ({"address": ("127.0.0.1", 0)}, ValueError, "port must be from 1"),
        ({"address": 5}, TypeError, "address"),
    ],
)
async def test_arguments_are_checked(options, error, text):
    with pytest.raises(error, match=text):
        Client(**{"address": ("127.0.0.1", 1), **options})


async def test_client_of_another_loop_raises(inet):
    with Server(inet, echo) as server:
        async with Client(server.address, timeout=LONG, key=number) as client:
            await client.request(question(1))

            def elsewhere():
                async def ask():
                    with pytest.raises(RuntimeError, match="another event loop"):
                        await client.request(question(2))

                asyncio.run(ask())

            await asyncio.to_thread(elsewhere)


async def test_with_says_what_to_write():
    with pytest.raises(TypeError, match="async with"), Client(("127.0.0.1", 1)):
        pass


@pytest.mark.parametrize("options", [{}, {"key": number}], ids=["port", "key"])
async def test_request_many_returns_any_number_of_immediate_failures(inet, options):
    with inet.bound(std) as server:
        async with Client(server.getsockname(), timeout=LONG, **options) as client:
            requests = [question(index) + bytes(70_000) for index in range(500)]
            results = await client.request_many(requests, window=8, errors="return")
    assert {error.errno for error in results} == {errno.EMSGSIZE}
