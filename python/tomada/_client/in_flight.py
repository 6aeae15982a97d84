"""The attempts and deadlines of many requests in flight, without waiting for any of them."""

from __future__ import annotations

import copy
import errno
import heapq
import math
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any

from tomada._advice import advise_on_sending
from tomada._client.connection import SecuringError, has_no_room
from tomada._client.exchange import Exchange, is_end_of_session, is_refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from socket import _Address

    from _typeshed import ReadableBuffer

    from tomada._client.connection import Connection
    from tomada._client.pace import Pace
    from tomada._client.pool import Pool
    from tomada._client.retry import Retry

# How long to receive replies before retrying requests that found a queue full, in seconds.
ROOM_WAIT = 1e-3

# How many batches of replies to read after the time of an attempt is over: a reply that arrived
# while this process was delayed has arrived in time.
MOST_LATE_BATCHES = 64


class Group:
    """Requests that are sent and retransmitted together."""

    __slots__ = ("charged", "cost", "exchange", "indices", "left", "rejected", "sent_at")

    def __init__(self, exchange: Exchange, indices: Sequence[int], rejected: int = 0) -> None:
        self.exchange = exchange
        self.indices = indices
        #: The number of requests that are still in flight, and not in another group.
        self.left = len(indices)
        #: The number of datagrams that had been rejected before this group.
        self.rejected = rejected
        #: When they were first sent, in seconds of the clock.
        self.sent_at = 0.0
        #: The bytes that each of them takes in a socket's buffer, and how many of them take it now:
        #: see :class:`~tomada._client.pace.Pace`.
        self.cost = 0
        self.charged = 0


class InFlight:
    """Requests in flight, each with its own attempts and deadline.

    It never waits unless :meth:`receive` is told to, so threads and event loops can drive it::

        in_flight.expect(index, data)
        in_flight.start({index: data}, monotonic())
        while in_flight.requests:
            in_flight.receive(in_flight.next_due())
            in_flight.make_due_attempts()

    Each request ends with a call of :attr:`answered` or :attr:`failed`. Subclasses send requests
    and match each reply to its request.
    """

    def __init__(self, pool: Pool, retry: Retry, address: _Address) -> None:
        self.pool = pool
        self._retry = retry
        self._address = address
        #: Limits how many requests are sent before replies arrive; ``None`` sets no limit.
        self.pace: Pace | None = None
        #: Called with the replies that arrived together, by the index of the request.
        self.answered: Callable[[dict[int, bytes]], object] = _ignore
        #: Called with the index of a request and the error that ends it.
        self.failed: Callable[[int, OSError], object] = _ignore
        #: The requests in flight by index, oldest first.
        self.requests: dict[int, ReadableBuffer] = {}
        self._groups: dict[int, Group] = {}
        # A heap of attempts: when each is due, a unique number to break ties, and its group.
        self._due: list[tuple[float, int, Group]] = []
        self._numbers = count()
        # Requests whose last attempt was not sent because a queue on the way was full. Only
        # receiving makes room: the server may be waiting for this client to read its replies.
        self._unsent: dict[int, None] = {}
        #: The connections whose handshakes are under way, each with the requests that wait for it.
        self.securing: dict[Connection, dict[int, None]] = {}
        # When the next of these handshakes has to retransmit.
        self._securing_due = math.inf
        #: The last error from an ICMP message or the user's function, since the last reply.
        self.refusal: Exception | None = None
        #: The number of datagrams that the user's function did not match to a request.
        self.rejected = 0
        #: The number of retransmissions, and of datagrams from the server that answer no request.
        self.retransmissions = 0
        self.unexpected = 0

    def expect(self, index: int, data: ReadableBuffer) -> None:
        """Prepare to recognize the reply to a request, before :meth:`start`."""

    def expect_all(self, requests: dict[int, Any]) -> None:
        """Prepare to recognize the replies to many requests."""

    def start(
        self,
        requests: dict[int, ReadableBuffer],
        started: float,
        retry: Retry | None = None,
        deadline: float | None = None,
        cost: int = 0,
    ) -> None:
        """Send requests together.

        :param retry: The options of these requests, if they differ from the client's.
        :param deadline: When they time out, if they have waited before.
        :param cost: The bytes that each of them takes of the window of `pace`.
        """
        self.requests.update(requests)
        indices = list(requests)
        exchange = Exchange(retry or self._retry, self.pool.round_trip, started, deadline=deadline)
        group = Group(exchange, indices, self.rejected)
        group.cost = cost
        self._groups.update(dict.fromkeys(indices, group))
        self._attempt(group)

    def next_due(self) -> float:
        """Return when to call :meth:`make_due_attempts`, or infinity."""
        due = self._due
        while due and not due[0][2].left:
            heapq.heappop(due)
        return min(due[0][0], self._securing_due) if due else self._securing_due

    @property
    def has_unsent(self) -> bool:
        """Whether requests wait for room to be sent: receive, then call :meth:`send_unsent`."""
        return bool(self._unsent)

    def send_unsent(self) -> None:
        """Send the requests that did not find room."""
        unsent, self._unsent = self._unsent, {}
        self._transmit([index for index in unsent if index in self.requests])

    def make_due_attempts(self) -> None:
        """Make the attempts that are due; requests without another attempt time out."""
        now = monotonic()
        until = self.next_due()
        if now < until:
            return
        for _ in range(MOST_LATE_BATCHES):
            if not self.receive(until):
                break
        if self._securing_due <= now:
            self._retransmit_handshakes(now)
        while self._due and self._due[0][0] <= now:
            _, _, group = heapq.heappop(self._due)
            self._discharge(group, group.charged)
            if group.exchange.due > now:
                continue  # only its discharge was due
            group.indices = self._left(group)
            if group.indices:
                self._attempt(group)

    def receive(self, until: float) -> bool:
        """Wait for datagrams until a given time; return whether any arrived."""
        raise NotImplementedError

    def give_up(self, index: int) -> None:
        """Forget a request, whether or not it was started, without a result."""
        if self.requests.pop(index, None) is not None:
            group = self._groups.pop(index)
            group.left -= 1
            self._discharge(group, 1)
        self._stop_expecting(index)

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is something to receive."""
        raise NotImplementedError

    def close(self) -> None:
        """Return the connections to the pool."""
        raise NotImplementedError

    def _attempt(self, group: Group) -> None:
        """Make the next attempt; if there is none left, fail the requests."""
        exchange = group.exchange
        now = monotonic()
        if exchange.attempt(now):
            self._schedule(group, exchange.due)
            if exchange.attempts == 1:
                group.sent_at = now
                if self.pace is not None:
                    self.pace.charge(group, group.left)
                self._send(group.indices)
            else:
                self.retransmissions += group.left
                self._transmit(list(group.indices))
            return
        self._unanswered(group)
        securing = {index for waiting in self.securing.values() for index in waiting}
        for index in group.indices:
            exchange.refusal = self.refusal
            exchange.rejected = self.rejected - group.rejected
            connection = self._connection_of(index)
            had_session = index not in securing and (
                connection is None or connection.dtls is None or connection.peer is not None
            )
            error = exchange.timed_out(self._address, monotonic(), had_session=had_session)
            self._fail(index, error)

    def _connection_of(self, index: int) -> Connection | None:
        """Return the connection that a request was last sent on, or for which it waits."""
        raise NotImplementedError

    def _schedule(self, group: Group, moment: float) -> None:
        heapq.heappush(self._due, (moment, next(self._numbers), group))

    def _left(self, group: Group) -> list[int]:
        """Return the requests of a group that have no reply yet, and are not in another group."""
        groups = self._groups
        return [index for index in group.indices if groups.get(index) is group]

    def _transmit(self, indices: list[int]) -> None:
        """Send as many requests, of any groups, as there is room for; keep the others for later."""
        pace, groups = self.pace, self._groups
        if pace is not None:
            charged: dict[Group, None] = {}
            for sent, index in enumerate(indices):
                group = groups[index]
                if not pace.room(group.cost):
                    self._unsent.update(dict.fromkeys(indices[sent:]))
                    del indices[sent:]
                    break
                pace.charge(group, 1)
                charged[group] = None
            # They release the room after the time of the first wait, not when the next attempt is
            # due: requests that the server never answers must not slow down the others.
            now = monotonic()
            for group in charged:
                self._schedule(group, now + group.exchange.first_wait)
        self._send(indices)

    def _discharge(self, group: Group, number: int) -> None:
        if self.pace is not None and group.charged:
            self.pace.discharge(group, number)

    def _complete(self, replies: dict[int, bytes], now: float) -> None:
        """Complete the requests of replies that arrived together.

        The caller has already removed these requests from `requests`.
        """
        pace, last = self.pace, None
        try:
            for group in map(self._groups.pop, replies):
                if group is not last:
                    last = group
                    if not group.exchange.is_complete:  # only a group's first reply gives a sample
                        group.exchange.complete(now)
                group.left -= 1
                if group.charged:
                    group.charged -= 1
                    pace.used -= group.cost  # type: ignore[union-attr]
        except BaseException:  # a signal handler's
            for index in replies:
                self._groups.pop(index, None)
            raise
        finally:
            self.answered(replies)
        if pace is not None and last is not None and last.exchange.attempts == 1:
            length = len(next(reversed(replies.values())))
            pace.answered(len(replies), length, now - last.sent_at, now)

    def _refused(self, indices: Sequence[int], error: OSError, *, was_sent: bool = True) -> None:
        """Record that attempts are lost, as :meth:`Exchange.refuse` does."""
        if is_refusal(error):
            for index in indices:
                if not self._groups[index].exchange.retries_refused:
                    self._fail(index, error)
        self.refusal = error
        if error.errno == errno.EMSGSIZE or is_end_of_session(error):
            self._send_ahead(indices, error, was_sent)

    def _send_ahead(self, indices: Sequence[int], error: OSError, was_sent: bool) -> None:
        """Make the next attempt of some requests at once, apart from the rest of their groups."""
        together: dict[Group, list[int]] = {}
        for index in indices:
            together.setdefault(self._groups[index], []).append(index)
        for group, own in together.items():
            apart = Group(copy.copy(group.exchange), own, group.rejected)
            apart.cost, apart.sent_at = group.cost, group.sent_at
            try:
                apart.exchange.refuse(error, was_sent=was_sent)
            except OSError:  # there is no further attempt
                for index in own:
                    self._fail(index, error)
                continue
            if apart.exchange.due < group.exchange.due:
                group.left -= len(own)
                self._groups.update(dict.fromkeys(own, apart))
                self._schedule(apart, apart.exchange.due)

    def _fail(self, index: int, error: OSError) -> None:
        self.give_up(index)
        own = copy.copy(error)  # several requests may share the error; each needs its own index
        own.__cause__ = error.__cause__
        advise_on_sending(own, self._address)
        self.failed(index, own)

    def _not_sent(self, index: int, error: OSError) -> None:
        if has_no_room(error):
            self._unsent[index] = None
            # Move it behind the requests that were sent: if one of those is equal, a reply is to
            # that one.
            self.requests[index] = self.requests.pop(index)
        elif is_refusal(error):
            self._refused([index], error)
        elif is_end_of_session(error):
            self._refused([index], error, was_sent=False)
        else:
            self._fail(index, error)

    def _send(self, indices: Sequence[int]) -> None:
        """Send or retransmit requests, without waiting for room."""
        raise NotImplementedError

    def _wait_for_session(self, connection: Connection, index: int) -> None:
        """Send a request as soon as the connection's handshake is complete."""
        self.securing.setdefault(connection, {})[index] = None
        self._securing_due = min(self._securing_due, monotonic() + connection.tick())

    def _secure(self, connection: Connection, until: float) -> bool:
        """Wait until a given time for the end of a handshake; return whether it has ended.

        If it has ended, send the requests that wait for it, or fail them with its error.
        """
        error: OSError | None = None
        try:
            connection.secure(until)
        except SecuringError:
            return False
        except OSError as failure:
            error = failure
        waiting = [index for index in self.securing.pop(connection) if index in self.requests]
        if error is None:
            self._send_at_last(connection, waiting)
        elif is_end_of_session(error):
            self._refused(waiting, error, was_sent=False)
        else:
            for index in waiting:
                self._not_sent(index, error)
        return True

    def _retransmit_handshakes(self, now: float) -> None:
        self._securing_due = math.inf
        for connection in list(self.securing):
            due = connection.tick()
            if not self._secure(connection, 0.0):
                self._securing_due = min(self._securing_due, now + due)

    def _send_at_last(self, connection: Connection, indices: Sequence[int]) -> None:
        """Send requests whose connection now has a session."""
        raise NotImplementedError

    def _unanswered(self, group: Group) -> None:
        """Record that no attempt of a group was answered in time."""

    def _stop_expecting(self, index: int) -> None:
        """Forget what :meth:`expect` has prepared."""


def _ignore(*_: object) -> None:
    """Drop the outcome of a request."""
