"""The events that an endpoint's transport reports: errors, room to write, and its end."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tomada._peer_errors import PeerErrors


class Events(asyncio.DatagramProtocol):
    """Receives the transport's events for an endpoint."""

    def __init__(self) -> None:
        self.errors: deque[Exception] = deque(maxlen=64)  # bounded: there may be no reader
        self.heard = 0
        self.is_paused = False
        self.is_lost = False
        # Set only for an endpoint without a peer.
        self.peer_errors: PeerErrors | None = None
        self.wake: Callable[[], object] = bool
        #: Creates a future on the running loop.
        self.create_future: Callable[[], asyncio.Future[None]] = _create_future
        self._waiters: list[asyncio.Future[None]] = []

    def error_received(self, exc: Exception) -> None:
        if self.peer_errors is not None:
            self.peer_errors.note(exc)
            return
        self.errors.append(exc)
        self.heard += 1
        self.wake()

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.errors.append(exc)
        self.is_paused = False
        self.is_lost = True
        self._tell()

    def raise_first(self) -> None:
        """Raise the oldest error."""
        if self.errors:
            raise self.errors.popleft()

    def raise_own(self) -> None:
        """Raise the last error if the last send caused it."""
        # A refusal is about an earlier datagram: the kernel reports it to the next send.
        if self.errors and not isinstance(self.errors[-1], ConnectionRefusedError):
            raise self.errors.pop()

    async def change(self) -> None:
        """Wait until ``is_paused`` or ``is_lost`` changes."""
        waiter = self.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)

    def _tell(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


def _create_future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()
