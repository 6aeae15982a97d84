"""A server's answers to probes: whether it is live, and whether it is ready."""

from __future__ import annotations

import contextlib
import select
import threading
import time
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from tomada._server.context import Context
    from tomada._server.lifecycle import Lifecycle

# A server is stuck if it has received none of the queued datagrams for this long, in seconds.
STUCK = 30.0
# Each receive increments at least one of these counters, whatever happens to the datagrams.
PROGRESS = ("receive_calls", "refused", "proxy_untrusted", "proxy_malformed", "receive_errors")

Answer: TypeAlias = tuple[int, str, str]
TEXT = "text/plain; charset=utf-8"


class Health:
    """Whether a server is live and ready, as seen by the process that started it."""

    def __init__(self, context: Context, life: Lifecycle) -> None:
        self._context, self._life = context, life
        self._lock = threading.Lock()
        self._seen = -1
        self._since = 0.0
        self._was_waiting = False

    @property
    def is_ready(self) -> bool:
        """Whether the server is running: neither starting nor draining."""
        return self._life.state == "running"

    @property
    def is_live(self) -> bool:
        """Whether the server receives the datagrams that are queued."""
        with self._lock:
            stats = self._context.counters.stats(0, 0)
            seen = sum(getattr(stats, name) for name in PROGRESS)
            now = time.monotonic()
            is_waiting = self._has_waiting()
            # The time when the first datagram was queued is unknown: count from when it was seen.
            if seen != self._seen or not (is_waiting and self._was_waiting):
                self._seen, self._since = seen, now
            self._was_waiting = is_waiting
            return now - self._since < STUCK

    def _has_waiting(self) -> bool:
        poll = select.poll()
        for sock in self._context.listeners.sockets:
            with contextlib.suppress(OSError, ValueError):  # the socket is being closed
                poll.register(sock.fileno(), select.POLLIN)
        return any(events & select.POLLIN for _, events in poll.poll(0))

    def live(self) -> Answer:
        """Answer a liveness probe."""
        if self.is_live:
            return 200, TEXT, "live\n"
        return 503, TEXT, f"no datagram was received for {STUCK:g} seconds, though some wait\n"

    def ready(self) -> Answer:
        """Answer a readiness probe."""
        state = self._life.state
        return (200, TEXT, "ready\n") if state == "running" else (503, TEXT, f"{state}\n")

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
