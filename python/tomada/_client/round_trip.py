"""An estimate of how long a server takes to reply (RFC 6298)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tomada._client.retry import Retry

__all__ = ["RoundTrip"]

# The minimum difference between the first wait and the average round trip, in seconds. Even a
# steady server pauses occasionally, for garbage collection or because its machine is busy.
LEAST_MARGIN = 50e-3

# How long after a reply its duplicate may arrive, as a multiple of the wait without that margin.
REST = 4

# How long a sample stays fresh, in seconds: RFC 6298 requires one per round trip, but sampling more
# often than this is not worth the time. While ports rest for as long as the estimate says, each
# request gives a sample: an estimate that is too long costs a socket per request.
SAMPLE_INTERVAL = 10e-3
RESTING_SAMPLE_INTERVAL = 0.0


class RoundTrip:
    """A server's estimated round-trip time, and the first wait derived from it.

    The smoothed round trip and its variation are those of RFC 6298. The wait is ``SRTT + 4 *
    RTTVAR``, and longer than SRTT by at least 50 ms (or by the first wait of a shorter request). A
    request that was sent twice does not give a sample (Karn's algorithm). Instead the wait doubles
    until a request that was sent once is answered.

    Unless the server is so slow that SRTT requires more, the wait is at most half of the timeout: a
    variation that one late reply has raised does not stop requests from being sent again.

    Several threads may use it at once; one of two simultaneous samples may be lost.
    """

    __slots__ = ("_backed_off", "_measured", "sample_due", "sample_interval")

    def __init__(self) -> None:
        self._measured: tuple[float, float] | None = None
        self._backed_off = 0.0
        #: When the next sample is wanted, in seconds of the clock.
        self.sample_due = float("-inf")
        #: How long a sample stays fresh, in seconds.
        self.sample_interval = RESTING_SAMPLE_INTERVAL

    @property
    def smoothed(self) -> float:
        """The average round trip in seconds, or 0 without a sample."""
        return 0.0 if self._measured is None else self._measured[0]

    @property
    def spread(self) -> float:
        """How long after a reply its duplicate may arrive, in seconds: a generous estimate."""
        if self._measured is None:
            return float("inf")
        smoothed, variation = self._measured
        return REST * (smoothed + 4 * variation)

    def sample(self, elapsed: float, now: float) -> None:
        """Record the round-trip time of a request that was sent once, in seconds."""
        if self._measured is None:
            self._measured = elapsed, elapsed / 2
        else:
            smoothed, variation = self._measured
            variation += (abs(smoothed - elapsed) - variation) / 4
            self._measured = smoothed + (elapsed - smoothed) / 8, variation
        self._backed_off = 0.0
        self.sample_due = now + self.sample_interval

    def back_off(self, waited: float) -> None:
        """Record that no reply arrived within the first wait, in seconds."""
        self._backed_off = max(self._backed_off, 2 * waited)
        self.sample_due = float("-inf")

    def first_wait(self, retry: Retry) -> float:
        """Return how long to wait before the first retransmission, in seconds."""
        if retry.count == 1:
            return retry.timeout
        wait, needed = retry.first_wait, 0.0
        if self._measured is not None:
            smoothed, variation = self._measured
            needed = smoothed + min(LEAST_MARGIN, retry.first_wait)
            wait = max(needed, smoothed + 4 * variation)
        limit = min(max(needed, retry.timeout / 2), retry.timeout)
        return min(max(wait, self._backed_off), limit)
