"""The asyncio client over a link that loses, duplicates, delays and reorders datagrams.

Each reply belongs to its request, and every deadline is kept, whatever tells the replies apart.
"""

import asyncio
import random
import time

import pytest

from replies import CALL, FEW, MANY, SINGLE, TIMEOUT, Tally, answers, bad_link, number, questions
from tomada.asyncio import Client

pytestmark = [pytest.mark.usefixtures("runner", "many_descriptors")]

# The number of tasks that make requests at the same time.
TASKS = 100


@pytest.fixture(params=[{}, {"match": answers}, {"key": number}], ids=["port", "match", "key"])
def way(request):
    """Make clients that tell replies apart by the port, a match and a key."""
    return request.param


@pytest.fixture
def link():
    with bad_link() as link:
        yield link


async def test_tasks_get_their_own_replies(link, way):
    count = MANY if way else SINGLE
    tally, left = Tally(), iter(questions(count))

    async def ask(client):
        for question in left:
            started = time.monotonic()
            try:
                reply = await client.request(question)
            except TimeoutError as error:
                reply = error
            tally.add(question, reply, time.monotonic() - started)

    async with Client(link.address, timeout=TIMEOUT, **way) as client:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(TASKS):
                tasks.create_task(ask(client))
        stats = client.stats()
    assert (stats.replies, stats.timeouts) == (tally.answered, tally.timed_out)
    assert (stats.in_flight, stats.waiting, stats.errors) == (0, 0, 0)
    tally.check(count, f"tasks, {way}, {asyncio.get_running_loop()}")


async def test_request_many_gets_its_own_replies(link, way):
    count = MANY if way else SINGLE
    tally = Tally()
    async with Client(link.address, timeout=TIMEOUT, **way) as client:
        for start in range(0, count, CALL):
            asked = questions(min(CALL, count - start))
            replies = await client.request_many(asked, 100, errors="return")
            for question, reply in zip(asked, replies, strict=True):
                tally.add(question, reply)
    tally.check(count, f"request_many, {way}, {asyncio.get_running_loop()}")


async def test_storm_of_cancellations_disturbs_no_other_request(link, way):
    chance = random.Random(3)  # noqa: S311 - not for secrets
    tally, left, cancelled = Tally(), iter(questions(FEW)), 0

    async def ask(client):
        nonlocal cancelled
        for question in left:
            task = asyncio.ensure_future(client.request(question))
            if chance.random() < 0.5:
                await asyncio.wait({task}, timeout=chance.random() * 0.01)
                task.cancel()
            try:
                tally.add(question, await task)
            except TimeoutError as error:
                tally.add(question, error)
            except asyncio.CancelledError:
                cancelled += 1

    async with Client(link.address, timeout=TIMEOUT, max_in_flight=20, **way) as client:
        await asyncio.gather(*(ask(client) for _ in range(TASKS)))
        stats = client.stats()
    assert cancelled
    assert (stats.in_flight, stats.waiting) == (0, 0)
    assert stats.cancelled <= cancelled  # the others were cancelled before they began
    tally.check(FEW - cancelled, f"cancelled {cancelled}, {way}")
