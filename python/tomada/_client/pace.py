"""Limits the requests that a client sends before replies arrive, so that no buffer overflows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tomada._client.in_flight import Group

__all__ = ["Pace"]

# The default receive buffer of a socket on Linux, in bytes (net.core.rmem_default). The server's
# may be larger, but the client cannot know.
DEFAULT_BUFFER = 212_992

# A datagram takes at most this many bytes of the buffer, plus twice its payload, because the kernel
# rounds allocations up to powers of two.
OVERHEAD = 896

# The window's initial size, as a fraction of the smaller buffer; how much may queue at the server
# while the window still grows, as a fraction of that size; and the fraction by which the window
# grows per round trip. With these values, the window stays below three quarters of the buffer of a
# server that answers one request after another, even if only round trips through a full window were
# measured. The last quarter may hold the memory of datagrams that were read but not yet released
# (udp_rmem_release in net/ipv4/udp.c).
FILLED = 9 / 16
QUEUED = 1 / 8
GROWTH = 1 / 8

# A round trip that is not longer than this, in seconds, does not need a larger window.
NOTICEABLE = 2e-3

# How long the shortest round trip is valid, in seconds. Then it is measured again, with the
# window's initial size divided by SMALL.
UP_TO_DATE = 10.0
SMALL = 8


class Pace:
    """The window: the bytes that requests and their replies may take in sockets' buffers.

    At first, the window is about half of the smaller receive buffer: the client's own, or the
    server's, which is assumed to have the default size. A request takes up room from the time it is
    sent until it is answered or its wait for the reply is over.

    A server that takes 50 ms to reply, but works on a thousand requests at once, does not leave
    them in its buffer and should get a thousand. So the window grows by an eighth per round trip as
    long as little of it queues, and shrinks when more does. The round-trip time shows how much
    queues, as in TCP Vegas: ``window * (1 - shortest round trip / round trip)``. The window never
    shrinks below its initial size, except under load for two round trips every 10 s, which measure
    the round-trip time without a queue. So lost requests do not slow down the others.

    It reads no clock, and sends nothing.

    :param buffer: The size of the client's receive buffer, in bytes.
    """

    __slots__ = ("_before", "_due", "_least", "_reply", "floor", "used", "window")

    def __init__(self, buffer: int = DEFAULT_BUFFER) -> None:
        #: The minimum size of the window, in bytes.
        self.floor = int(min(buffer, DEFAULT_BUFFER) * FILLED)
        #: The size of the window, in bytes.
        self.window = self.floor
        #: The bytes of the window that are in use.
        self.used = 0
        # The length of the longest recent reply, in bytes; it decays slowly.
        self._reply = 0
        # The shortest round trip, in seconds, and when to measure it again.
        self._least = math.inf
        self._due = 0.0
        # The size of the window before it was reduced to measure the round trip, or 0.
        self._before = 0

    def cost(self, length: int) -> int:
        """Return the bytes that a request of a given length, or its reply, takes in a buffer."""
        return OVERHEAD + 2 * max(length, self._reply)

    def room(self, cost: int) -> int:
        """Return how many requests of a given cost may be sent; at least 1 in an unused window."""
        return (self.window - self.used) // cost if self.used else max(self.window // cost, 1)

    def charge(self, group: Group, number: int) -> None:
        """Take room for requests that are about to be sent."""
        group.charged += number
        self.used += number * group.cost

    def discharge(self, group: Group, number: int) -> None:
        """Release the room of requests that were answered or cancelled, or whose wait is over."""
        number = min(number, group.charged)
        group.charged -= number
        self.used -= number * group.cost

    def answered(self, replies: int, length: int, round_trip: float, now: float) -> None:
        """Adapt the window to replies that arrived together.

        :param replies: The number of replies, each to a request that was sent once.
        :param length: The length of one of them.
        :param round_trip: Its round-trip time, in seconds.
        :param now: The time of the clock.
        """
        self._reply = max(length, self._reply - self._reply // 16)
        if self._before:
            self._least = min(self._least, round_trip)
            if now >= self._due:
                self.window, self._before = self._before, 0
                self._due = now + UP_TO_DATE
            return
        self._least = min(self._least, round_trip)
        ratio = self._least / round_trip if round_trip > 0 else 1.0
        most_queued = self.floor * QUEUED
        most = most_queued / (1 - ratio) if ratio < 1 else math.inf
        if self.window > most:
            self.window = max(self.floor, int(self.window * ratio + most_queued))
        elif self.used > self.window // 2 and round_trip > NOTICEABLE:
            growth = replies * self.cost(length) * GROWTH
            self.window = int(min(self.window + growth, max(most, self.floor)))
        if not self._due:
            self._due = now + UP_TO_DATE
        elif now >= self._due and self.used > self.floor // 2:
            self._measure(round_trip, now)

    def _measure(self, round_trip: float, now: float) -> None:
        """Briefly make the window so small that hardly anything queues.

        Only then does the shortest round trip not include time in a full buffer.
        """
        self.window, self._before = self.floor // SMALL, self.window
        self._least = math.inf
        self._due = now + 2 * round_trip  # one to empty the window, and one to measure
