"""A request with its attempts and its reply, without any I/O of its own."""

from __future__ import annotations

import errno
import random
from typing import TYPE_CHECKING

from tomada._address import format_address
from tomada._advice import OF_SECURING
from tomada._client.retry import SHORTEST_WAIT
from tomada._dtls_errors import DTLSZeroReturnError

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import _Address, _RetAddress

    from tomada._client.retry import Retry
    from tomada._client.round_trip import RoundTrip

__all__ = ["Exchange", "is_end_of_session", "is_refusal"]


def is_refusal(error: OSError) -> bool:
    """Return whether an error means that there is no server. ``AF_UNIX`` has both kinds."""
    return isinstance(error, ConnectionRefusedError | FileNotFoundError)


def is_end_of_session(error: OSError) -> bool:
    """Return whether an error means that the server has ended the session, or the handshake."""
    return isinstance(error, DTLSZeroReturnError)


class Exchange:
    """One request: its attempts, its deadline, its reply, and whether its port can be reused.

    It never sends, waits or reads a clock, so threads, event loops and tests can all drive it.
    Requests that are sent together and distinguished by a ``match`` may share an exchange::

        exchange = Exchange(retry, round_trip, monotonic())
        while exchange.attempt(monotonic()):
            ...  # send, then wait until exchange.due; for each datagram received:
            if exchange.accepts(data):
                exchange.complete(monotonic())
                return data
        raise exchange.timed_out(address, monotonic())

    When the request ends, for any reason, ``exchange.may_reuse_port`` says whether another request
    may use its port.

    :param retry: The user's options.
    :param round_trip: The estimate for the server, which learns from this request.
    :param started: When the first attempt is due, by the clock.
    :param is_answer: Returns whether a datagram is the reply; ``None`` if only the port identifies
        it.
    :param uniform: Draws the jitter.
    :param deadline: When the request times out. By default, the timeout counts from ``started``; if
        the request has waited in a queue, the deadline is earlier.
    """

    __slots__ = (
        "_begins_anew",
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
        "first_wait",
        "is_complete",
        "refusal",
        "rejected",
        "unsent",
    )

    def __init__(  # noqa: PLR0913 - the state of a request
        self,
        retry: Retry,
        round_trip: RoundTrip,
        started: float,
        is_answer: Callable[[bytes], bool] | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
        *,
        deadline: float | None = None,
    ) -> None:
        self._retry = retry
        self._round_trip = round_trip
        self._is_answer = is_answer
        self._uniform = uniform
        self._started = self._planned = started
        #: The time from the first attempt to the second, in seconds.
        self.first_wait = round_trip.first_wait(retry)
        self._share = retry.later_share(self.first_wait)
        self._is_last = False
        # Whether an attempt was repeated because the server had ended the handshake. The repeated
        # one does not count.
        self._begins_anew = False
        # When the next attempt was due, before an extra one was inserted.
        self._resumed: float | None = None
        #: When the whole request times out, in seconds of the clock.
        self.deadline = started + retry.timeout if deadline is None else deadline
        #: When the next attempt is due or, after the last one, when the request times out.
        self.due = started
        #: The number of attempts so far.
        self.attempts = 0
        #: The number of attempts that were not sent, because there was no session yet.
        self.unsent = 0
        #: The number of datagrams from the server that were not the reply.
        self.rejected = 0
        #: Whether the reply has arrived.
        self.is_complete = False
        #: Why attempts were lost: the last error from an ICMP message or the user's function.
        self.refusal: Exception | None = None

    def attempt(self, now: float) -> bool:
        """Begin the next attempt: if this returns true, send, then wait until `due`."""
        if self._resumed is not None:
            self.due, self._resumed = self._resumed, None
            return self._attempt_ahead(now)
        if self._is_last or now >= self.deadline:
            return False
        self.attempts += 1
        if self.attempts == 1:
            wait = self.first_wait
        else:
            self._round_trip.back_off(self.first_wait)
            self._share *= self._retry.backoff
            wait = max(self._share, self._round_trip.smoothed)
        planned = self._planned + wait
        # Skip an attempt that cannot be answered before the deadline.
        left = self.deadline - planned
        if not self._has_attempts or left <= self._round_trip.smoothed:
            self._is_last = True
            self.due = self.deadline
            return True
        self._planned = planned
        # Move the attempt later, never earlier, because the reply may be about to arrive. Jitter
        # moves this attempt only, so it does not accumulate.
        moved = planned + self._uniform(0.0, self._retry.jitter) * min(wait, left)
        # If the process was delayed, its attempts are late; it still waits after each of them.
        self.due = min(max(moved, now + SHORTEST_WAIT), self.deadline)
        return True

    def _attempt_ahead(self, now: float) -> bool:
        """Begin an attempt early; the next one is due when this one was."""
        if now >= self.deadline:
            return False
        self.attempts += 1
        if not self._has_attempts:
            self._is_last = True
            self.due = self.deadline
        return True

    @property
    def _has_attempts(self) -> bool:
        """Whether there may be another attempt."""
        return self.attempts - self._begins_anew < self._retry.count

    def accepts(self, data: bytes) -> bool:
        """Return whether a datagram from the server is the reply."""
        if self._is_answer is None or self._is_answer(data):
            return True
        self.rejected += 1
        return False

    def complete(self, now: float) -> None:
        """Record that the reply has arrived."""
        if not self.is_complete:
            self.is_complete = True
            if self.attempts == 1 and now >= self._round_trip.sample_due:
                self._round_trip.sample(now - self._started, now)

    def refuse(self, error: OSError, *, was_sent: bool = True) -> None:
        """Record that an attempt is lost: there is no server now, or an ICMP message has arrived.

        Anyone can send ICMP messages, and a reply may arrive anyway, so the wait continues. But if
        a router dropped a request that is too long for its link, the kernel now knows the limit,
        and the next attempt is due at once. The same applies if the session has ended.

        :param was_sent: False if the server has ended the handshake. The attempt is then repeated,
            at once for the first time: as alerts are not encrypted yet, anyone can send them.
        :raises OSError: `error` itself, if there is no server and ``retry_refused`` is false, or if
            the session has ended and no attempt is left.
        """
        if not self._retry.retry_refused and is_refusal(error):
            raise error from None
        self.refusal = error
        has_session_ended = is_end_of_session(error)
        if was_sent:
            may_repeat = self._has_attempts
        else:
            may_repeat, self._begins_anew = not self._begins_anew, True
        if not (has_session_ended or error.errno == errno.EMSGSIZE) or self._resumed is not None:
            return
        if may_repeat:
            self._resumed = self.due
            self.due = self._started
        elif has_session_ended and was_sent:
            raise error from None

    @property
    def retries_refused(self) -> bool:
        """Whether the request is retried if there is no server."""
        return self._retry.retry_refused

    @property
    def timeout(self) -> float:
        """How long the request may take as a whole, in seconds."""
        return self._retry.timeout

    @property
    def may_reuse_port(self) -> bool:
        """Whether another request may use the port: at once or, without a ``match``, after a rest.

        Without a ``match``, only the port identifies a reply. A late reply may still
        arrive if the request was sent twice, was not answered, or was cancelled.
        """
        is_sure = self.is_complete and self.attempts - self.unsent == 1
        return self._is_answer is not None or is_sure

    def timed_out(
        self, address: _Address | _RetAddress, now: float, *, had_session: bool | None = None
    ) -> TimeoutError:
        """Return the exception to raise when no attempt was answered.

        :param had_session: Whether an attempt was sent; by default, this follows from `unsent`.
        """
        where = format_address(address)
        waited = self._started + self._retry.timeout - self.deadline
        attempts = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        text = f"no reply from {where}: {attempts} in {now - self._started:.3f} s"
        if not self.attempts:
            text = f"not sent to {where}: {waited:.3f} s behind other requests"
        elif waited > SHORTEST_WAIT:
            text += f", after {waited:.3f} s behind other requests"
        if self.rejected:
            datagrams = "1 datagram" if self.rejected == 1 else f"{self.rejected} datagrams"
            text += f"; match or key rejected {datagrams}"
        if had_session is None:
            had_session = self.unsent < self.attempts
        if self.attempts and not had_session:
            text = (
                f"no DTLS session with {where}: the handshake was not complete after "
                f"{now - self._started:.3f} s; the server {OF_SECURING}"
            )
        error = TimeoutError(text)
        error.__cause__ = self.refusal
        return error
