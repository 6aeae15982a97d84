"""Drives the requests of many tasks on an event loop."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from tomada._asyncio.read_watch import ReadWatch
from tomada._client.in_flight import ROOM_WAIT

if TYPE_CHECKING:
    from tomada._client.in_flight import InFlight
    from tomada._client.pace import Pace
    from tomada._client.retry import Retry


class Outcome(Protocol):
    """Receives a request's result: a future, or a part of a ``request_many`` call."""

    def done(self) -> bool:
        """Return whether the result is no longer wanted."""
        ...

    def set_result(self, result: bytes, /) -> None:
        """Take the reply."""
        ...

    def set_exception(self, exception: Exception, /) -> None:
        """Take the error that ended the request."""
        ...


class _Batch:
    """Requests from one iteration of the loop that wait to be sent."""

    __slots__ = ("deadline", "longest", "requests", "retry")

    def __init__(self, retry: Retry, deadline: float | None = None) -> None:
        self.retry = retry
        self.requests: dict[int, bytes] = {}
        #: The length of the longest request in bytes.
        self.longest = 0
        #: When they time out; ``None`` until the first flush.
        self.deadline = deadline

    def take(self, number: int, living: dict[int, Any]) -> dict[int, Any]:
        """Remove up to ``number`` requests; return those that were not cancelled."""
        requests = self.requests
        if len(requests) <= number:
            self.requests = {}
        else:
            first = list(requests)[:number]
            requests = {index: requests.pop(index) for index in first}
        return {index: data for index, data in requests.items() if index in living}


class TaskRequests:
    """Sends the requests of a loop's tasks together, at the end of each iteration of the loop.

    A request waits while too many are in flight, or while it might not fit into a socket's buffer;
    the oldest is sent first. One timer serves all requests.

    :param pace: Limits the requests in flight to what sockets' buffers hold; ``None`` sets no such
        limit.
    :param most: The maximum number of requests in flight.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        in_flight: InFlight,
        retry: Retry,
        pace: Pace | None,
        most: int,
    ) -> None:
        self.loop = loop
        #: The requests that were sent.
        self.in_flight = in_flight
        self._retry = retry
        self._pace = pace
        self._most = most
        #: The indices of further requests.
        self.numbers = count()
        self._outcomes: dict[int, Outcome] = {}
        self._batches: deque[_Batch] = deque()
        # A heap of the batches' deadlines, because a later batch may have an earlier deadline.
        # Unique numbers break ties.
        self._deadlines: list[tuple[float, int, _Batch]] = []
        # The batch of this iteration, unless it already has a deadline.
        self._newest = _Batch(retry, 0.0)
        self._is_flush_due = False
        #: Whether :meth:`close` was called, and its error.
        self.is_closed = False
        self._end: OSError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = math.inf
        #: The number of requests with each outcome.
        self.replies = self.timeouts = self.errors = self.cancelled = 0
        try:
            self._watch = ReadWatch(loop, in_flight.fileno())
            self._watch.start(self._on_readable)
        except BaseException:
            in_flight.close()
            raise
        in_flight.pace = pace
        in_flight.answered = self._answer
        in_flight.failed = self._fail

    async def request(self, data: Any, retry: Retry | None = None) -> bytes:
        """Send a request and return its reply.

        :param data: A bytes-like object; the caller may change it afterwards.
        """
        index = next(self.numbers)
        reply: asyncio.Future[bytes] = self.loop.create_future()
        self.submit(index, data, reply, retry)
        try:
            return await reply
        finally:
            if index in self._outcomes:
                self.cancel(index)

    @property
    def under_way(self) -> int:
        """The number of requests that are in flight, or wait to be sent."""
        return len(self._outcomes)

    def submit(self, index: int, data: Any, outcome: Outcome, retry: Retry | None = None) -> None:
        """Send a request: at once if it is the only one, or at the end of the loop's iteration.

        :param data: A bytes-like object; the caller may change it afterwards.
        :raises TypeError: ``data`` is not a bytes-like object.
        :raises ValueError: Another request under way has the same key.
        :raises OSError: :meth:`close` was called.
        """
        if self._end is not None:
            raise OSError(*self._end.args)
        if type(data) is not bytes:
            data = bytes(memoryview(data))
        self.in_flight.expect(index, data)
        self._outcomes[index] = outcome
        batch = self._newest
        if batch.deadline is not None or (retry is not None and retry is not batch.retry):
            batch = self._newest = _Batch(retry or self._retry)
            self._batches.append(batch)
        batch.requests[index] = data
        if len(data) > batch.longest:  # noqa: PLR1730 - faster than max()
            batch.longest = len(data)
        if len(self._outcomes) == 1:
            self._flush()
        elif not self._is_flush_due:
            self._flush_soon()

    def cancel(self, index: int) -> None:
        """Forget a request, unless it has ended."""
        if self._outcomes.pop(index, None) is not None:
            self.cancelled += 1
            self.in_flight.give_up(index)
            if self._batches:
                self._flush_soon()

    def close(self, error: OSError) -> None:
        """Fail all requests, and stop. Closing again does nothing."""
        if self.is_closed:
            return
        self.is_closed = True
        self._end = error
        self._watch.stop()
        if self._timer is not None:
            self._timer.cancel()
        try:
            self._fail_all(error)
        finally:  # even if the loop is closed
            self.in_flight.close()

    def _flush_soon(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            self.loop.call_soon(self._flush_if_due)

    def _flush_if_due(self) -> None:
        if self._is_flush_due and not self.is_closed:
            self._flush()

    def _flush(self) -> None:
        """Send the requests that there is room for."""
        self._is_flush_due = False
        in_flight = self.in_flight
        now = monotonic()
        for batch in reversed(self._batches):
            if batch.deadline is not None:
                break
            batch.deadline = now + batch.retry.timeout
            heapq.heappush(self._deadlines, (batch.deadline, next(self.numbers), batch))
        try:
            if in_flight.has_unsent:
                in_flight.send_unsent()
            while self._batches and not in_flight.has_unsent:
                batch = self._batches[0]
                cost, room = 0, self._most - len(in_flight.requests)
                if self._pace is not None:
                    cost = self._pace.cost(batch.longest)
                    room = min(room, self._pace.room(cost))
                if room <= 0:
                    break
                self._start(batch, room, now, cost)
        except OSError as error:
            self._fail_all(error)
        self._set_timer(now)

    def _start(self, batch: _Batch, number: int, now: float, cost: int = 0) -> None:
        """Start requests of a batch; they time out if their deadline has passed."""
        requests = batch.take(number, self._outcomes)
        while self._batches and not self._batches[0].requests:
            self._batches.popleft()
        if requests:
            self.in_flight.start(requests, now, batch.retry, batch.deadline, cost)

    def _set_timer(self, now: float) -> None:
        due = self.in_flight.next_due()
        deadlines = self._deadlines
        while deadlines and not deadlines[0][2].requests:
            heapq.heappop(deadlines)
        if deadlines:
            due = min(due, deadlines[0][0])
        if self.in_flight.has_unsent:
            due = min(due, now + ROOM_WAIT)
        if due < self._timer_due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_due = due
            self._timer = self.loop.call_later(max(due - now, 0.0), self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_due = None, math.inf
        try:
            self.in_flight.make_due_attempts()
            now = monotonic()
            while self._deadlines and self._deadlines[0][0] <= now:
                batch = heapq.heappop(self._deadlines)[2]
                self._start(batch, len(batch.requests), now)
        except OSError as error:
            self._fail_all(error)
        finally:  # whatever the user's function or a signal handler raises
            self._flush()

    def _on_readable(self) -> None:
        if self._is_flush_due:
            self._flush()  # the server works on these while the replies are processed
        try:
            self.in_flight.receive(0.0)
        except OSError as error:
            self._fail_all(error)
        if self._batches or self.in_flight.has_unsent:
            self._flush()
        elif self.in_flight.next_due() < self._timer_due:
            self._set_timer(monotonic())  # the end of a session makes the next attempt due

    def _answer(self, replies: dict[int, bytes]) -> None:
        outcomes = self._outcomes
        outcome, reply = None, b""
        try:
            for index, reply in replies.items():
                outcome = outcomes.pop(index, None)
                if outcome is None:
                    continue  # the client was closed meanwhile
                if outcome.done():
                    self.cancelled += 1  # its task was cancelled, but has not run yet
                else:
                    outcome.set_result(reply)
                    self.replies += 1
        except BaseException:  # a signal handler's: no request must wait for ever
            if outcome is not None and not outcome.done():
                outcome.set_result(reply)
                self.replies += 1
            self._answer({index: replies[index] for index in replies if index in outcomes})
            raise

    def _fail(self, index: int, error: OSError) -> None:
        outcome = self._outcomes.pop(index)
        if outcome.done():
            self.cancelled += 1
            return
        if isinstance(error, TimeoutError):
            self.timeouts += 1
        else:
            self.errors += 1
        outcome.set_exception(error)

    def _fail_all(self, error: OSError) -> None:
        """Fail all requests with an error that is not about a single one."""
        self._batches.clear()
        self._deadlines.clear()
        self._newest = _Batch(self._retry, 0.0)
        for index in list(self._outcomes):
            self.in_flight.give_up(index)
            self._fail(index, OSError(*error.args))
