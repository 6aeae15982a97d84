"""Messages to systemd, or another service manager: ``sd_notify(3)``."""

from __future__ import annotations

import contextlib
import os
import socket as _std
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tomada._address import format_address

if TYPE_CHECKING:
    from typing import Any

    from tomada._server.health import Health
    from tomada._server.lifecycle import Lifecycle
    from tomada.server import Server

# How often the status is updated, in seconds.
STATUS = 10.0


class Manager:
    """Notifies the service manager. Does nothing if there is none (``NOTIFY_SOCKET``).

    Sends ``READY``, ``RELOADING``, ``STOPPING`` and ``STATUS``. If the manager has a watchdog
    (``WATCHDOG_USEC``), also sends ``WATCHDOG`` twice per interval, as long as the server is live.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._path = environment.get("NOTIFY_SOCKET", "")
        self._socket: _std.socket | None = None
        self._watchdog = _watchdog(environment)
        self._pinged = self._told = -STATUS
        self._last: tuple[float, int, int] | None = None
        self._replacements = 0
        self._has_failed = False
        if self._path[:1] in ("/", "@"):  # vsock is not supported
            self._socket = _std.socket(_std.AF_UNIX, _std.SOCK_DGRAM)
            self._socket.setblocking(False)

    def ready(self, server: Server) -> None:
        """Report that the server has started."""
        if self._socket is not None:
            self._tell("READY=1", f"STATUS={self._status(server)}")

    def reloading(self) -> None:
        """Report that the workers are being replaced. A signal handler may call this."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={microseconds}")

    def stopping(self) -> None:
        """Report that the server is draining."""
        self._tell("STOPPING=1", "STATUS=handling the queued datagrams")

    def tick(self, server: Server, health: Health, life: Lifecycle) -> float | None:
        """Send the messages that are due; return the number of seconds until the next one."""
        if self._socket is None:
            return None
        now = time.monotonic()
        if life.replacements != self._replacements:
            self._replacements = life.replacements
            self._has_failed = life.has_failed_to_replace
            self.ready(server)
        if self._watchdog is not None and self._pinged + self._watchdog <= now:
            self._pinged = now
            if health.is_live:
                self._tell("WATCHDOG=1")
        if self._told + STATUS <= now:
            self._told = now
            self._tell(f"STATUS={self._status(server)}")
        due = self._told + STATUS
        if self._watchdog is not None:
            due = min(due, self._pinged + self._watchdog)
        return due - now

    def _status(self, server: Server) -> str:
        stats, now = server.stats(), time.monotonic()
        status = f"serving {format_address(server.address)}"
        if self._last is not None:
            then, received, sent = self._last
            took = max(now - then, 1e-3)
            status += (
                f": {(stats.received - received) / took:,.0f} received and "
                f"{(stats.sent - sent) / took:,.0f} sent per second"
            )
        self._last = now, stats.received, stats.sent
        if self._has_failed:
            status += "; workers could not be replaced: see the log"
        return status

    def _tell(self, *lines: str) -> None:
        if self._socket is not None:
            path: Any = "\0" + self._path[1:] if self._path[0] == "@" else self._path
            with contextlib.suppress(OSError):  # the manager is gone, or its queue is full
                self._socket.sendto("\n".join(lines).encode(), path)

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()


def _watchdog(environment: Mapping[str, str]) -> float | None:
    """Return the interval between watchdog messages, in seconds; None if they are not needed."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    pid = environment.get("WATCHDOG_PID", str(os.getpid()))
    if not (microseconds.isdecimal() and int(microseconds)) or pid != str(os.getpid()):
        return None
    return int(microseconds) / 2e6
