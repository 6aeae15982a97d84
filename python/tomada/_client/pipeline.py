"""Drives many requests in flight from a thread that waits for them."""

from __future__ import annotations

from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any

from tomada._client.in_flight import ROOM_WAIT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed import ReadableBuffer

    from tomada._client.in_flight import InFlight


class Pipeline:
    """Keeps up to a window of requests in flight."""

    def __init__(self, in_flight: InFlight, *, is_raising: bool) -> None:
        self._in_flight = in_flight
        self._is_raising = is_raising
        self._results: list[Any] = []
        in_flight.answered = self._answer
        in_flight.failed = self._fail

    def run(self, requests: Iterable[ReadableBuffer], window: int) -> list[Any]:
        """Send all requests; return the reply or exception of each, in the same order."""
        in_flight = self._in_flight
        source = iter(requests)
        try:
            while True:
                fresh = list(islice(source, window - len(in_flight.requests)))
                if fresh:
                    self._start(fresh)
                elif not in_flight.requests:
                    return self._results
                if in_flight.requests:
                    self._await()
        finally:
            in_flight.close()

    def _start(self, requests: list[ReadableBuffer]) -> None:
        numbered = dict(enumerate(requests, len(self._results)))
        self._results += [None] * len(requests)
        self._in_flight.expect_all(numbered)
        self._in_flight.start(numbered, monotonic())

    def _await(self) -> None:
        """Receive replies until the next attempt is due, then make it."""
        in_flight = self._in_flight
        until = in_flight.next_due()
        if in_flight.has_unsent:
            in_flight.receive(min(until, monotonic() + ROOM_WAIT))
            in_flight.send_unsent()
        else:
            in_flight.receive(until)
        in_flight.make_due_attempts()

    def _answer(self, replies: dict[int, bytes]) -> None:
        results = self._results
        for index, reply in replies.items():
            results[index] = reply

    def _fail(self, index: int, error: OSError) -> None:
        if self._is_raising or self._in_flight.pool.is_closed:
            error.index = index  # type: ignore[attr-defined]
            raise error
        self._results[index] = error
