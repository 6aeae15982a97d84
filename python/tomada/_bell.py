"""Waiting for signals without missing one."""

from __future__ import annotations

import contextlib
import select
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from socket import socketpair
from typing import Any, Self


class Bell:
    """What wakes a thread that has several things to wait for: a call in another, or a signal.

    A signal that comes in the instant before a thread goes to sleep would not wake it; the byte
    that the interpreter writes (:func:`signal.set_wakeup_fd`) does.
    """

    def __init__(self) -> None:
        self._read, self._write = socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor from which a ring can be read."""
        return self._read.fileno()

    def ring(self) -> None:
        """Wake who waits, or who waits next."""
        with contextlib.suppress(OSError):  # full, which rings as well; or closed
            self._write.send(b"\0")

    def wait(self, timeout: float | None = None, others: Sequence[int] = ()) -> None:
        """Wait for a ring, a signal, or something to read from other descriptors."""
        poll = select.poll()
        for descriptor in (self._read.fileno(), *others):
            poll.register(descriptor, select.POLLIN)
        poll.poll(None if timeout is None else max(0.0, timeout) * 1e3)
        with contextlib.suppress(BlockingIOError):
            self._read.recv(4096)

    @contextlib.contextmanager
    def rung_by(self, handlers: dict[int, Callable[..., Any]]) -> Iterator[None]:
        """Install handlers of signals, each of which also rings.

        Only the main thread can; elsewhere this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, call) for number, call in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._read.close()
        self._write.close()
