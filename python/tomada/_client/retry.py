"""How a request's timeout is divided among its attempts.

The clients' parameters have the same names and meanings everywhere:

``timeout``
    The deadline of the whole request, in seconds. It does not restart with an attempt.
``retries``
    The maximum number of retransmissions within the timeout; 0 sends the request once.
``match``
    A callable ``(request, reply) -> bool`` that returns whether a datagram answers the request.
    Datagrams that it rejects are ignored, and the wait continues.
``retry_refused``
    Whether a :class:`ConnectionRefusedError` counts as an attempt without an answer (true: the
    server may be about to start), or is raised at once (false). Errors from other ICMP messages
    always count as an attempt without an answer: routers send them while routes change, and anybody
    can forge them.

:class:`~tomada._client.exchange.Exchange` makes the attempts.
"""

from __future__ import annotations

import math

__all__ = ["LONGEST_TIMEOUT", "LONGEST_WAIT", "SHORTEST_WAIT", "Retry"]

# The shortest wait after an attempt, in seconds: anything shorter would flood the server. If the
# timeout is too short for this, fewer attempts are made.
SHORTEST_WAIT = 1e-3

# The longest first wait while the round-trip time is unknown (RFC 6298, 2.1), in seconds.
LONGEST_WAIT = 1.0

# About thirty years, in seconds, which is close to the sockets' own limit.
LONGEST_TIMEOUT = 1_000_000_000


class Retry:
    """A deadline, and how the attempts are spread over it. Immutable.

    The first wait is :attr:`first_wait` while the server's round-trip time is unknown; after that,
    it comes from the estimate. The later waits grow by the backoff. The last one is as long as
    without backoff, so every attempt has time to be answered and the waits fill the timeout: with 1
    s and 3 retries they are 125, 250, 500 and 125 ms.

    :param timeout: The deadline of the whole request, in seconds.
    :param retries: The maximum number of retransmissions.
    :param backoff: The factor by which each wait is longer than the previous one, 1 or more.
    :param jitter: The maximum random delay of an attempt, as a fraction of the wait before it, less
        than 0.5. It keeps clients that failed together from retrying together.
    :param retry_refused: Whether a refusal counts as an unanswered attempt.
    :raises TypeError: An argument is not a number.
    :raises ValueError: An argument is out of range.
    """

    __slots__ = (
        "_later_shares",
        "backoff",
        "count",
        "first_wait",
        "jitter",
        "retries",
        "retry_refused",
        "timeout",
    )

    def __init__(
        self,
        timeout: float = 1.0,
        retries: int = 3,
        *,
        backoff: float = 2.0,
        jitter: float = 0.25,
        retry_refused: bool = True,
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
        self.retry_refused = retry_refused
        shares = self._divide()
        if self.count == 1:
            self.first_wait = self.timeout
        else:
            self.first_wait = min(self.timeout / shares, LONGEST_WAIT)
        self._later_shares = shares - 1.0

    def _divide(self) -> float:
        """Count the attempts that fit into the timeout; return the sum of waits, in first waits."""
        # The last wait is one share; a single attempt's wait is the whole timeout.
        shares, wait = 1.0, 1.0
        for made in range(1, self.retries + 1):
            if (shares + wait) * SHORTEST_WAIT > self.timeout:
                self.count = made
                return shares
            shares += wait
            wait *= self.backoff
        #: The maximum number of attempts, including the first.
        self.count = self.retries + 1
        return shares

    def later_share(self, first: float) -> float:
        """Return the wait from which the later waits grow, given the first wait."""
        return (self.timeout - first) / self._later_shares if self.count > 1 else 0.0

    def __repr__(self) -> str:
        return (
            f"Retry(timeout={self.timeout}, retries={self.retries}, "
            f"backoff={self.backoff}, jitter={self.jitter})"
        )


def _wrong(name: str, value: object, wanted: str) -> Exception:
    error = ValueError if isinstance(value, int | float) else TypeError
    return error(f"{name} must be {wanted}, not {value!r}")
