"""Requests from an endpoint's own port, one at a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tomada._client.connection import MOST_HELD_UP, MOST_REPORTS
from tomada._client.exchange import is_refusal
from tomada._peer_errors import is_from_peer

if TYPE_CHECKING:
    from tomada._asyncio.endpoint import Endpoint
    from tomada._client.exchange import Exchange

# How many batches of datagrams to discard from the queue, at most, before a request.
MOST_BATCHES = 16


async def request_here(endpoint: Endpoint, data: Any, exchange: Exchange) -> bytes:
    """Make a request's attempts and return its reply. Only one task at a time may call this."""
    _pass_over(endpoint)
    while exchange.attempt(time.monotonic()):
        reply = await _attempt(endpoint, data, exchange)
        if reply is not None:
            exchange.complete(time.monotonic())
            return reply
    raise exchange.timed_out(endpoint.get_extra_info("peername"), time.monotonic())


async def _reply(endpoint: Endpoint, exchange: Exchange) -> bytes | None:
    try:
        async with endpoint._limit(exchange.due - time.monotonic()) as limit:
            while True:
                reply, _ = await endpoint._receive(endpoint._core.recvfrom, is_reply=True)
                if exchange.accepts(reply):
                    return bytes(reply)
    except TimeoutError:
        if not limit.expired():
            raise  # match raised it
    return _held_up(endpoint, exchange)


def _held_up(endpoint: Endpoint, exchange: Exchange) -> bytes | None:
    """Return the reply if it is in the queue: if the loop was delayed, it has arrived in time."""
    for _ in range(MOST_HELD_UP):
        endpoint._check_open()
        try:
            reply, _ = endpoint._core.recvfrom()
        except BlockingIOError:
            break
        if exchange.accepts(reply):
            return bytes(reply)
    return None


async def _attempt(endpoint: Endpoint, data: Any, exchange: Exchange) -> bytes | None:
    """Send a request, and wait for its reply, despite ICMP messages."""
    endpoint._check_open()
    unsent = endpoint._socket.stats().send_errors
    endpoint._transport.sendto(data)
    resent = late = 0
    while late < MOST_REPORTS:
        try:
            return await _reply(endpoint, exchange)
        except OSError as error:
            if not is_from_peer(error):
                raise
            before, unsent = unsent, endpoint._socket.stats().send_errors
            if unsent == before or is_refusal(error):
                exchange.refuse(error)
                late += exchange.due <= time.monotonic()
            elif resent == MOST_REPORTS:
                raise  # it is about the request itself
            else:
                resent += 1
                endpoint._transport.sendto(data)
    return None


def _pass_over(endpoint: Endpoint) -> None:
    endpoint._events.errors.clear()
    for _ in range(MOST_BATCHES):
        try:
            endpoint._core.recv_many(1024)
        except BlockingIOError:
            return
        except OSError as error:
            if not is_from_peer(error):
                raise
