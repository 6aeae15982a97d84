"""Logging from threads that other threads wait for."""

from __future__ import annotations

import _thread
import contextlib
import contextvars
import logging
import queue
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from tomada._reports import logger
from tomada._server.wakeup import Latch

if TYPE_CHECKING:
    from collections.abc import Callable

# How long a call waits for its log lines, in seconds.
PATIENCE = 1.0


class DeferredLog:
    """Logs in threads of its own, so that the caller never blocks on a log handler.

    A signal handler that stops a server may have interrupted its thread inside ``logging``. That
    thread then holds the lock of a log handler until the signal handler returns. The threads that
    the stop waits for must therefore not wait for that lock, nor for any lock that does not belong
    to the server.
    """

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._turn = _thread.allocate_lock()
        # The latches of the lines that may not be written yet.
        self._written: deque[Latch] = deque(maxlen=100)

    def warning(self, text: str, *arguments: Any) -> None:
        """Log a warning."""
        self._log(logging.WARNING, text, arguments, None)

    def error(self, text: str, *arguments: Any) -> None:
        """Log an error."""
        self._log(logging.ERROR, text, arguments, None)

    def exception(self, text: str, *arguments: Any) -> None:
        """Log an error with the exception that is being handled."""
        self._log(logging.ERROR, text, arguments, sys.exception())

    def _log(
        self, level: int, text: str, arguments: tuple[Any, ...], error: BaseException | None
    ) -> None:
        written, context = Latch(), contextvars.copy_context()

        def write() -> None:
            try:
                context.run(logger.log, level, text, *arguments, exc_info=error)
            finally:
                written.set()

        self._written.append(written)
        self._lines.put(write)
        if not _start(self._write):
            written.set()  # the next line's thread writes it

    def _write(self) -> None:
        with self._turn, contextlib.suppress(queue.Empty):
            while True:
                self._lines.get_nowait()()

    def flush(self) -> None:
        """Wait until all log lines are written, at most for a short time."""
        end = time.monotonic() + PATIENCE
        for written in self._written.copy():
            if not written.wait(max(0.0, end - time.monotonic())):
                return
            # A concurrent call may already have removed it.
            with contextlib.suppress(ValueError, IndexError):
                self._written.remove(written)


def _start(function: Callable[[], object]) -> bool:
    """Start a thread; return false if the process cannot have another one.

    ``Thread.start()`` takes a lock of the ``threading`` module, so it runs in a new thread itself.
    """
    thread = threading.Thread(target=function, name="tomada.Server-log", daemon=True)
    try:
        _thread.start_new_thread(_start_thread, (thread, function))
    except RuntimeError:
        return False
    return True


def _start_thread(thread: threading.Thread, function: Callable[[], object]) -> None:
    try:
        thread.start()
    except RuntimeError:  # the limit of threads is reached: use this one
        function()
