"""A server's log messages: under the logger ``tomada``, at a limited rate."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from socket import SO_RCVBUF, SOL_SOCKET
from typing import Any

from tomada._address import format_address

logger = logging.getLogger("tomada")

# The minimum interval between messages of one kind: a flood of bad datagrams must not flood the
# log.
SECONDS_BETWEEN = 1.0

# The likely reasons why datagrams do not reach the handler. Each is logged once.
REFUSALS = {
    "untrusted": "%s has refused datagrams with a PROXY header from an address that is not in "
    "proxy (%d so far): add the address if it is your load balancer's; stats().proxy_untrusted "
    "counts further ones",
    "not dtls": "%s has received datagrams that are not DTLS, or belong to no session (%d so far): "
    "do all clients encrypt? stats().dtls_invalid counts further ones",
    "malformed": "%s has refused datagrams from a trusted proxy without a valid PROXY header (%d "
    "so far): does the load balancer send the header of version 2 in each datagram? "
    "stats().proxy_malformed counts further ones",
}

RMEM_MAX = Path("/proc/sys/net/core/rmem_max")


def largest_buffer() -> int:
    """Return the largest ``rcvbuf`` that the kernel grants without privileges, or 0."""
    try:
        return int(RMEM_MAX.read_text())
    except (OSError, ValueError):
        return 0


class LogLimiter:
    """Limits logging to one message per second of each kind."""

    def __init__(self) -> None:
        self._left_out: dict[str, int] = {}
        self._last: dict[str, float] = {}

    def suffix(self, kind: str) -> str | None:
        """Return a suffix for the message, or None if it must not be logged now."""
        now = time.monotonic()
        if now - self._last.get(kind, -SECONDS_BETWEEN) < SECONDS_BETWEEN:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return None
        self._last[kind] = now
        more = self._left_out.pop(kind, 0)
        return f" ({more:,} more of this kind were not logged)" if more else ""


class Reports:
    """Logs the events that :class:`tomada._core.ServerCore` reports.

    The counters in ``stats()`` include all of them. A message says how many were omitted before it.
    """

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._limiter = LogLimiter()

    def __call__(self, what: str, detail: Any, address: Any) -> None:
        if what == "drops":
            self._drops(detail)
            return
        if what in REFUSALS:
            logger.warning(REFUSALS[what], format_address(self._sock.getsockname()), detail)
            return
        suffix = self._limiter.suffix(what)
        if suffix is None:
            return
        if what == "handler":
            place = "" if address is None else f" with a datagram from {format_address(address)}"
            logger.error("the handler failed%s%s", place, suffix, exc_info=detail)
        elif what == "own":
            logger.warning(
                "a datagram from %s was not handled: %s%s",
                format_address(address),
                detail,
                suffix,
            )
        elif what == "handshake":
            text, others = detail
            more = f" (and {others:,} more since the last report)" if others else ""
            logger.info("a DTLS handshake has failed: %s%s%s", text, more, suffix)
        elif what == "send":
            logger.warning("not sent to %s: %s%s", format_address(address), detail, suffix)
        elif address is not None:
            logger.warning(
                "a datagram sent to %s did not arrive: %s%s",
                format_address(address),
                detail,
                suffix,
            )
        else:
            logger.warning("receiving failed: %s%s", detail, suffix)

    def _drops(self, count: int) -> None:
        sock = self._sock
        logger.warning(
            "the kernel has begun to drop datagrams for %s (%d so far): they arrive faster than "
            "the handler can process them, and the receive buffer of %d bytes is full. Use a "
            "larger rcvbuf (sysctl net.core.rmem_max allows %d), more workers or a faster handler; "
            "stats().kernel_drops counts further drops",
            format_address(sock.getsockname()),
            count,
            sock.getsockopt(SOL_SOCKET, SO_RCVBUF),
            largest_buffer(),
        )
