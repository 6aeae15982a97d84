"""A server in the foreground: its signals, and the service manager that started it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from tomada import _core
from tomada._server.lifecycle import StoppedWhileStartingError
from tomada._server.systemd import Manager
from tomada._server.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable

    from tomada._server.lifecycle import Lifecycle
    from tomada._server.run import Run
    from tomada.server import Server


def serve_in_foreground(server: Server, life: Lifecycle, current: Callable[[], Run | None]) -> None:
    """Serve until the server is stopped or a signal arrives; start it first if needed.

    :param current: Returns the server's run, or ``None`` before it begins.
    """
    requests: list[int] = []

    def ask(number: int, _frame: object) -> None:
        if requests:
            raise KeyboardInterrupt
        requests.append(number)
        life.request_stop()

    def replace(*_: object) -> None:
        manager.reloading()
        server.replace_workers()

    manager = Manager()
    handlers: dict[int, Callable[..., Any]] = {signal.SIGINT: ask, signal.SIGTERM: ask}
    # Handled with a single worker too, although there is nothing to replace: by default, SIGHUP
    # would end the program.
    handlers[signal.SIGHUP] = replace
    wakeup = Wakeup()
    life.wakeups.append(wakeup)
    try:
        with _core.SignalHandlers(handlers, wakeup.fileno_to_write(), wakeup):
            _serve(server, life, current, wakeup, manager)
    except BaseException as error:
        if isinstance(error, Exception):
            server.stop()
        else:
            life.abort()
        raise
    finally:
        life.wakeups.remove(wakeup)
        wakeup.close()
        manager.close()


def _serve(
    server: Server,
    life: Lifecycle,
    current: Callable[[], Run | None],
    wakeup: Wakeup,
    manager: Manager,
) -> None:
    try:
        if life.state == "created" or life.is_elsewhere:
            server.start()  # a subclass may override it
    except StoppedWhileStartingError:
        return
    except RuntimeError:
        if current() is None and life.state == "stopped" and life.error is None:
            return  # another thread stopped it before it started
        raise
    run = current()
    if run is not None and life.state == "running":
        manager.ready(server)
        while life.state == "running":
            wakeup.wait(manager.tick(server, run.health, life))
    manager.stopping()
    server.stop()
    if life.error is not None:
        raise life.error
