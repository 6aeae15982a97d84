"""The validated arguments of a server."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tomada._server.app import check_callback, check_handler
from tomada._server.lifespan import check_lifespan
from tomada._server.loops import check_loop
from tomada._server.steering import check_steering
from tomada._socket_options import SocketOptions, check_dtls, check_shared

if TYPE_CHECKING:
    from collections.abc import Callable

    from tomada._core import DtlsContext
    from tomada._server.options import Handler, Lifespan, Loop
    from tomada._server.steering import Steering

# The longest drain timeout, in seconds: all timers accept it. A longer one counts as unlimited.
LONGEST_DRAIN = 1e9


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A server's address, handler and options: see :class:`tomada.Server`.

    :raises TypeError: One of them has a wrong type.
    :raises ValueError: One of them is out of range, or two exclude each other.
    """

    address: Any
    sock: Any
    fd: int | None
    handler: Handler
    takes: str
    workers: int
    threads: int
    init: Callable[[], object] | None
    exit: Callable[[], object] | None
    lifespan: Lifespan | None
    loop: Loop | None
    max_concurrency: int
    max_requests: int | None
    max_age: float | None
    steering: Steering
    drain: float
    health: tuple[str, int] | None
    access_log: int
    dtls: DtlsContext | None
    socket: SocketOptions

    def __post_init__(self) -> None:
        check_handler(self.handler)
        check_callback(self.init, "init")
        check_callback(self.exit, "exit")
        check_lifespan(self.lifespan)
        check_loop(self.loop)
        if self.takes not in ("data", "datagram", "batch", "timed"):
            names = "'data', 'datagram', 'batch' or 'timed'"
            raise ValueError(f"takes must be {names}, not {self.takes!r}")
        check_steering(self.steering)
        if math.isnan(self.drain) or self.drain < 0:
            raise ValueError(f"drain must be a number of seconds, not {self.drain}")
        self._check_workers()
        self._check_limits()
        if self.dtls is not None:
            self._check_dtls(self.dtls)
        check_shared(self.sock)
        if sum(given is not None for given in (self.address, self.sock, self.fd)) > 1:
            raise ValueError("pass only one of address, sock and fd")
        if self.access_log < 0:
            raise ValueError(f"access_log must be at least 0, not {self.access_log}")
        if self.health is not None and not isinstance(self.health, tuple):
            raise TypeError(f"health must be (host, port), not {self.health!r}")
        if self.socket.proxy_flows is not None and self.cores > 1 and not self._keeps_peers:
            raise ValueError("proxy_flows needs steering='hash': a flow's worker must not change")

    @property
    def cores(self) -> int:
        """How many workers call the handler: processes or threads."""
        return max(self.workers, self.threads)

    @property
    def _keeps_peers(self) -> bool:
        """Whether each peer stays with its worker."""
        return self.steering == "hash" and not self.socket.groups

    def _check_workers(self) -> None:
        for name, number in (("workers", self.workers), ("threads", self.threads)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, not {number}")
        if self.threads == 1:
            return
        if self.workers > 1:
            raise ValueError("pass either workers or threads, not both")
        is_locked: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
        if is_locked():
            raise ValueError(
                "threads need a free-threaded interpreter (python3.13t or later), because the "
                "global interpreter lock lets only one of them run at a time: use workers"
            )

    def _check_limits(self) -> None:
        if self.max_concurrency < 1:
            raise ValueError(f"max_concurrency must be at least 1, not {self.max_concurrency}")
        for name, limit in (("max_requests", self.max_requests), ("max_age", self.max_age)):
            if limit is None:
                continue
            if not limit > 0:  # also true for NaN
                raise ValueError(f"{name} must be positive, not {limit}")
            if self.workers == 1:
                raise ValueError(f"{name} replaces worker processes: pass workers=2 or more")

    def _check_dtls(self, context: DtlsContext) -> None:
        check_dtls(context, is_server=True)
        if self.workers > 1 and not self._keeps_peers:
            raise ValueError(
                'with dtls, several workers need steering="hash" and no groups: a session belongs '
                "to one worker"
            )
        if self.socket.proxy:
            raise ValueError("proxy cannot be combined with dtls: terminate DTLS at the proxy")
