"""The part of a sink that does not depend on the broker: its queue, its counters, its thread."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tomada import _core
from tomada._sinks.packing import check_pack

if TYPE_CHECKING:
    from collections.abc import Callable

    from tomada._core import SinkStats

Row: TypeAlias = tuple[bytes, Any, int | None]
Pack: TypeAlias = Literal["arrow"] | None
KeyOf: TypeAlias = "Literal['source'] | Callable[[bytes, Any], str | bytes] | None"

log = logging.getLogger("tomada.sinks")

# A broker that has acknowledged something in the last second is healthy. The server waits this
# long for it to make room, in seconds.
HEALTHY, PATIENCE = 1.0, 0.05
# The pause after a failure, in seconds; it doubles up to the second number.
FIRST_PAUSE, LAST_PAUSE = 0.05, 2.0


class Sink(ABC):
    """A handler for :class:`tomada.Server` that publishes each datagram.

    The server opens it in each worker before the first datagram and closes it after the last one,
    so do not pass ``takes``. It never replies.

    :param key: The key of each datagram; see the subclasses. ``tomada.key(offset, length)`` returns
        some bytes of the payload. If the function raises an exception, the datagram is dropped and
        counted.
    :param pack: ``None`` publishes a message for each datagram. ``"arrow"`` publishes record
        batches of Apache Arrow, with the columns ``data``, ``host``, ``port`` and ``timestamp_ns``
        (the extra ``tomada[arrow]``).
    :param capacity: The maximum number of datagrams that each worker holds. Beyond that, new ones
        are dropped and counted.
    :param linger: How long closing waits for the broker to acknowledge everything, in seconds.
        After that, the rest is dropped and counted.
    """

    #: A server calls a sink with lists of ``(data, address, timestamp_ns)``.
    takes = "timed"

    def __init__(self, key: KeyOf, pack: Pack, capacity: int, linger: float) -> None:
        check_pack(pack)
        if not (key in (None, "source") or callable(key)):
            raise TypeError(f"key must be None, 'source' or a function, not {key!r}")
        if not isinstance(capacity, int):
            raise TypeError(f"capacity must be an int, not {capacity!r}")
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1 datagram, not {capacity}")
        if not linger >= 0:
            raise ValueError(f"linger must be at least 0 seconds, not {linger!r}")
        self._key, self._pack, self._capacity, self._linger = key, pack, capacity, linger
        self._counters = _core.SinkCounters()
        self._forget()

    def _forget(self) -> None:
        """Reset the state, as in a process that has not used the sink yet."""
        self._owner = os.getpid()
        self._turn = threading.RLock()  # held while the thread starts or ends
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._progress_at = float("-inf")
        self._opened = 0
        self._held = 0
        self._batches: deque[list[Row]] = deque()
        self._thread: threading.Thread | None = None
        self._deadline: float | None = None
        self._complained_at = float("-inf")

    def open(self) -> None:
        """Start publishing in this process, and retry until the broker is available."""
        if self._owner != os.getpid():
            self._forget()  # this is a fork, and the state belongs to the parent
        with self._turn, self._lock:
            self._opened += 1
            if self._opened > 1:  # another thread of the server has opened it
                return
            self._deadline = None
            self._thread = threading.Thread(
                target=self._run, name=f"tomada.{type(self).__name__}", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """Publish the remaining datagrams for up to ``linger`` seconds; drop and count the rest."""
        with self._turn:
            with self._lock:
                self._opened = max(self._opened - 1, 0)
                thread = self._thread
                if self._opened or thread is None:
                    return
                self._deadline = time.monotonic() + self._linger
                self._thread = None
                self._room.notify_all()
            self._wake()
            thread.join()

    def stats(self) -> SinkStats:
        """Return the counters, summed over all workers."""
        return self._counters.stats()

    def __call__(self, batch: list[Row]) -> None:
        """Accept the datagrams of one receive.

        If the sink is full, but the broker has just acknowledged something, this waits a moment for
        room while further datagrams wait in the kernel's buffer.
        """
        size = len(batch)
        with self._lock:
            end = min(self._progress_at + HEALTHY, time.monotonic() + PATIENCE)
            while self._held + size > self._capacity and not self._is_closing:
                if not self._room.wait(max(end - time.monotonic(), 0.0)):
                    break
            room = max(self._capacity - self._held, 0)
            if size > room:
                # Count them as received first, so that dropped never exceeds received.
                self._counters.add(received=size - room)
                self._counters.add(dropped=size - room)
                batch, size = batch[:room], room
            if not size:
                return
            self._counters.add(received=size)
            self._held += size
            self._batches.append(batch)
            is_first = len(self._batches) == 1
        if is_first:
            self._wake()

    def _take(self, most: int) -> list[Row]:
        """Take the oldest datagrams: about as many as requested, without splitting batches."""
        rows: list[Row] = []
        with self._lock:
            while self._batches and len(rows) < most:
                rows += self._batches.popleft()
        return rows

    def _published(self, datagrams: int) -> None:
        self._counters.add(published=datagrams)
        with self._lock:
            self._held -= datagrams
            self._progress_at = time.monotonic()
            self._room.notify()

    def _dropped(self, datagrams: int) -> None:
        self._counters.add(dropped=datagrams)
        with self._lock:
            self._held -= datagrams

    def _refuse(self, error: Exception) -> None:
        """Drop a datagram whose key function raised an exception."""
        self._complain(f"the key function has failed: {error!r}")
        self._dropped(1)

    @property
    def _is_closing(self) -> bool:
        return self._deadline is not None

    @property
    def _time_left(self) -> float:
        """The number of seconds until the remaining datagrams are dropped."""
        deadline = self._deadline
        return float("inf") if deadline is None else deadline - time.monotonic()

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                self._publish()
            except Exception:
                log.exception("%s: publishing has failed", type(self).__name__)
            # The broker's client no longer holds any of these datagrams.
            with self._lock:
                self._batches.clear()
                left, self._held = self._held, 0
            if left:
                self._counters.add(dropped=left)
                log.error("%s: dropped %d datagrams", type(self).__name__, left)
            with self._lock:
                if self._room.wait_for(lambda: self._is_closing, pause):
                    return
            pause = min(2 * pause, LAST_PAUSE)

    def _complain(self, why: object) -> None:
        """Log why publishing fails, at most once every few seconds."""
        now = time.monotonic()
        if now >= self._complained_at + 5.0:
            self._complained_at = now
            log.warning("%s: %s; %d datagrams are waiting", type(self).__name__, why, self._held)

    def _attach(
        self, takes: Any, init: Callable[[], object] | None, exit: Callable[[], object] | None
    ) -> tuple[Any, Callable[[], object], Callable[[], object]]:
        """Return the server's ``takes``, ``init`` and ``exit``, which open and close this sink."""
        if takes not in ("data", self.takes):
            raise ValueError(f"a sink takes {self.takes!r}, not {takes!r}: omit takes")

        def start() -> None:
            self.open()
            try:
                if init is not None:
                    init()
            except BaseException:
                self.close()
                raise

        def end() -> None:
            try:
                if exit is not None:
                    exit()
            finally:
                self.close()

        return self.takes, start, end

    @abstractmethod
    def _publish(self) -> None:
        """Publish until the sink is closing and either nothing or no time is left."""

    @abstractmethod
    def _wake(self) -> None:
        """Wake the publishing thread: there are datagrams, or the sink is closing."""


def without_password(url: str) -> str:
    """Return a URL that is safe to log: without the user, password or token in it."""
    return re.sub(r"(?<=//)[^/?#]*@", "", url)
