"""One run of a server: its context, its health and its workers."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from tomada._server.health import Health
from tomada._server.processes import Processes
from tomada._server.threads import Threads

if TYPE_CHECKING:
    from tomada._server.context import Context
    from tomada._server.lifecycle import Lifecycle


class Run:
    """Serves on open sockets. Only the keeper creates a run and calls :meth:`serve`."""

    def __init__(self, context: Context, life: Lifecycle, *, is_forking: bool) -> None:
        self.context, self._life = context, life
        self.health = Health(context, life)
        with ExitStack() as stack:
            if context.settings.health is not None:
                # Imported here because it imports modules that other servers do not need.
                from tomada._server.health_http import HealthServer  # noqa: PLC0415

                context.http = HealthServer(context.settings.health, self.health.routes())
                stack.callback(context.http.close)
            self.workers: Processes | Threads
            self.workers = Processes(context, life) if is_forking else Threads(context, life)
            stack.callback(self.workers.close)
            self._opened = stack.pop_all()

    def serve(self) -> None:
        """Start the workers; return when the server has ended."""
        with self._opened:
            self._life.launch_by_starter(self.workers.launch)
            if self.context.http is not None:
                self.context.http.start()  # after the fork
            self.workers.run()
