"""Waiting for a descriptor on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tomada._asyncio.read_watch import ReadWatch, WindowWatch


class Readiness:
    """Lets tasks wait until a descriptor is readable; each event wakes one task.

    If it ``lasts``, the loop keeps watching the descriptor after a wait, until an event occurs
    while no task is waiting. Consecutive waits, which are common, thus save the system calls that
    start and stop watching. The owner must :meth:`stop` it before the descriptor is closed.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        watch: ReadWatch | WindowWatch,
        *,
        lasts: bool,
    ) -> None:
        self._loop = loop
        self._watch = watch
        self._lasts = lasts
        self._is_watched = False
        self._has_woken = False
        self.waiters: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Wait until the descriptor is readable, has an error, or :meth:`wake` is called."""
        waiter = self._loop.create_future()
        self.waiters.append(waiter)
        self._start()
        try:
            await waiter
        except BaseException:
            if waiter.cancelled():
                with contextlib.suppress(ValueError):
                    self.waiters.remove(waiter)
                self._stop_if_idle()
            else:
                self.wake()  # this task was cancelled after its wake-up: wake another one
            raise

    def wake(self) -> bool:
        """Wake the task that has waited longest; return whether there was one."""
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._stop_if_idle()
                return True
        return False

    def stop(self) -> None:
        """Stop watching."""
        if self._is_watched:
            self._is_watched = False
            self._watch.stop()

    def _stop_if_idle(self) -> None:
        if not self._lasts and not self.waiters:
            self.stop()

    def _start(self) -> None:
        if not self._is_watched:
            self._is_watched = True
            self._has_woken = False
            self._watch.start(self._on_event)

    def _on_event(self) -> None:
        if self._has_woken and self._watch.repeats_events:
            self._has_woken = False
        elif self.wake():
            self._has_woken = True
        else:
            self.stop()
