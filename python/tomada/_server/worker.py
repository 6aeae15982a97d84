"""A worker process, from its fork to its exit."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
from socket import MSG_NOSIGNAL, socket
from typing import Any, NoReturn

from tomada import _core
from tomada._reports import logger
from tomada._server.context import GRACE, Context
from tomada._server.leaving import forget_records, leave, leave_in_order, limit_time
from tomada._server.messages import Failure, pack
from tomada._server.serving import serve_datagrams
from tomada._server.wakeup import Wakeup

# The supervisor's reply to a worker that is ready.
GO = b"\n"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD)


def work_and_exit(context: Context, number: int, supervisor: int, channel: socket) -> NoReturn:
    """Run a worker until it is told to stop, and exit the process in order."""
    status = 1
    forget_records()  # the supervisor's
    teller = _Teller(channel)
    try:
        wakeup = Wakeup()
        status = _work(context, number, supervisor, teller, wakeup)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # noqa: BLE001 - it ends the process, as in any program
        # If the worker was still starting, the supervisor logs the failure, once for all workers.
        if not teller.tell("error", Failure.of(error)):
            with contextlib.suppress(Exception):
                logger.error("worker %d exits with an exception", number, exc_info=error)
    finally:
        # The wake-up and the handlers stay installed, because a signal may still arrive.
        leave_in_order(status, context.settings.drain + GRACE)


class _Teller:
    """Sends the supervisor one message: that the worker is ready, or why it cannot start."""

    def __init__(self, channel: socket) -> None:
        self._channel: socket | None = channel

    def tell(self, what: str, failure: Failure | None = None) -> bool:
        """Send the message, unless one was sent already; return whether the supervisor read it."""
        channel, self._channel = self._channel, None
        if channel is None:
            return False
        with channel, contextlib.suppress(OSError):
            channel.sendall(pack(what, failure), MSG_NOSIGNAL)
            return channel.recv(len(GO)) == GO
        return False


def _work(context: Context, number: int, supervisor: int, teller: _Teller, wakeup: Wakeup) -> int:
    context.worker, context.supervisor = os.getpid(), supervisor
    context.cores.clear()
    context.threads[threading.get_ident()] = number
    started: list[_core.ServerCore] = []

    def drain(*_: object) -> None:
        if not started:
            leave(1)  # the signal interrupted `init`
        # If the handler never returns, only the kernel can end the process, with this alarm.
        signal.setitimer(signal.ITIMER_REAL, context.settings.drain + GRACE)
        context.listeners.disable_gro()
        if os.getppid() != supervisor:
            context.listeners.refuse()  # the supervisor was killed before it could do this
        started[0].stop(context.settings.drain, is_last=context.listeners.is_own)

    def retire(*_: object) -> None:
        if not started:
            leave(1)
        signal.setitimer(signal.ITIMER_REAL, context.settings.drain + GRACE)
        started[0].retire(context.settings.drain)

    handlers: dict[int, Any] = {
        signal.SIGINT: _ignore,
        signal.SIGTERM: drain,
        signal.SIGHUP: retire,
        signal.SIGQUIT: signal.SIG_DFL,
        signal.SIGCHLD: signal.SIG_DFL,
        signal.SIGALRM: signal.SIG_DFL,
    }
    _core.SignalHandlers(handlers, wakeup.fileno_to_write(), wakeup).install()
    _core.end_with_parent(signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if os.getppid() != supervisor:
        return 1  # the supervisor exited before the kernel was told to signal its death
    core = context.add_core(number)
    core.prepare()
    if context.settings.init is not None:
        context.settings.init()
    is_told: list[bool] = []

    def begin() -> bool:
        is_told.append(teller.tell("ready"))  # if not, the supervisor has died
        return is_told[0]

    def end(unanswered: int, cause: str | None) -> None:
        limit_time(context.settings.drain + GRACE)
        context.log_unanswered(unanswered, cause)

    try:
        # From here on, a signal stops the worker in order, even while it enters its lifespan.
        started.append(core)
        on_exit = functools.partial(_retire, context, core)
        serve_datagrams(context, core, begin, end, on_exit=on_exit, log=logger, wakeup=wakeup)
    finally:
        limit_time(context.settings.drain + GRACE)
        context.run_exit()
    return 0 if is_told == [True] else 1


def _retire(context: Context, core: _core.ServerCore, _error: BaseException) -> None:
    """Handle the datagrams already received; the next process handles the socket's queue."""
    limit_time(context.settings.drain + GRACE)
    core.retire(context.settings.drain)


def _ignore(*_: object) -> None:
    pass
