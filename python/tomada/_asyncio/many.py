"""The requests of one ``request_many`` call: each one that ends starts the next."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from tomada._asyncio.requests import TaskRequests


# Marks the end of the iterable of requests.
_END = object()


class Many:
    """Keeps up to ``window`` requests under way, without a task for each.

    The iterable is always read in the context of the call, even when a reply makes room for the
    next request.
    """

    def __init__(
        self, requests: TaskRequests, source: Iterable[Any], window: int, *, is_raising: bool
    ) -> None:
        self._requests = requests
        self._source = iter(source)
        self._context = contextvars.copy_context()
        self._window = window
        self._is_raising = is_raising
        self._results: list[Any] = []
        # The indices of the requests that are under way.
        self._under_way: set[int] = set()
        self._is_exhausted = False
        self._is_advancing = False
        self._end: asyncio.Future[None] = requests.loop.create_future()
        # The exception that run() raises. A future rejects some, such as StopIteration.
        self._failure: BaseException | None = None

    async def run(self) -> list[Any]:
        """Send all requests; return the reply or exception of each, in the same order."""
        try:
            self._advance()
            await self._end
            if self._failure is not None:
                raise self._failure
        finally:
            for index in list(self._under_way):
                self._requests.cancel(index)
        return self._results

    def settle(self, index: int, position: int, result: bytes | Exception) -> None:
        """Take the result of a request, and start the next one."""
        self._under_way.discard(index)
        if isinstance(result, Exception) and self._is_raising:
            result.index = position  # type: ignore[attr-defined]
            self._fail(result)
            return
        self._results[position] = result
        self._advance()

    def _advance(self) -> None:
        """Start requests until the window is full."""
        if self._is_advancing:
            return  # a request failed at once: the outer call continues, without recursion
        self._is_advancing = True
        try:
            while not self._end.done() and len(self._under_way) < self._window:
                if not self._start_next():
                    break
        except BaseException as error:  # noqa: BLE001 - from the iterable, or about a request
            # run() raises it. If it reached the loop's callback, it would end other requests too.
            self._fail(error)
        finally:
            self._is_advancing = False
        if self._is_exhausted and not self._under_way and not self._end.done():
            self._end.set_result(None)

    def _start_next(self) -> bool:
        data = self._context.run(next, self._source, _END)
        if data is _END:
            self._is_exhausted = True
            return False
        requests = self._requests
        index = next(requests.numbers)
        part = _Part(self, index, len(self._results))
        self._results.append(None)
        self._under_way.add(index)
        try:
            requests.submit(index, data, part)
        except BaseException:
            self._under_way.discard(index)
            raise
        return True

    def _fail(self, error: BaseException) -> None:
        if not self._end.done():
            self._failure = error
            self._end.set_result(None)


class _Part:
    """Takes the place of a future, and passes its result to the call."""

    __slots__ = ("_index", "_many", "_position")

    def __init__(self, many: Many, index: int, position: int) -> None:
        self._many = many
        self._index = index
        self._position = position

    @staticmethod
    def done() -> bool:
        """Return whether the result is no longer wanted."""
        return False

    def set_result(self, result: bytes) -> None:
        """Take the reply."""
        self._many.settle(self._index, self._position, result)

    def set_exception(self, exception: Exception) -> None:
        """Take the error that ended the request."""
        self._many.settle(self._index, self._position, exception)
