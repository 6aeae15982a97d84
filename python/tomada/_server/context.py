"""The server context, which a server's threads or processes share."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from tomada import _core
from tomada._reports import Reports, logger
from tomada._server.access_log import sampled
from tomada._server.app import App

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from tomada._server.deferred_log import DeferredLog
    from tomada._server.health_http import HealthServer
    from tomada._server.listeners import Listeners
    from tomada._server.settings import Settings
    from tomada.server import Server

    Logger: TypeAlias = logging.Logger | DeferredLog

# The time that a worker gets after its drain timeout to finish its last handler call and exit, in
# seconds.
GRACE = 1.0


@dataclass
class Context:
    """A server's settings, sockets, counters and cores."""

    server: Server
    settings: Settings
    listeners: Listeners
    counters: _core.ServerCounters = field(init=False)
    http: HealthServer | None = None
    cores: list[_core.ServerCore] = field(default_factory=list)
    endpoints: list[_core.DtlsEndpoint] = field(default_factory=list)
    # The process that started the server; in a worker, the worker's and its supervisor's.
    owner: int = field(default_factory=os.getpid)
    worker: int = 0
    supervisor: int = 0
    # The values of the lifespans that this process has entered, by worker.
    states: dict[int, object] = field(default_factory=dict)
    # The number of the worker that each thread of this process runs.
    threads: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # One more block of counters, for datagrams sent from this process.
        self.counters = _core.ServerCounters(self.settings.cores + 1)

    def load_handler(self) -> Callable[..., Any]:
        """Return the handler; if it is an app, import it first."""
        handler = self.settings.handler
        return handler.load() if isinstance(handler, App) else handler

    def add_core(self, worker: int) -> _core.ServerCore:
        """Create the core of a worker, with its handler."""
        return self._add(worker, self.load_handler())

    def add_sender(self) -> None:
        """Create a core that only sends."""
        self._add(self.settings.cores, self.settings.handler)

    def _add(self, worker: int, handler: Callable[..., Any]) -> _core.ServerCore:
        sock: Any = self.listeners.of(worker)
        settings = self.settings
        if settings.dtls is not None:
            self.endpoints.append(_core.DtlsEndpoint(settings.dtls, sock))
        if settings.access_log:
            handler = sampled(handler, settings.takes, settings.access_log)
        core = _core.ServerCore(sock, handler, settings.takes, self.counters, worker, Reports(sock))
        self.cores.append(core)
        return core

    def state(self) -> Any:
        """Return the value of the calling worker's lifespan.

        :raises RuntimeError: This is not a worker, or its lifespan is not entered.
        """
        states = self.states.copy()
        number = self.threads.get(threading.get_ident())
        if number is None and len(states) == 1:  # in another thread, such as one of to_thread()
            (number,) = states
        if number not in states:
            raise RuntimeError(
                "no state is available here: only a worker with a lifespan has it, while it serves"
            )
        return states[number]

    def run_exit(self, log: Logger = logger) -> None:
        """Call ``exit`` and log its exception; also raise it if it ends the program."""
        if self.settings.exit is not None:
            try:
                self.settings.exit()
            except BaseException as error:
                log.exception("exit failed at the end of a worker")
                if isinstance(error, SystemExit | KeyboardInterrupt):
                    raise

    def ask_supervisor(self, number: int) -> None:
        """Send the supervisor a signal, if this process is one of its workers."""
        if os.getpid() == self.worker:
            os.kill(self.supervisor, number)

    @property
    def too_slow(self) -> str:
        """The reason to log for unanswered datagrams when nothing else cut draining short."""
        return f"draining took longer than {self.settings.drain:g} seconds (drain=)"

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
