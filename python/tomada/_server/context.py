"""The server context, which a server's threads or processes share."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from tomada import _core
from tomada._reports import Reports, logger
from tomada._server.app import App

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from tomada._server.deferred_log import DeferredLog
    from tomada._server.listeners import Listeners

    Logger: TypeAlias = logging.Logger | DeferredLog

# The time that a worker gets after its drain timeout to finish its last handler call and exit, in
# seconds.
GRACE = 1.0


@dataclass
class Context:
    """A server's handler, sockets, callbacks, settings, counters and cores."""

    listeners: Listeners
    handler: Callable[..., Any]
    takes: str
    workers: int
    init: Callable[[], object] | None
    exit: Callable[[], object] | None
    drain: float
    counters: _core.ServerCounters
    cores: list[_core.ServerCore] = field(default_factory=list)
    dtls: _core.DtlsContext | None = None
    endpoints: list[_core.DtlsEndpoint] = field(default_factory=list)
    # The process that started the server; in a worker, the worker's and its supervisor's.
    owner: int = field(default_factory=os.getpid)
    worker: int = 0
    supervisor: int = 0

    def add_core(self, worker: int) -> _core.ServerCore:
        """Create the core of a worker, with its handler. An app is imported here."""
        handler = self.handler.load() if isinstance(self.handler, App) else self.handler
        return self._add(worker, handler)

    def add_sender(self, worker: int) -> _core.ServerCore:
        """Create a core that only sends."""
        return self._add(worker, self.handler)

    def _add(self, worker: int, handler: Callable[..., Any]) -> _core.ServerCore:
        sock: Any = self.listeners.of(worker)
        if self.dtls is not None:
            self.endpoints.append(_core.DtlsEndpoint(self.dtls, sock))
        core = _core.ServerCore(sock, handler, self.takes, self.counters, worker, Reports(sock))
        self.cores.append(core)
        return core

    def run_exit(self, log: Logger = logger) -> None:
        """Call ``exit``, and log what it raises."""
        if self.exit is not None:
            try:
                self.exit()
            except Exception:
                log.exception("exit failed at the end of a worker")

    def ask_supervisor(self, number: int) -> None:
        """Send the supervisor a signal, if this process is one of its workers."""
        if os.getpid() == self.worker:
            os.kill(self.supervisor, number)

    @property
    def too_slow(self) -> str:
        """Why datagrams are left unanswered where nothing has cut the draining short."""
        return f"draining took longer than {self.drain:g} seconds (drain=)"

    def log_unanswered(
        self, datagrams: int, cause: str | None = None, log: Logger = logger
    ) -> None:
        """Log how many received datagrams were not handled, and why."""
        if datagrams:
            log.warning(
                "stopped with %d received datagrams unanswered, because %s",
                datagrams,
                self.too_slow if cause is None else cause,
            )
