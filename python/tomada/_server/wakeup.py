"""Waiting for other threads and signals, without lost wake-ups and without deadlocks."""

from __future__ import annotations

import _thread
import contextlib
import select
import threading
import time
from collections import deque
from socket import socketpair
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

# A signal that arrives just before a thread sleeps on a lock does not wake the thread. So a wait is
# split into intervals of this length, in seconds, after which Python runs the signal handler.
SLICE = 0.1
# The longest wait of one poll() in seconds: it accepts up to 2**31 ms. Callers wait in a loop.
LONGEST_POLL = 1e6


class Latch(threading.Event):
    """A :class:`threading.Event` whose methods never hold a lock.

    A signal handler can run between any two lines of the main thread, including inside
    ``Event.wait()`` while that holds the event's lock. If the handler then sets the event, it
    deadlocks. Here, every method may interrupt every other one. A latch is meant to be set once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_set = False
        self._waiters: deque[_thread.LockType] = deque()

    def is_set(self) -> bool:
        """Return whether it is set."""
        return self._is_set

    def set(self) -> None:
        """Set it, and wake all waiting threads."""
        self._is_set = True
        while True:
            try:
                waiter = self._waiters.popleft()
            except IndexError:
                return
            waiter.release()

    def clear(self) -> None:
        """Reset it."""
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, for at most `timeout` seconds; return whether it was set."""
        end = None if timeout is None else time.monotonic() + timeout
        if self._is_set:
            return True
        waiter = _thread.allocate_lock()
        waiter.acquire()
        self._waiters.append(waiter)
        while not self._is_set:
            left = SLICE if end is None else min(SLICE, end - time.monotonic())
            if left <= 0:
                # ValueError: a concurrent set() has removed the waiter. IndexError: another thread
                # changed the deque during the search.
                with contextlib.suppress(ValueError, IndexError):
                    self._waiters.remove(waiter)
                return self._is_set
            if waiter.acquire(timeout=left):
                return True
        return True


class Wakeup:
    """Wakes a waiting thread when another thread calls :meth:`notify`, or when a signal arrives.

    A signal that arrives just before the thread sleeps does not wake it by itself, but the byte
    that the interpreter writes on its arrival (:func:`signal.set_wakeup_fd`) does.
    """

    def __init__(self) -> None:
        self._read, self._write = socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable on a wake-up."""
        return self._read.fileno()

    def fileno_to_write(self) -> int:
        """Return the descriptor for :func:`signal.set_wakeup_fd`."""
        return self._write.fileno()

    def notify(self) -> None:
        """Wake the waiting thread or, if none waits, the next one to wait."""
        with contextlib.suppress(OSError):  # closed; or full, so the thread will wake anyway
            self._write.send(b"\0")

    def wait(self, timeout: float | None = None, others: Sequence[int] = ()) -> None:
        """Wait for a wake-up, a signal, or input on other descriptors."""
        poll = select.poll()
        for descriptor in (self._read.fileno(), *others):
            poll.register(descriptor, select.POLLIN)
        poll.poll(None if timeout is None else min(max(0.0, timeout), LONGEST_POLL) * 1e3)
        self.clear()

    def clear(self) -> None:
        """Discard earlier wake-ups."""
        with contextlib.suppress(BlockingIOError):
            self._read.recv(4096)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptors."""
        self._read.close()
        self._write.close()
