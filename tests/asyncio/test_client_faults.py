"""A fault in one request, or one call of request_many, concerns no other."""

import asyncio
import gc
from operator import eq

import pytest

from answering import LONG, Server, echo, silence
from support import open_descriptors
from tomada._address import format_address
from tomada._client.ports import PORTS
from tomada.asyncio import Client, EventLoop


def key(data):
    """Return the key of a request and of its reply."""
    return data[:4]


def questions(count, error=None):
    """Yield requests, and raise an error in their middle."""
    for number in range(count):
        if error is not None and number == count // 2:
            raise error
        yield number.to_bytes(4, "big")


ERRORS = [asyncio.CancelledError("of another task"), GeneratorExit(), StopAsyncIteration()]


# The place of a request in the batch that is sent together means nothing to callers.
@pytest.mark.parametrize("options", [{"key": key}, {"match": eq}, {}], ids=["key", "match", "port"])
async def test_request_that_is_too_long(runner, inet, options):  # noqa: ARG001
    long = b"B" * 70_000
    with Server(inet, echo) as server:
        async with Client(server.address, timeout=LONG, **options) as client:
            asked = [*questions(2), long]
            outcomes = [await client.request_many(asked, errors="return")]
            calls = (client.request(data) for data in asked)
            outcomes.append(await asyncio.gather(*calls, return_exceptions=True))
            for outcome in outcomes:
                assert outcome[:2] == asked[:2]
                assert str(outcome[2]).startswith(
                    f"[Errno 90] Message too long: {format_address(server.address)} (split it: "
                )


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("error", ERRORS, ids=repr)
async def test_source_of_request_many_may_raise_anything(runner, inet, error, window):  # noqa: ARG001
    with Server(inet, echo) as server:
        async with Client(server.address, timeout=LONG, key=key) as client:
            with pytest.raises(type(error)) as caught:
                await client.request_many(questions(10, error), window)
            assert caught.value is error
            asked = list(questions(3))
            assert await client.request_many(asked) == asked


async def test_key_that_raises_stop_iteration_ends_request_many(runner, inet):  # noqa: ARG001
    def moody(data):
        if data == b"\0\0\0\3":
            raise StopIteration
        return data

    with Server(inet, echo) as server:
        async with Client(server.address, timeout=LONG, key=moody) as client:
            with pytest.raises(RuntimeError, match="StopIteration"):
                await client.request_many(questions(10), 1)


async def test_source_that_raises_when_a_request_times_out_delays_no_other(runner, inet):  # noqa: ARG001
    with Server(inet, silence) as server:
        async with Client(server.address, timeout=0.1, retries=0, key=key) as client:
            many = client.request_many(questions(2, asyncio.CancelledError()), 1, errors="return")
            async with asyncio.timeout(LONG):
                results = await asyncio.gather(
                    many, client.request(b"other"), return_exceptions=True
                )
    assert [type(result) for result in results] == [asyncio.CancelledError, TimeoutError]


async def test_each_request_fails_with_its_own_exception(runner, inet):  # noqa: ARG001
    with Server(inet, silence) as server:
        address = server.address
    async with Client(address, timeout=LONG, key=key, retry_refused=False) as client:
        calls = [client.request(b"%d   " % number) for number in range(5)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(error) for error in errors} == {ConnectionRefusedError}
    assert len({id(error) for error in errors}) == len(errors)


@pytest.mark.parametrize("options", [{}, {"key": key}], ids=["port", "key"])
def test_client_of_a_closed_loop_closes_its_sockets(inet, options):
    gc.collect()
    with Server(inet, silence) as server:
        before = open_descriptors()
        loop = EventLoop()
        client = Client(server.address, timeout=LONG, **options)
        task = loop.create_task(client.request(b"x"))
        while not server.asked:
            loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            asyncio.run(client.aclose())
        assert open_descriptors() == before
        assert server.asked[0][1][1] in PORTS.avoided(server.address)
        task._log_destroy_pending = False  # noqa: SLF001 - it never ends
        task.get_coro().close()
