"""How a request's time is divided among its attempts, as the user has asked.

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
    server may be about to start), or is raised at once (false). Errors that other ICMP messages
    bring always count as an attempt without an answer: routers send them while routes change, and
    anybody can forge them.

:class:`~tomada._client.exchange.Exchange` makes the attempts.
"""

from __future__ import annotations

import math

__all__ = ["LONGEST_TIMEOUT", "LONGEST_WAIT", "SHORTEST_WAIT", "Retry"]

# An attempt that waits for less, in seconds, is a flood and no question. Where more attempts would
# have to, fewer are made.
SHORTEST_WAIT = 1e-3

# The first wait of a client that knows nothing of its server yet is not longer: RFC 6298, 2.1.
LONGEST_WAIT = 1.0

# Some thirty years, in seconds. The sockets' own limit is not far from it.
LONGEST_TIMEOUT = 1_000_000_000


class Retry:
    """What the user asks for: a deadline, and how the attempts are spread up to it. Immutable.

    The first wait is :attr:`first_wait` for a server whose round trip is not known, and comes from
    the estimate after that. The later waits grow by the backoff. The last one is as long as it
    would be without any, so that each attempt has time to be answered, and all fill the timeout:
    with 1 s and 3 retries they are 125, 250, 500 and 125 ms.

    :param timeout: The deadline of the whole request, in seconds.
    :param retries: How often the request is sent again, at the most.
    :param backoff: How many times longer each wait is than the one before it, 1 or more.
    :param jitter: How much later than due an attempt may be made, as a share of the wait before it,
        less than one half: clients that failed together do not come back together.
    :param retry_refused: Whether a refusal is an attempt without an answer.
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
        """Count the attempts that there is time for; return the sum of waits, in first waits."""
        # The last wait is a share of 1, and the only attempt's is all.
        shares, wait = 1.0, 1.0
        for made in range(1, self.retries + 1):
            if (shares + wait) * SHORTEST_WAIT > self.timeout:
                self.count = made
                return shares
            shares += wait
            wait *= self.backoff
        #: How many attempts there are at the most, the first included.
        self.count = self.retries + 1
        return shares

    def later_share(self, first: float) -> float:
        """Return the wait that the later ones are multiples of, after a first wait."""
        return (self.timeout - first) / self._later_shares if self.count > 1 else 0.0

    def __repr__(self) -> str:
        return (
            f"Retry(timeout={self.timeout}, retries={self.retries}, "
            f"backoff={self.backoff}, jitter={self.jitter})"
        )


def _wrong(name: str, value: object, wanted: str) -> Exception:
    error = ValueError if isinstance(value, int | float) else TypeError
    return error(f"{name} must be {wanted}, not {value!r}")
