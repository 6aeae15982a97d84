"""The status line of ``tomada serve`` on a terminal, and its summary at the end."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tomada._cli.logs import ERASE

if TYPE_CHECKING:
    from tomada import Server

# Counters that an operator wants to see only if they are not zero.
TROUBLES = (
    "handler_errors",
    "cancelled",
    "send_errors",
    "receive_errors",
    "kernel_drops",
    "filter_drops",
    "refused",
    "proxy_untrusted",
    "proxy_malformed",
    "truncated",
    "restarts",
)


# The same for the counters of a sink, with the texts to show.
OF_SINK = {"dropped": "dropped by the sink", "in_flight": "not acknowledged yet"}


def counters(server: Server) -> dict[str, int]:
    """Return a server's numeric counters by name, and those of its sink as ``sink_…``."""
    found = _numbers(server.stats())
    if server.sink is not None:
        found |= {f"sink_{name}": value for name, value in _numbers(server.sink.stats()).items()}
    return found


def _numbers(stats: Any) -> dict[str, int]:
    names = [name for name in dir(stats) if not name.startswith("_")]
    values = {name: getattr(stats, name) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, int)}


def troubles(stats: Any) -> Iterator[str]:
    """Describe what was dropped, refused or failed."""
    for name in TROUBLES:
        count = getattr(stats, name, 0)
        if count:
            yield f"{count:,} {name.replace('_', ' ')}"


def of_sink(server: Server) -> Iterator[str]:
    """Describe what happened to the datagrams that a sink received."""
    if server.sink is not None:
        stats = server.sink.stats()
        yield f"{stats.published:,} published"
        for name, text in OF_SINK.items():
            if count := getattr(stats, name):
                yield f"{count:,} {text}"


def summary(server: Server, seconds: float) -> str:
    """Summarize what a server has done."""
    stats = server.stats()
    parts = [f"{stats.received:,} received", f"{stats.sent:,} sent"]
    parts += [*of_sink(server), *troubles(stats)]
    if stats.received:
        each = stats.handler_time / stats.received * 1e6
        parts.append(f"{each:,.1f} µs in the handler per datagram")
    return f"{', '.join(parts)}, in {_duration(seconds)}"


def _duration(seconds: float) -> str:
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.1f} s"
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min {int(seconds) % 60} s"


class StatusLine:
    """A line on the terminal that shows once per second what a server is doing.

    Any process that writes something else to the terminal erases the line first (:data:`ERASE`);
    the line is then drawn again below.
    """

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, server: Any) -> None:
        """Show the line."""
        self._thread = threading.Thread(target=self._show, args=(server,), daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Erase the line."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._put("")

    def _show(self, server: Any) -> None:
        before, then = server.stats(), time.monotonic()
        while not self._ended.wait(1.0):
            now, at = server.stats(), time.monotonic()
            took = at - then
            busy = (now.handler_time - before.handler_time) / took
            parts = [
                f"received {(now.received - before.received) / took:,.0f}/s",
                f"sent {(now.sent - before.sent) / took:,.0f}/s",
                f"total {now.received:,}",
                f"handler {busy:.0%}",
                *of_sink(server),
                *troubles(now),
            ]
            line = "  ".join(parts)
            # A longer line would wrap, and only its last row would be erased.
            self._put(line[: shutil.get_terminal_size().columns - 1])
            before, then = now, at

    @staticmethod
    def _put(line: str) -> None:
        print(f"{ERASE}{line}", end="", file=sys.stderr, flush=True)
