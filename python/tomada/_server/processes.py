"""A server's worker processes, from the point of view of the process that starts them."""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import signal
import threading
import time
import warnings
from pathlib import Path
from socket import AF_UNIX, MSG_DONTWAIT, SOCK_SEQPACKET, socket, socketpair
from typing import TYPE_CHECKING, Any, NoReturn

from tomada._advice import OF_OPENING, advised
from tomada._server.context import GRACE, Context
from tomada._server.leaving import flush_before_fork, leave
from tomada._server.messages import LARGEST_MESSAGE, unpack
from tomada._server.supervisor import Supervisor
from tomada._server.wakeup import Wakeup

if TYPE_CHECKING:
    from tomada._server.lifecycle import Lifecycle

# The C function runs in one step; the one in `signal` is a Python wrapper, which a signal handler
# can interrupt.
SET_MASK: Any = importlib.import_module("_signal").pthread_sigmask


class _Fork:
    """Allows one fork at a time: a concurrent child would keep a copy of this one's channel end."""

    # Reentrant, because a signal handler may start a server while it interrupts another start.
    lock = threading.RLock()

    @classmethod
    def renew(cls) -> None:
        """Create a new lock in a child, because a thread of its parent may hold the old one."""
        cls.lock = threading.RLock()


os.register_at_fork(after_in_child=_Fork.renew)


class Processes:
    """A supervisor, which :meth:`launch` forks, and its workers.

    The supervisor has one thread, no matter how many this process has, so workers are forked from a
    single-threaded process. When this process exits, so do the supervisor and its workers.
    """

    def __init__(self, context: Context, life: Lifecycle) -> None:
        self._context, self._life = context, life
        context.add_sender()
        self._pid = 0
        # A pidfd of the supervisor, readable once it has exited. The channel alone is not enough:
        # if another thread forks during launch(), that child keeps a copy of the supervisor's end.
        self._process: int | None = None
        self._channel: socket | None = None
        self._supervisors_end: socket | None = None
        self._is_given_up = False
        self._error: BaseException | None = None

    # In the starting thread

    def launch(self) -> None:
        """Fork the supervisor.

        A signal handler may raise an exception at any line. The keeper then ends the supervisor
        through the channel, over which the supervisor sends its process ID.
        """
        flush_before_fork()
        with advised(self._context.listeners.address, OF_OPENING), _Fork.lock:
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            try:
                # The child must not run its parent's signal handlers.
                signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
                self._fork(mask)
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            except BaseException:
                # The C function, because no signal handler can run before it has finished.
                SET_MASK(signal.SIG_SETMASK, mask)
                raise
            finally:
                self._close_supervisors_end()

    def _fork(self, mask: set[Any]) -> None:
        self._channel, self._supervisors_end = socketpair(AF_UNIX, SOCK_SEQPACKET)
        # CPython 3.12 and later warn of forks with threads; the class's docstring covers it. The
        # filter stays, because catch_warnings() is not thread-safe.
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning, __name__)
        if self._life.is_stopping:
            return
        pid = os.fork()
        if pid == 0:
            self._be_supervisor(mask)
        self._pid = pid
        if self._is_given_up:
            self._tell(signal.SIGQUIT)
            self._reap()

    def _be_supervisor(self, mask: set[Any]) -> NoReturn:
        try:
            assert self._channel is not None  # noqa: S101 - _fork() has set both
            assert self._supervisors_end is not None  # noqa: S101
            self._channel.close()
            if self._context.http is not None:
                self._context.http.forget()
            Supervisor(self._context, self._supervisors_end, mask).run_and_exit()
        finally:
            leave(1)

    def _close_supervisors_end(self) -> None:
        if self._supervisors_end is not None:
            self._supervisors_end.close()

    # In the keeper

    def run(self) -> None:
        """Return when all processes have ended, or raise the exception that ended them."""
        if self._channel is None:
            self._is_given_up = True
            return
        self._close_supervisors_end()  # in case an exception skipped it in launch()
        with Wakeup() as wakeup:
            self._life.wakeups.append(wakeup)
            try:
                self._watch(self._channel, wakeup)
            finally:
                self._life.live_workers = frozenset()
                self._life.wakeups.remove(wakeup)
                if self._process is not None:
                    os.close(self._process)
        status = self._reap()
        if self._error is None and status and not self._life.is_stopping:
            self._error = RuntimeError(
                f"the supervisor of the workers has ended with status {status}"
            )
        # No process reads the sockets any longer: let the kernel refuse new datagrams.
        self._context.listeners.refuse()
        if self._error is not None:
            raise self._error

    def _watch(self, channel: socket, wakeup: Wakeup) -> None:
        """Handle the supervisor's messages until it ends, and forward requests to it."""
        told = 0
        give_up_at = None
        while True:
            asked = signal.SIGTERM if self._life.is_stopping else 0
            if self._life.is_aborted:
                asked = signal.SIGQUIT
            if asked and told not in (asked, signal.SIGQUIT):
                told = asked
                self._tell(asked)
                patience = 0.0 if asked == signal.SIGQUIT else self._context.settings.drain
                give_up_at = time.monotonic() + patience + 3 * GRACE
            if give_up_at is not None and give_up_at <= time.monotonic():
                if told == signal.SIGQUIT:
                    self._kill()
                    return
                told = signal.SIGQUIT
                self._tell(told)
                give_up_at = time.monotonic() + 3 * GRACE
            timeout = None if give_up_at is None else give_up_at - time.monotonic()
            has_ended = self._process is not None and _is_readable(self._process)
            if not self._take_messages(channel) or has_ended:
                return
            if self._process is None and self._pid:
                # If there is none (before Linux 5.3, or another wait() call has reaped the
                # process), rely on the channel.
                with contextlib.suppress(OSError, AttributeError):
                    self._process = os.pidfd_open(self._pid)
            others = () if self._process is None else (self._process,)
            wakeup.wait(timeout, (channel.fileno(), *others))

    def _take_messages(self, channel: socket) -> bool:
        """Handle all queued messages; return whether the supervisor is still running."""
        with contextlib.suppress(BlockingIOError):
            while message := channel.recv(LARGEST_MESSAGE, MSG_DONTWAIT):
                self._take(message)
            return False
        return True

    def _take(self, message: bytes) -> None:
        what, failure, more = unpack(message)
        if what == "pid":
            self._pid = more["pid"]
        elif what == "ready":
            self._life.set_ready()
        elif what == "replaced":
            self._life.count_replacement(has_failed=more["has_failed"])
        elif what == "live":
            self._life.live_workers = frozenset(more["workers"])
        elif what == "stop":
            self._life.request_stop()
        elif failure is not None:
            self._error = failure.exception()

    def _kill(self) -> None:
        """Kill a supervisor that does not answer, and its workers."""
        self._life.log.error(
            "the supervisor (process %d) does not exit: killing all workers", self._pid
        )
        if not self._pid:
            return
        children = ""
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text()
        # Kill the supervisor first, so that it does not start other workers.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        for pid in map(int, children.split()):
            _kill(pid)

    def replace(self) -> None:
        """Replace each worker."""
        self._tell(signal.SIGHUP)

    def _tell(self, number: int) -> None:
        """Send the supervisor a command: the number of the signal with the same meaning."""
        if self._channel is not None:
            with contextlib.suppress(OSError):  # it has exited, or its queue is full
                self._channel.send(number.to_bytes(1, "big"), MSG_DONTWAIT)

    def _reap(self) -> int:
        if not self._pid:
            return 0
        try:
            _, status = os.waitpid(self._pid, 0)
        except ChildProcessError:  # another thread or library has already reaped it
            return 0
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """Close the channel."""
        self._close_supervisors_end()
        if self._channel is not None:
            self._channel.close()


def _is_readable(descriptor: int, milliseconds: int = 0) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(milliseconds))


def _kill(pid: int) -> None:
    """Kill a process that is not a child, and wait until it has closed its sockets."""
    # Errors mean that the process has exited, or that the kernel is older than Linux 5.3.
    with contextlib.suppress(OSError, AttributeError):
        descriptor = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            _is_readable(descriptor, 3000)
        finally:
            os.close(descriptor)
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
