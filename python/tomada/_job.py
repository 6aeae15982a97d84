"""What a server's workers have to know."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tomada import _core
from tomada._reports import Reports, logger

if TYPE_CHECKING:
    from tomada._listeners import Listeners

# So long after the time for draining a worker may still be about its last call of the handler.
GRACE = 1.0


@dataclass
class Job:
    """What to do: which handler to call with what comes from which sockets."""

    listeners: Listeners
    handler: Callable[..., Any]
    takes: str
    workers: int
    init: Callable[[], object] | None
    drain: float
    counters: _core.ServerCounters
    cores: list[_core.ServerCore] = field(default_factory=list)
    # The process that started the server; in a worker, its own and its supervisor's.
    owner: int = field(default_factory=os.getpid)
    worker: int = 0
    supervisor: int = 0

    def add_core(self, worker: int) -> _core.ServerCore:
        """Make the core of a worker, or one that only sends."""
        sock: Any = self.listeners.of(worker)
        core = _core.ServerCore(
            sock, self.handler, self.takes, self.counters, worker, Reports(sock)
        )
        self.cores.append(core)
        return core

    def ask_supervisor(self, number: int) -> None:
        """Send the supervisor a signal, if this is one of its workers and no other child."""
        if os.getpid() == self.worker:
            os.kill(self.supervisor, number)

    def tell_left(self, datagrams: int) -> None:
        """Log how many received datagrams could not be handled in time."""
        if datagrams:
            logger.warning(
                "stopped with %d received datagrams unanswered, because draining took longer than "
                "%g seconds (drain=)",
                datagrams,
                self.drain,
            )
