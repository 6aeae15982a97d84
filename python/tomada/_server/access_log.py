"""The access log: one in N datagrams, with its peer, its size, and what the handler did."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from tomada._address import format_address

logger = logging.getLogger("tomada.access")


def sampled(handler: Callable[..., Any], takes: str, every: int) -> Callable[..., Any]:
    """Wrap a handler so that it logs one in `every` datagrams.

    A call that is not logged costs one extra decrement.
    """
    left = every
    if takes in ("batch", "timed"):

        def handle_batch(batch: Any) -> Any:
            nonlocal left
            left -= len(batch)
            if left > 0:
                return handler(batch)
            left = every
            size = sum(len(row[0]) for row in batch)
            return _logged(handler, (batch,), batch[0][1], size, len(batch))

        return handle_batch
    if takes == "datagram":

        def handle_datagram(datagram: Any) -> Any:
            nonlocal left
            left -= 1
            if left > 0:
                return handler(datagram)
            left = every
            return _logged(handler, (datagram,), datagram.address, len(datagram.data))

        return handle_datagram

    def handle(data: Any, address: Any) -> Any:
        nonlocal left
        left -= 1
        if left > 0:
            return handler(data, address)
        left = every
        return _logged(handler, (data, address), address, len(data))

    return handle


def _logged(
    handler: Callable[..., Any],
    arguments: Sequence[Any],
    address: Any,
    size: int,
    datagrams: int | None = None,
) -> Any:
    line = _Line(format_address(address), size, datagrams)
    try:
        reply = handler(*arguments)
    except BaseException as error:
        line.failed(error)
        raise
    if inspect.isawaitable(reply):
        return _awaited(reply, line)
    line.returned(reply)
    return reply


async def _awaited(reply: Any, line: _Line) -> Any:
    try:
        result = await reply
    except BaseException as error:
        line.failed(error)
        raise
    line.returned(result)
    return result


class _Line:
    """The log line of one call, whose duration counts from the creation of this object."""

    def __init__(self, peer: str, size: int, datagrams: int | None) -> None:
        self._peer, self._size, self._datagrams = peer, size, datagrams
        self._started = time.perf_counter()

    def failed(self, error: BaseException) -> None:
        """Log that the handler raised an exception."""
        self._log(f"failed: {type(error).__name__}")

    def returned(self, reply: Any) -> None:
        """Log what the handler returned."""
        if reply is None:
            self._log("no reply")
        elif self._datagrams is None and isinstance(reply, bytes | bytearray | memoryview):
            self._log(f"replied {len(reply)} bytes")
        elif self._datagrams is not None and isinstance(reply, list | tuple):
            self._log(f"{sum(one is not None for one in reply)} replies")
        else:
            self._log(f"returned {type(reply).__name__}")

    def _log(self, outcome: str) -> None:
        seconds = time.perf_counter() - self._started
        fields = {
            "peer": self._peer,
            "bytes": self._size,
            "seconds": round(seconds, 9),
            "outcome": outcome,
        }
        of_batch = ""
        if self._datagrams is not None:
            fields["datagrams"] = self._datagrams
            of_batch = f" in a batch of {self._datagrams}"
        logger.info(
            "%s %d bytes%s, %s, %.0f µs",
            self._peer,
            self._size,
            of_batch,
            outcome,
            seconds * 1e6,
            extra={"fields": fields},
        )
