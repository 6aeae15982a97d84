"""How long a server takes to reply, as a client has measured it: RFC 6298."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tomada._client.retry import Retry

__all__ = ["RoundTrip"]

# By how much the wait is longer than the average round trip, at the least, in seconds. A server
# that answers evenly pauses now and then all the same, for its garbage collector or its neighbours.
LEAST_MARGIN = 50e-3

# How many waits, without that margin, after a reply its duplicate may come.
REST = 4

# How long a measurement will do, in seconds: RFC 6298 wants one in each round trip, and a shorter
# one is not worth its time.
SAMPLE_INTERVAL = 1e-3


class RoundTrip:
    """The estimate of a server's round trip, and the wait that comes of it.

    The smoothed round trip and its variation are those of RFC 6298: the wait is ``SRTT + 4 *
    RTTVAR``, at least 50 ms (or the first wait of a shorter request) more than SRTT. A request that
    was sent twice gives no sample (Karn's algorithm); instead the wait is doubled, up to half of
    the timeout, until a request that was sent once is answered.

    Several threads may use it at once; one of two samples at the same moment may be lost.
    """

    __slots__ = ("_backed_off", "_measured", "sample_due")

    def __init__(self) -> None:
        self._measured: tuple[float, float] | None = None
        self._backed_off = 0.0
        #: From when on a sample is wanted, by the clock.
        self.sample_due = float("-inf")

    @property
    def smoothed(self) -> float:
        """The average round trip, or 0 when there was none yet."""
        return 0.0 if self._measured is None else self._measured[0]

    @property
    def spread(self) -> float:
        """How long after a reply its duplicate may come, at a generous guess."""
        if self._measured is None:
            return float("inf")
        smoothed, variation = self._measured
        return REST * (smoothed + 4 * variation)

    def sample(self, elapsed: float, now: float) -> None:
        """Take note of how long a reply took to a request that was sent once."""
        if self._measured is None:
            self._measured = elapsed, elapsed / 2
        else:
            smoothed, variation = self._measured
            variation += (abs(smoothed - elapsed) - variation) / 4
            self._measured = smoothed + (elapsed - smoothed) / 8, variation
        self._backed_off = 0.0
        self.sample_due = now + SAMPLE_INTERVAL

    def back_off(self, waited: float) -> None:
        """Take note that no reply came within the first wait."""
        self._backed_off = max(self._backed_off, 2 * waited)
        self.sample_due = float("-inf")

    def first_wait(self, retry: Retry) -> float:
        """Return how long to wait before a request is sent again."""
        if retry.count == 1:
            return retry.timeout
        if self._measured is None:
            wait = retry.first_wait
        else:
            smoothed, variation = self._measured
            wait = smoothed + max(min(LEAST_MARGIN, retry.first_wait), 4 * variation)
        return min(max(wait, min(self._backed_off, retry.timeout / 2)), retry.timeout)
