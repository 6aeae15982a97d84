"""Waiting for a descriptor on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque


class Readiness:
    """Lets tasks wait until a descriptor is readable; one event wakes one task.

    One that ``lasts`` has the loop watch the descriptor on after a wait, until an event that nobody
    waits for: who waits in a row, as most do, saves the system calls that begin and end the watch.
    Its owner must :meth:`stop` it before the descriptor is closed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, *, lasts: bool) -> None:
        self._loop = loop
        self._fd = fd
        self._lasts = lasts
        self._is_watched = False
        # A selector's loop asks for events before it runs what the last ones woke. So the event
        # after a wake-up is of the same datagram, which by then is taken.
        self._repeats_events = isinstance(loop, asyncio.SelectorEventLoop)
        self._has_woken = False
        self.waiters: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Wait until the descriptor is readable or has an error, or :meth:`wake` is called."""
        waiter = self._loop.create_future()
        self.waiters.append(waiter)
        self._watch()
        try:
            await waiter
        except BaseException:
            if waiter.cancelled():
                with contextlib.suppress(ValueError):
                    self.waiters.remove(waiter)
                self._stop_if_idle()
            else:
                self.wake()  # cancelled on the way to what it was woken for: that is another's now
            raise

    def wake(self) -> bool:
        """Wake the task that has waited longest. Return whether there was one."""
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._stop_if_idle()
                return True
        return False

    def stop(self) -> None:
        """End the watch."""
        if self._is_watched:
            self._is_watched = False
            self._loop.remove_reader(self._fd)

    def _stop_if_idle(self) -> None:
        if not self._lasts and not self.waiters:
            self.stop()

    def _watch(self) -> None:
        if not self._is_watched:
            self._is_watched = True
            self._has_woken = False
            self._loop.add_reader(self._fd, self._on_event)

    def _on_event(self) -> None:
        if self._has_woken and self._repeats_events:
            self._has_woken = False
        elif self.wake():
            self._has_woken = True
        else:
            self.stop()
