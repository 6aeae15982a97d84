"""A request that times out says how many datagrams were not its reply, and why."""

import pytest

from answering import Server
from tomada.asyncio import Client

pytestmark = pytest.mark.usefixtures("runner")

TIMEOUT = 0.1


def number(data):
    """Return the key of a request and of its reply."""
    if len(data) < 2:
        raise ValueError("too short")
    return data[:2]


def belongs(request, reply):
    return number(request) == number(reply)


WAYS = {"key": {"key": number}, "match": {"match": belongs}}


@pytest.mark.parametrize("way", WAYS)
async def test_timeout_says_how_many_datagrams_were_rejected(inet, way):
    with Server(inet, lambda _: [b"another", b"third"]) as server:
        async with Client(server.address, timeout=TIMEOUT, retries=0, **WAYS[way]) as client:
            for _ in range(2):  # the second request does not count those of the first
                with pytest.raises(TimeoutError, match=r"; match or key rejected 2 datagrams$"):
                    await client.request(b"request")


@pytest.mark.parametrize("way", WAYS)
async def test_cause_of_a_timeout_is_what_the_function_raised(inet, way):
    with Server(inet, lambda _: [b"x"]) as server:
        async with Client(server.address, timeout=TIMEOUT, retries=0, **WAYS[way]) as client:
            with pytest.raises(TimeoutError, match=r"rejected 1 datagram$") as caught:
                await client.request(b"request")
    assert repr(caught.value.__cause__) == "ValueError('too short')"
