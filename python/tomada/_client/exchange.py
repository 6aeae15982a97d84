"""A request, its attempts and its reply, without any input or output of its own."""

from __future__ import annotations

import errno
import random
from typing import TYPE_CHECKING

from tomada._address import format_address
from tomada._client.retry import SHORTEST_WAIT

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import _Address, _RetAddress

    from tomada._client.retry import Retry
    from tomada._client.round_trip import RoundTrip

__all__ = ["Exchange", "is_refusal"]


def is_refusal(error: OSError) -> bool:
    """Say whether an error means that there is no server; the second is of ``AF_UNIX``."""
    return isinstance(error, ConnectionRefusedError | FileNotFoundError)


class Exchange:
    """One request: when it is sent, when it has failed, what answers it, and what of its port.

    It does not send, wait or look at a clock, so that threads, event loops and tests can drive it.
    Several requests that leave together, and are told apart by a ``match``, may share one::

        exchange = Exchange(retry, round_trip, monotonic())
        while exchange.attempt(monotonic()):
            ...  # send; wait up to exchange.due; for what comes:
            if exchange.accepts(data):
                exchange.complete(monotonic())
                return data
        raise exchange.timed_out(address, monotonic())

    and at the end, however it came, ``exchange.may_reuse_port`` says what becomes of the port.

    :param retry: What the user has asked for.
    :param round_trip: What is known of the server, and learns from this request.
    :param started: When the deadline began to count, by the clock.
    :param is_answer: Whether a datagram is the reply. None where only the port tells.
    :param uniform: Draws the jitter.
    """

    __slots__ = (
        "_first_wait",
        "_is_answer",
        "_is_last",
        "_planned",
        "_resumed",
        "_retry",
        "_round_trip",
        "_share",
        "_started",
        "_uniform",
        "attempts",
        "deadline",
        "due",
        "is_complete",
        "refusal",
    )

    def __init__(
        self,
        retry: Retry,
        round_trip: RoundTrip,
        started: float,
        is_answer: Callable[[bytes], bool] | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._retry = retry
        self._round_trip = round_trip
        self._is_answer = is_answer
        self._uniform = uniform
        self._started = self._planned = started
        self._first_wait = round_trip.first_wait(retry)
        self._share = retry.later_share(self._first_wait)
        self._is_last = False
        # When the next attempt was due, before one was put ahead of it.
        self._resumed: float | None = None
        #: When the request as a whole has failed, by the clock.
        self.deadline = started + retry.timeout
        #: When the next attempt is due, or the request has failed.
        self.due = started
        #: How many attempts were made.
        self.attempts = 0
        #: Whether the reply has come.
        self.is_complete = False
        #: Why an attempt was lost, as the kernel told it last.
        self.refusal: OSError | None = None

    def attempt(self, now: float) -> bool:
        """Begin the next attempt, and say whether there is one: then send, and wait up to `due`."""
        if self._resumed is not None:
            self.due, self._resumed = self._resumed, None
            return self._attempt_ahead(now)
        if self._is_last or now >= self.deadline:
            return False
        self.attempts += 1
        if self.attempts == 1:
            wait = self._first_wait
        else:
            self._round_trip.back_off(self._first_wait)
            self._share *= self._retry.backoff
            wait = max(self._share, self._round_trip.smoothed)
        planned = self._planned + wait
        # An attempt that could not be answered in time is not made.
        left = self.deadline - planned
        if self.attempts >= self._retry.count or left <= self._round_trip.smoothed:
            self._is_last = True
            self.due = self.deadline
            return True
        self._planned = planned
        # Later and never sooner, as the server may be about to answer. It moves a moment and not
        # the length of a wait, so that it does not add up.
        moved = planned + self._uniform(0.0, self._retry.jitter) * min(wait, left)
        # A process that was held up makes its attempts late, and yet waits after each.
        self.due = min(max(moved, now + SHORTEST_WAIT), self.deadline)
        return True

    def _attempt_ahead(self, now: float) -> bool:
        """Begin an attempt before it was due; the next one is due then."""
        if now >= self.deadline:
            return False
        self.attempts += 1
        if self.attempts >= self._retry.count:
            self._is_last = True
            self.due = self.deadline
        return True

    def accepts(self, data: bytes) -> bool:
        """Say whether a datagram from the server is the reply."""
        return self._is_answer is None or self._is_answer(data)

    def complete(self, now: float) -> None:
        """Take note that the reply has come."""
        if not self.is_complete:
            self.is_complete = True
            if self.attempts == 1 and now >= self._round_trip.sample_due:
                self._round_trip.sample(now - self._started, now)

    def refuse(self, error: OSError) -> None:
        """Take note that an attempt is lost: there is no server now, or an ICMP message has come.

        Anybody can send ICMP messages, and a reply may come all the same. So the wait goes on. But
        where a router has dropped what was too long for its link, the kernel knows by now how long
        a packet may be, and the next attempt is due at once.

        :raises OSError: This one, where there is no server, and the user wants to hear of it.
        """
        if not self._retry.retry_refused and is_refusal(error):
            raise error from None
        self.refusal = error
        is_too_long = error.errno == errno.EMSGSIZE
        if is_too_long and self._resumed is None and self.attempts < self._retry.count:
            self._resumed = self.due
            self.due = self._started

    @property
    def may_reuse_port(self) -> bool:
        """Whether another request may use the port at once or, with no ``match``, after a rest.

        Without a ``match`` a reply is told by its port alone, and one to this request may still
        come if it was sent twice, was not answered, or was cancelled.
        """
        return self._is_answer is not None or (self.is_complete and self.attempts == 1)

    def timed_out(self, address: _Address | _RetAddress, now: float) -> TimeoutError:
        """Return the exception to raise when no attempt was answered."""
        attempts = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        where = format_address(address)
        error = TimeoutError(f"no reply from {where}: {attempts} in {now - self._started:.3f} s")
        error.__cause__ = self.refusal
        return error
