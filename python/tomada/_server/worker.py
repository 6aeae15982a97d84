"""A worker process, from its fork to its end."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any, NoReturn

from tomada import _core
from tomada._reports import logger
from tomada._server.app import AppError
from tomada._server.context import GRACE, Context
from tomada._server.leaving import forget_records, leave, leave_in_order, limit_time
from tomada._server.messages import Failure, pack
from tomada._server.wakeup import Signals, Wakeup

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD)


def work_and_exit(context: Context, number: int, supervisor: int, pipe: int) -> NoReturn:
    """Run a worker until told to stop, and exit the process in order."""
    status = 1
    forget_records()  # the supervisor's
    teller = _Teller(pipe)
    try:
        wakeup = Wakeup()
        status = _work(context, number, supervisor, teller, wakeup)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # noqa: BLE001 - it ends the process, as in any program
        teller.tell("error", Failure.of(error))
        with contextlib.suppress(Exception):
            if isinstance(error, AppError):
                logger.error("worker %d cannot start: %s", number, error)
            else:
                logger.error("worker %d ends with an exception", number, exc_info=error)
    finally:
        # The wake-up and the handlers stay installed, because a signal may still arrive.
        leave_in_order(status, context.drain + GRACE)


class _Teller:
    """Sends the supervisor one message: that the worker is ready, or why it cannot start."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def tell(self, what: str, failure: Failure | None = None) -> None:
        pipe, self._pipe = self._pipe, -1
        if pipe >= 0:
            with contextlib.suppress(OSError):
                message = pack(what, failure)
                while message:
                    message = message[os.write(pipe, message) :]
            os.close(pipe)


def _work(context: Context, number: int, supervisor: int, teller: _Teller, wakeup: Wakeup) -> int:
    context.worker, context.supervisor = os.getpid(), supervisor
    context.cores.clear()
    started: list[_core.ServerCore] = []

    def drain(*_: object) -> None:
        if not started:
            leave(1)  # from the middle of `init`
        # If the handler does not return, only the kernel can end the process, by this alarm.
        signal.setitimer(signal.ITIMER_REAL, context.drain + GRACE)
        context.listeners.disable_gro()
        started[0].stop(context.drain, is_last=context.listeners.is_own)

    def retire(*_: object) -> None:
        if not started:
            leave(1)
        signal.setitimer(signal.ITIMER_REAL, context.drain + GRACE)
        started[0].stop()

    handlers: dict[int, Any] = {
        signal.SIGINT: _ignore,
        signal.SIGTERM: drain,
        signal.SIGHUP: retire,
        signal.SIGQUIT: signal.SIG_DFL,
        signal.SIGCHLD: signal.SIG_DFL,
        signal.SIGALRM: signal.SIG_DFL,
    }
    Signals(handlers, wakeup).install()
    _core.end_with_parent(signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if os.getppid() != supervisor:
        return 1  # the supervisor died before its end could signal this process
    core = context.add_core(number)
    core.prepare()
    if context.init is not None:
        context.init()
    try:
        started.append(core)
        teller.tell("ready")
        context.log_unanswered(core.run(wakeup.fileno()))
    finally:
        limit_time(context.drain + GRACE)
        context.run_exit()
    return 0


def _ignore(*_: object) -> None:
    pass
