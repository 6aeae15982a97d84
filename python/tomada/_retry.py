"""When a request is sent again: the schedule that the clients share, whether they block or await.

The clients' parameters have the same names and meanings everywhere:

``timeout``
    The deadline of the whole request, in seconds. It does not begin anew with an attempt.
``retries``
    How often the request is sent again within it, at the most; 0 sends it once.
``match``
    A callable ``(request, reply) -> bool`` that says whether a datagram answers the request. What
    it refuses is passed over, and the wait goes on.
``retry_refused``
    Whether a :class:`ConnectionRefusedError` counts as an attempt without an answer (true: the
    server may be about to start), or is raised at once (false).

A request goes like this::

    attempts = Retry(timeout, retries).start()
    for until in attempts:
        ...  # send; wait for a reply up to that moment; return it
    raise attempts.timed_out(address)
"""

from __future__ import annotations

import math
import random
import time
from typing import TYPE_CHECKING, Self

from tomada._address import format_address

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import _Address, _RetAddress

__all__ = ["Attempts", "Retry"]

# An attempt that waits for less, in seconds, is a flood and no question. Of so many attempts that
# they would have to, fewer are made.
SHORTEST_WAIT = 1e-3


# Some thirty years, in seconds. The sockets' own limit is not far from it.
LONGEST_TIMEOUT = 1_000_000_000


class Retry:
    """Divides the time for a request among its attempts. Immutable.

    The waits after the attempts grow by a factor and fill the timeout together: with 0.5 s and 3
    retries they are 33, 67, 133 and 267 ms. A reply that takes longer than its attempt's wait is as
    welcome during the next one's.

    :param timeout: The deadline of the whole request, in seconds.
    :param retries: How often the request is sent again, at the most.
    :param backoff: How many times longer each wait is than the one before it, 1 or more.
    :param jitter: How much earlier or later than due an attempt may be made, as a share of the wait
        before it, less than one half: clients that failed together do not come back together.
    :raises TypeError: An argument is no number.
    :raises ValueError: An argument is out of range.
    """

    __slots__ = ("backoff", "count", "first_wait", "jitter", "retries", "timeout")

    def __init__(
        self, timeout: float = 1.0, retries: int = 3, *, backoff: float = 2.0, jitter: float = 0.25
    ) -> None:
        if not (isinstance(timeout, int | float) and 0 < timeout <= LONGEST_TIMEOUT):
            wanted = f"a number of seconds greater than 0, up to {LONGEST_TIMEOUT:,}"
            raise _wrong("timeout", timeout, wanted)
        if not (isinstance(retries, int) and retries >= 0):
            raise _wrong("retries", retries, "an int, 0 or more")
        if not (isinstance(backoff, int | float) and 1 <= backoff < math.inf):
            raise _wrong("backoff", backoff, "a number, 1 or more")
        if not (isinstance(jitter, int | float) and 0 <= jitter < 1 / 2):
            raise _wrong("jitter", jitter, "a number from 0 to less than 0.5")
        self.timeout = float(timeout)
        self.retries = retries
        self.backoff = float(backoff)
        self.jitter = float(jitter)
        #: How many attempts there are, the first included, and how long that one waits.
        self.count, self.first_wait = self._divide()

    def _divide(self) -> tuple[int, float]:
        shares, last = 1.0, 1.0
        for count in range(1, self.retries + 1):
            last *= self.backoff
            if (shares + last) * SHORTEST_WAIT > self.timeout:
                return count, self.timeout / shares
            shares += last
        return self.retries + 1, self.timeout / shares

    def start(
        self,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
        started: float | None = None,
    ) -> Attempts:
        """Begin a request.

        :param clock: What the time is, in seconds; an event loop has a ``time`` of its own.
        :param uniform: Draws the jitter.
        :param started: When the deadline began to count, by the clock; now, unless it is given.
        """
        return Attempts(self, clock, uniform, clock() if started is None else started)

    def __repr__(self) -> str:
        return (
            f"Retry(timeout={self.timeout}, retries={self.retries}, "
            f"backoff={self.backoff}, jitter={self.jitter})"
        )


class Attempts:
    """The attempts of one request: gives for each the moment up to which to wait for a reply.

    There is no next one when all were made, or the deadline has passed.
    """

    __slots__ = ("_clock", "_due", "_retry", "_started", "_uniform", "_wait", "deadline", "made")

    def __init__(
        self,
        retry: Retry,
        clock: Callable[[], float],
        uniform: Callable[[float, float], float],
        started: float,
    ) -> None:
        self._retry = retry
        self._clock = clock
        self._uniform = uniform
        self._started = self._due = started
        self._wait = retry.first_wait
        #: When the request as a whole has failed, by the clock.
        self.deadline = self._started + retry.timeout
        #: How many attempts were made.
        self.made = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> float:
        retry, now = self._retry, self._clock() if self.made else self._started
        if self.made >= retry.count or now >= self.deadline:
            raise StopIteration
        self.made += 1
        if self.made == retry.count:
            return self.deadline
        # The jitter moves a moment and not the length of a wait, so that it does not add up, and
        # every attempt has its place before the deadline.
        wait, self._wait = self._wait, self._wait * retry.backoff
        self._due += wait
        until = self._due + self._uniform(-retry.jitter, retry.jitter) * wait
        # A process that was held up makes its attempts late, and yet waits after each.
        return min(max(until, now + SHORTEST_WAIT), self.deadline)

    def timed_out(self, address: _Address | _RetAddress) -> TimeoutError:
        """Return the exception to raise when no attempt was answered."""
        attempts = "1 attempt" if self.made == 1 else f"{self.made} attempts"
        elapsed = self._clock() - self._started
        where = format_address(address)
        return TimeoutError(f"no reply from {where}: {attempts} in {elapsed:.3f} s")


def _wrong(name: str, value: object, wanted: str) -> Exception:
    error = ValueError if isinstance(value, int | float) else TypeError
    return error(f"{name} must be {wanted}, not {value!r}")
