"""Serving, in a worker process or in a thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tomada._server.app import is_async
from tomada._server.lifespan import Lifespan

if TYPE_CHECKING:
    from collections.abc import Callable

    from tomada import _core
    from tomada._server.context import Context, Logger
    from tomada._server.wakeup import Wakeup


def serve_datagrams(  # noqa: PLR0913 - the parts of a worker
    context: Context,
    core: _core.ServerCore,
    begin: Callable[[], bool],
    end: Callable[[int, str | None], object],
    *,
    on_exit: Callable[[BaseException], object],
    log: Logger,
    wakeup: Wakeup | None = None,
) -> None:
    """Enter the lifespan, serve until the core is told to stop, and leave the lifespan.

    If a handler raises :class:`SystemExit` or :class:`KeyboardInterrupt`, the worker stops in
    order: it handles the other datagrams first, and then raises the first such exception.

    The worker runs an event loop if the handler or the lifespan is async, or if the server has a
    ``loop``.

    :param begin: Called once the lifespan is entered; returns whether to serve.
    :param end: Called before the lifespan is left, with the number of received datagrams that were
        not handled, and the reason, or ``None`` if draining took too long.
    :param on_exit: Called with each exception of a handler that ends the program, in the handler's
        thread. It must make the core end.
    :param wakeup: Becomes readable when a signal arrives.
    """
    lifespan = Lifespan(context, core.worker, log)
    if context.settings.loop is not None or lifespan.is_async or is_async(context.load_handler()):
        from tomada._server.event_loop import EventLoopWorker  # noqa: PLC0415 - imports asyncio

        EventLoopWorker(context, core, lifespan, begin, end, on_exit=on_exit, wakeup=wakeup).run()
        return
    first: BaseException | None = None

    def note_exit(error: BaseException) -> None:
        nonlocal first
        first = error if first is None else first
        on_exit(error)

    with lifespan.entered():
        if begin():
            end(core.run(None if wakeup is None else wakeup.fileno(), note_exit), None)
            if first is not None:
                raise first
