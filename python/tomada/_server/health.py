"""A server's answers to probes: whether it is live, and whether it is ready."""

from __future__ import annotations

import contextlib
import select
import threading
import time
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from tomada._server.context import Context
    from tomada._server.lifecycle import Lifecycle

# A server is stuck if it has received none of the queued datagrams for this long, in seconds.
STUCK = 30.0

Answer: TypeAlias = tuple[int, str, str]
TEXT = "text/plain; charset=utf-8"


class Health:
    """Whether a server is live and ready, as seen by the process that started it."""

    def __init__(self, context: Context, life: Lifecycle) -> None:
        self._context, self._life = context, life
        self._lock = threading.Lock()
        self._queues = [_Queue() for _ in context.listeners.sockets]

    @property
    def is_ready(self) -> bool:
        """Whether the server is running, neither starting nor draining, and has a live worker."""
        return self._life.state == "running" and bool(self._life.live_workers)

    @property
    def is_live(self) -> bool:
        """Whether the server receives the datagrams that are queued, on each of its sockets.

        A socket whose worker has died, and may not be able to start again, does not count while
        other workers run: a restart of the server would stop them.
        """
        live = self._life.live_workers
        with self._lock:
            context, now = self._context, time.monotonic()
            for number, queue in enumerate(self._queues):
                workers = range(number, context.settings.cores, len(self._queues))
                progress = sum(map(context.counters.progress, workers))
                queue.look(now, progress, context.listeners.of(number))
                if live and live.isdisjoint(workers):
                    queue.since = now
            return all(now - queue.since < STUCK for queue in self._queues)

    def live(self) -> Answer:
        """Answer a liveness probe."""
        if self.is_live:
            return 200, TEXT, "live\n"
        return 503, TEXT, f"no datagram was received for {STUCK:g} seconds, though some wait\n"

    def ready(self) -> Answer:
        """Answer a readiness probe."""
        if self.is_ready:
            return 200, TEXT, "ready\n"
        state = self._life.state
        return 503, TEXT, "no worker is running\n" if state == "running" else f"{state}\n"

    def metrics(self) -> Answer:
        """Answer a request for the server's metrics."""
        try:
            from tomada._server.collector import exposition  # noqa: PLC0415 - needs an extra
        except ImportError:
            return 501, TEXT, "install tomada[metrics]\n"
        return 200, "text/plain; version=0.0.4; charset=utf-8", exposition(self._context.server)

    def routes(self) -> dict[str, Callable[[], Answer]]:
        """Return the function that answers each path."""
        return {"/live": self.live, "/ready": self.ready, "/metrics": self.metrics}


class _Queue:
    """The queue of one socket, and since when no worker has received from it."""

    def __init__(self) -> None:
        self._progress = -1
        self._was_waiting = False
        self.since = 0.0

    def look(self, now: float, progress: int, sock: Any) -> None:
        """Compare the progress of the socket's workers with what it was at the last look."""
        is_waiting = _has_waiting(sock)
        # The time when the first datagram was queued is unknown: count from when it was seen.
        if progress != self._progress or not (is_waiting and self._was_waiting):
            self._progress, self.since = progress, now
        self._was_waiting = is_waiting


def _has_waiting(sock: Any) -> bool:
    poll = select.poll()
    with contextlib.suppress(OSError, ValueError):  # the socket is being closed
        poll.register(sock.fileno(), select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))
