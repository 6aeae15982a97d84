"""Every reply belongs to its request, whatever the network does to datagrams.

The long form makes 100,000 requests with each kind of ``Client``, and 8,000 from an endpoint, or
800 if they have a match. It prints their results.
"""

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import tomada
from answering import Server
from families import length
from replies import CALL, FEW, MANY, SINGLE, TIMEOUT, Tally, answers, bad_link, number, questions
from support import DEADLINE, Call, RefusalError, eventually, run
from tomada.asyncio import open_endpoint

THREADS = length(8, 64)

pytestmark = [pytest.mark.usefixtures("many_descriptors")]


@pytest.fixture(params=[None, answers], ids=["without match", "with match"])
def match(request):
    return request.param


@pytest.fixture(params=[{}, {"match": answers}, {"key": number}], ids=["port", "match", "key"])
def way(request):
    """Make clients that tell replies apart by the port, a match and a key."""
    return request.param


@pytest.fixture
def link():
    with bad_link() as link:
        yield link


def test_request_over_a_bad_link(link, way):
    # Each thread takes the next one: to hand them out, another would hold the interpreter's lock.
    tally, left = Tally(), iter(questions(SINGLE))

    def ask(_):
        for question in left:
            started = time.monotonic()
            try:
                reply = client.request(question)
            except TimeoutError as error:
                reply = error
            tally.add(question, reply, time.monotonic() - started)

    with (
        tomada.Client(link.address, TIMEOUT, **way) as client,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        assert list(threads.map(ask, range(THREADS))) == [None] * THREADS
    tally.check(SINGLE, f"request, {way}")


def test_request_many_over_a_bad_link(link, way):
    tally = Tally()
    with tomada.Client(link.address, TIMEOUT, **way) as client:
        for _ in range(MANY // CALL):
            asked = questions(CALL)
            replies = client.request_many(asked, errors="return")
            for question, reply in zip(asked, replies, strict=True):
                tally.add(question, reply)
    tally.check(MANY, f"request_many, {way}")


async def test_endpoint_request_over_a_bad_link(runner, link, match):  # noqa: ARG001
    # With a match, the requests are sequential.
    count = FEW // 10 if match else FEW
    tally, left = Tally(), iter(questions(count))

    async def ask(endpoint):
        for question in left:
            started = time.monotonic()
            try:
                reply = await endpoint.request(question, timeout=TIMEOUT, match=match)
            except TimeoutError as error:
                reply = error
            elapsed = 0.0 if match else time.monotonic() - started
            tally.add(question, reply, elapsed)

    async with open_endpoint(remote_addr=link.address) as endpoint:
        await asyncio.gather(*(ask(endpoint) for _ in range(32)))
    tally.check(count, f"Endpoint.request, match={match}, {asyncio.get_running_loop()}")


async def test_requests_cancelled_at_random_over_a_bad_link(runner, link, match):  # noqa: ARG001
    tally, chance = Tally(), random.Random(3)  # noqa: S311 - not for secrets
    count = FEW // 10 if match else FEW
    left = iter(questions(count))
    cancelled = 0

    async def ask(endpoint):
        nonlocal cancelled
        for question in left:
            task = asyncio.ensure_future(endpoint.request(question, timeout=TIMEOUT, match=match))
            if chance.random() < 0.3:
                await asyncio.wait({task}, timeout=chance.random() * 0.01)
                task.cancel()
            try:
                tally.add(question, await task)
            except TimeoutError as error:
                tally.add(question, error)
            except asyncio.CancelledError:
                cancelled += 1

    async with open_endpoint(remote_addr=link.address) as endpoint:
        await asyncio.gather(*(ask(endpoint) for _ in range(32)))
    assert cancelled
    tally.check(count - cancelled, f"cancelled {cancelled}, match={match}")


@pytest.mark.parametrize("way", ["request", "request_many"])
def test_match_that_sometimes_raises_over_a_bad_link(link, way):
    chance = random.Random(8)  # noqa: S311 - not for secrets

    def moody(request, reply):
        if chance.random() < 0.1:
            raise RefusalError("this", "that")
        return answers(request, reply)

    raised = 0
    with tomada.Client(link.address, TIMEOUT, match=moody) as client:
        for question in questions(FEW):
            try:
                if way == "request":
                    reply = client.request(question)
                else:
                    (reply,) = client.request_many([question])
            except RefusalError:
                raised += 1
            except TimeoutError:
                pass
            else:
                assert answers(question, reply)
    assert raised


@pytest.mark.parametrize("way", ["request", "request_many"])
def test_slow_match_that_rejects_does_not_delay_a_request_for_ever(inet, way):
    def slow(*_):
        time.sleep(0.02)
        return False

    with (
        Server(inet, lambda data: [data] * 3) as server,
        tomada.Client(server.address, 0.1, match=slow) as client,
        pytest.raises(TimeoutError),
    ):
        client.request(b"x") if way == "request" else client.request_many([b"x"] * 2)


@pytest.mark.parametrize("way", ["request", "request_many"])
def test_close_client_over_a_bad_link(link, match, way):
    for _ in range(length(3, 20)):
        answered, client = [], tomada.Client(link.address, DEADLINE, match=match)

        def ask(client=client, answered=answered):
            while True:
                asked = questions(8)
                try:
                    if way == "request":
                        replies = [client.request(asked[0])]
                    else:
                        replies = client.request_many(asked)
                except OSError as error:
                    return str(error)
                answered.append(None)
                for question, reply in zip(asked, replies, strict=False):
                    assert answers(question, reply)

        calls = [Call(ask) for _ in range(4)]
        eventually(lambda answered=answered: len(answered) > 8)
        client.close()
        assert all("the client is closed" in call.result() for call in calls)


def test_parent_and_child_over_a_bad_link(link):
    program = """
import os, sys
import tomada
client = tomada.Client(("127.0.0.1", int(sys.argv[1])), float(sys.argv[2]))
for _ in range(40):
    try:
        client.request(b"before")
    except TimeoutError:
        pass
child = os.fork()
name = b"parent" if child else b"child"
for number in range(200):
    data = b"%s %d" % (name, number)
    try:
        assert client.request(data) == b"reply to " + data
    except TimeoutError:
        pass
client.close()
if not child:
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""
    assert run(program, link.address[1], TIMEOUT) == "0\n"
