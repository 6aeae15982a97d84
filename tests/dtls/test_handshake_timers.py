"""Handshakes through a bad network, which take as long as the timers of RFC 6347 let them take."""

import asyncio
import contextlib

import pytest

import tomada.asyncio
from dtls_pairs import psk_client, psk_server, upper
from families import LONG
from handshake_times import Handshakes, margin
from tomada import Server
from tomada.testing import impaired

# The short form finds timers that are missing, and too slow or too fast at first; the long one also
# those that do not double.
CLIENTS, LOSS, SECONDS = (1000, 0.3, 31) if LONG else (200, 0.15, 3)
# How often the test may fail although the timers are right.
RISK = 1e-6
# Before the first retransmission, in seconds: OpenSSL's clock is up to 15 ms early.
TOO_EARLY = 0.9
# How many handshakes begin at once.
GROUP = 50


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.thread_unsafe(reason="it opens as many sockets as it may")
def test_handshakes_through_a_bad_network_take_as_long_as_the_timers_predict():
    accepting = psk_server()
    accepting.max_handshakes = 2 * CLIENTS
    accepting.handshake_timeout = 600
    impairments = {"loss": LOSS, "duplicate": 0.1, "delay": 0.001, "jitter": 0.001}

    async def main(link):
        loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:

            async def shake_hands():
                context = psk_client()  # of its own, or sessions are resumed
                context.handshake_timeout = 600
                started = loop.time()
                endpoint = await stack.enter_async_context(
                    tomada.asyncio.open_endpoint(remote_addr=link.address, dtls=context)
                )
                return loop.time() - started, endpoint

            # How long computing takes: this machine may be busy, or slow.
            started = loop.time()
            await asyncio.gather(*(shake_hands() for _ in range(GROUP)))
            computing = loop.time() - started
            slack = 1 + 5 * computing

            link.change(**impairments)
            tasks, begun = [], loop.time()
            for _ in range(CLIENTS // GROUP):
                tasks += [asyncio.create_task(shake_hands()) for _ in range(GROUP)]
                await asyncio.sleep(2 * computing)  # so that handshakes do not wait for each other
            await asyncio.wait(tasks, timeout=SECONDS + slack)
            # From now on, one retransmission suffices, and no wait is more than 1 s longer than all
            # waits before it.
            link.change(loss=0.0, duplicate=0.0, delay=0.0, jitter=0.0)
            await asyncio.wait(tasks, timeout=loop.time() - begun + 1 + slack)
            assert all(task.done() for task in tasks)
            times, endpoints = zip(*(task.result() for task in tasks), strict=True)
            for endpoint in endpoints[:GROUP]:
                endpoint.send(b"hello")
            replies = await asyncio.gather(*(endpoint.recv() for endpoint in endpoints[:GROUP]))
            assert {data for data, _ in replies} == {b"HELLO"}
            return times, slack

    with Server(("127.0.0.1", 0), upper, dtls=accepting) as server, impaired(server) as link:
        times, slack = tomada.asyncio.run(main(link))
        stats = link.stats

    def share(seconds):
        return sum(time <= seconds for time in times) / CLIENTS

    allowed = margin(CLIENTS, RISK)
    handshakes = Handshakes(LOSS)
    assert [
        (second, share(second + slack), least)
        for second, least in enumerate(handshakes.complete(SECONDS))
        if share(second + slack) < least - allowed
    ] == []
    assert share(TOO_EARLY) <= handshakes.without_retransmission() + allowed
    for path in (stats.to_server, stats.to_client):
        assert path.lost > 0
        assert path.duplicated > 0
