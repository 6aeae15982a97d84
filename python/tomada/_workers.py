"""A server's worker processes, as the process that started them sees them."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from socket import AF_UNIX, SOCK_SEQPACKET, socket, socketpair
from typing import Any

from tomada._advice import start_thread
from tomada._job import GRACE, Job
from tomada._supervisor import LARGEST_MESSAGE, SIGNALS, Supervisor


class _Fork:
    """One fork at a time: another would inherit this one's end of the channel, and keep it open."""

    lock = threading.Lock()

    @classmethod
    def renew(cls) -> None:
        """Have a lock in a child, whoever had its parent's."""
        cls.lock = threading.Lock()


os.register_at_fork(after_in_child=_Fork.renew)


class Processes:
    """A supervisor, which :meth:`start` forks, and its workers.

    The supervisor has one thread, whatever this process has, so that the forks of workers are those
    of a process without threads. It ends with this process, and the workers with it.
    """

    def __init__(self, job: Job, on_end: Callable[[], None]) -> None:
        self._job = job
        self._on_end = on_end
        self._pid = 0
        self._channel: socket | None = None
        self._watcher: threading.Thread | None = None
        self._started = threading.Event()
        self._stopping = False
        # Whether no datagram is handled any more, and what ended it.
        self.ended = False
        self.error: BaseException | None = None

    @property
    def is_own_thread(self) -> bool:
        """Whether the calling thread is one that stopping waits for."""
        return False

    def start(self) -> None:
        """Fork, and return when each worker is ready, or raise what keeps it from it."""
        with _Fork.lock:
            self._fork()
        watcher = threading.Thread(target=self._watch, name="tomada.Server", daemon=True)
        try:
            start_thread(watcher)
        except OSError:
            # Nobody would hear what becomes of the workers.
            self._tell(signal.SIGQUIT)
            self._watch()
            raise
        self._watcher = watcher
        self._started.wait()  # which the watcher sets in any case
        if self.error is not None:
            self.stop()
            raise self.error

    def _fork(self) -> None:
        self._channel, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        # What is buffered would be written by every process.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        # A signal must not find the child with the handlers of its parent.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            with warnings.catch_warnings():
                # From CPython 3.12 on, of a fork with threads: the class's text says so too.
                warnings.simplefilter("ignore", DeprecationWarning)
                self._pid = os.fork()
            if self._pid == 0:
                self._channel.close()
                Supervisor(self._job, theirs).run_and_exit()
        except OSError:  # no process is left
            self._channel.close()
            self._channel = None
            raise
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def replace(self) -> None:
        """Have each worker replaced."""
        self._tell(signal.SIGHUP)

    def stop(self) -> None:
        """Have the workers answer what is queued, and end."""
        self._stopping = True
        self._tell(signal.SIGTERM)
        if self._watcher is None:
            return
        # The supervisor kills workers that take longer.
        self._watcher.join(self._job.drain + 3 * GRACE)
        if self._watcher.is_alive():
            self.abort()

    def abort(self) -> None:
        """Kill the workers."""
        self._tell(signal.SIGQUIT)
        if self._watcher is not None:
            self._watcher.join()

    def _tell(self, number: int) -> None:
        """Tell the supervisor what to do, by the signal that would make it do so."""
        if self._channel is not None:
            with contextlib.suppress(OSError):  # it has ended
                self._channel.send(number.to_bytes(1, "big"))

    def _watch(self) -> None:
        """Take what the supervisor says, until it ends."""
        channel: Any = self._channel
        error: BaseException | None = None
        while message := channel.recv(LARGEST_MESSAGE):
            what, detail = pickle.loads(message)  # noqa: S301 - from a process forked from this one
            if what == "ready":
                self._started.set()
            else:
                error = detail
        status = self._reap()
        if error is None and not self._stopping and status:
            error = RuntimeError(f"the supervisor of the workers has ended with status {status}")
        self.error = error
        # Nobody reads them any more: let the kernel refuse what comes.
        self._job.listeners.refuse()
        self._started.set()
        channel.close()
        self.ended = True
        self._on_end()

    def _reap(self) -> int:
        try:
            _, status = os.waitpid(self._pid, 0)
        except ChildProcessError:  # somebody else did
            return 0
        return os.waitstatus_to_exitcode(status)
