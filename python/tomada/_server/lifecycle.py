"""A server's lifecycle: starting and stopping, from any thread or signal handler."""

from __future__ import annotations

import _thread
import contextvars
import errno
import os
import queue
import threading
import time
from typing import TYPE_CHECKING, Literal, TypeAlias

from tomada._advice import start_thread
from tomada._server.deferred_log import DeferredLog
from tomada._server.wakeup import Latch, Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable

State: TypeAlias = Literal["created", "starting", "running", "draining", "stopped"]

# How long a call waits for a server that it has aborted to end, in seconds. For a server that it
# has stopped, this is added to the drain timeout.
PATIENCE = 10.0
# How long an abandoned start waits for the thread that began it, in seconds.
ABANDON = 1.0
# How often to check whether that thread is still starting the server, in seconds.
LOOK = 0.05


class Claim:
    """A claim to control the server: that of a call of ``start``, or :data:`STOPPED`."""

    def __init__(self) -> None:
        self.process, self.thread = os.getpid(), threading.get_ident()
        # Locked for as long as the call runs. `with` releases a lock in one step that no signal
        # handler interrupts.
        self.gate = threading.Lock()


# Claims a server that was stopped before it was started.
STOPPED = Claim()


class StoppedWhileStartingError(RuntimeError):
    """Raised by :meth:`Lifecycle.start` when another call has stopped the server."""

    def __init__(self) -> None:
        super().__init__("the server was stopped while it was starting; make another one")


class Lifecycle:
    """The states of a server: created, starting, running, draining, stopped.

    A dedicated thread, the *keeper*, does the work: it opens and closes, starts and stops. Python
    runs signal handlers only in the main thread, so they never interrupt the keeper, and an
    exception from a handler (Ctrl-C, an alarm) cannot leave its work half done. The other methods
    set a request, wake the keeper and wait for it. They may be called from any thread, from a
    signal handler that interrupts one of them at any line, and from the server's own threads.

    The state is not stored. It is derived from facts that each become true once, in one step that
    nothing can interrupt: the first claim, the requests, and three latches. There is no lock that
    an interrupted call could hold.

    No call waits forever for the keeper, and the keeper does not wait for locks of other code, such
    as those of ``logging``: the calling thread may hold one while a signal handler runs in it.

    :param keep: The keeper's work: it opens the sockets, calls :meth:`launch_by_starter` and
        :meth:`set_ready`, returns when :attr:`is_stopping`, and leaves nothing open. It logs to
        :attr:`log`.
    :param drain: How many seconds the keeper may take to end, plus a few.
    """

    def __init__(self, keep: Callable[[], None], drain: float) -> None:
        self._keep, self._drain = keep, drain
        self.log = DeferredLog()
        self._claims: list[Claim] = []  # the first one controls the server
        self._is_stopping = self._is_aborted = False
        self._prepared, self._settled = Latch(), Latch()
        self._keeper: threading.Thread | None = None
        self._is_begun = False
        self._launch: Callable[[], None] | None = None
        # Whether the starting thread has called `_launch`; false if that thread skipped it.
        self._is_launched: bool | None = None
        # SimpleQueue.put() is reentrant: it may interrupt itself and every other method.
        self._notes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.own_threads: set[int] = set()
        self.wakeups: list[Wakeup] = []
        """Wake-ups to signal, besides the keeper's, after a change."""
        self.replacements = 0
        """How many replacements of all workers have finished, whether they succeeded or not."""
        self.has_failed_to_replace = False
        """Whether the last of them failed, so that old workers continue."""
        self.live_workers: frozenset[int] = frozenset()
        """The numbers of the workers that are running."""
        self.ready = Latch()
        self.closed = Latch()
        self.error: BaseException | None = None
        """The exception that ended the server or made its start fail."""

    @property
    def state(self) -> State:
        """The current state of the server."""
        if self.closed.is_set() or STOPPED in self._claims[:1]:
            return "stopped"
        if not self._claims:
            return "created"
        if self._is_stopping or self._is_aborted:
            return "draining"
        return "running" if self.ready.is_set() else "starting"

    @property
    def is_stopping(self) -> bool:
        """Whether :meth:`stop` or :meth:`abort` was called."""
        return self._is_stopping or self._is_aborted

    @property
    def is_aborted(self) -> bool:
        """Whether to end at once, without answering queued datagrams."""
        return self._is_aborted

    @property
    def is_elsewhere(self) -> bool:
        """Whether another process started the server; a fork of that process has no keeper."""
        first = next(iter(self._claims), STOPPED)
        return first is not STOPPED and first.process != os.getpid()

    # For the owner of the server

    def start(self) -> None:
        """Have the keeper start the server; return when it is ready.

        If the keeper or a signal handler raises an exception, the server is stopped first.
        """
        claim = Claim()
        try:
            with claim.gate:
                self._claims.append(claim)
                self._check_first(claim)
                self._start()
        except BaseException:
            if claim.gate.locked():
                claim.gate.release()  # a trace function can raise where signal handlers cannot
            if self._claims[:1] == [claim]:
                self.abort()
            raise

    def _check_first(self, claim: Claim) -> None:
        if self._claims[0] is STOPPED:
            raise RuntimeError("the server was stopped before it was started: create another one")
        if self._claims[0] is not claim:
            raise RuntimeError("a server can be started only once: create another one")

    def _start(self) -> None:
        # A signal handler that raises inside Thread.start() leaves the thread object broken. So
        # this starts a thread in one step, and that thread starts the keeper.
        try:
            _thread.start_new_thread(self._begin, (contextvars.copy_context(),))
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
        self._await_unless_stopped(self._prepared)
        launch = self._launch
        if launch is not None and not self.is_stopping:
            launch()
            self._is_launched = True
        else:
            self._is_launched = False
        self.notify()
        self._await_unless_stopped(self._settled)
        self.log.flush()
        # These are read only once. If an exception arrives later, start() aborts the server.
        if self.error is None and not self.is_stopping:
            return
        self._await_closed(self._drain + PATIENCE)
        self.log.flush()
        raise self.error or StoppedWhileStartingError()

    def request_stop(self) -> None:
        """Request an orderly stop, and return at once."""
        self._is_stopping = True
        self.notify()

    def stop(self) -> None:
        """Have the keeper drain and end the server, and wait for that.

        This does not wait where waiting would deadlock: in the server's own threads, and in a
        signal handler that has interrupted :meth:`start`, which continues afterwards and raises.
        It does nothing in a forked process.
        """
        try:
            if self.is_elsewhere or self._is_unstarted():
                return
            self.request_stop()
            if not self._is_inside():
                self._await_end(self._drain + PATIENCE)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Have the keeper end the server at once, and wait for that."""
        if self.is_elsewhere or self._is_unstarted():
            return
        self._is_aborted = True
        self.notify()
        if not self._is_inside():
            self._await_end(PATIENCE)

    def _is_unstarted(self) -> bool:
        """Return whether the server was never started, and prevent a later start."""
        if not self._claims:
            self._claims.append(STOPPED)
        if self._claims[0] is STOPPED:
            self.closed.set()
        return self._claims[0] is STOPPED

    def _is_inside(self) -> bool:
        """Return whether the keeper waits for the calling thread."""
        thread, claim = threading.get_ident(), self._claims[0]
        return thread in self.own_threads or (claim.thread == thread and claim.gate.locked())

    def _await_end(self, timeout: float) -> None:
        self._await_closed(timeout)
        keeper = self._keeper
        if keeper is not None and keeper.ident is not None:
            keeper.join(ABANDON)  # after closing, it has nothing more to do
        self.log.flush()

    def _await_unless_stopped(self, latch: Latch) -> None:
        end = None
        while not latch.wait(LOOK):
            if self.is_stopping:
                end = time.monotonic() + self._drain + PATIENCE if end is None else end
                if time.monotonic() >= end:
                    return

    def _await_closed(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        while not self.closed.wait(LOOK):
            if time.monotonic() >= end:
                self.log.error(
                    "the server has not closed its sockets %g seconds after it began to stop; "
                    "its thread is left running",
                    timeout,
                )
                return
            if not (self._is_begun or self._claims[0].gate.locked()):
                # An exception ended start() before the keeper existed. If the keeper appears after
                # all, it checks the request before it does anything.
                self.closed.set()

    # For the keeper

    def _begin(self, context: contextvars.Context) -> None:
        self._keeper = threading.Thread(
            target=context.run, args=(self._run,), name="tomada.Server", daemon=True
        )
        try:
            start_thread(self._keeper)
        except BaseException as error:  # noqa: BLE001 - calls that wait for the server raise it
            self.error = error
            self._end()

    def _run(self) -> None:
        self._is_begun = True
        self.own_threads.add(threading.get_ident())
        try:
            if not self.is_stopping:
                self._keep()
        except BaseException as error:  # noqa: BLE001 - calls that wait for the server raise it
            self.error = error
        finally:
            self.own_threads.discard(threading.get_ident())
            self._end()

    def _end(self) -> None:
        self.ready.clear()
        self.closed.set()
        self._prepared.set()
        self._settled.set()
        self.notify()

    def launch_by_starter(self, launch: Callable[[], None]) -> bool:
        """Have the starting thread call a function; return whether it did.

        The function forks in that thread, so that workers get the thread's local data, as in any
        forked process.
        """
        self.log.flush()  # no fork while a thread writes
        self._launch = launch
        self._prepared.set()
        patience = round(ABANDON / LOOK)
        while self._is_launched is None and self._claims[0].gate.locked() and patience:
            self.wait(LOOK)
            # The starting thread may be in a signal handler that waits for the server to end.
            patience -= self.is_stopping
        return self._is_launched is True

    def set_ready(self) -> None:
        """Let :meth:`start` return."""
        if not self.is_stopping:
            self.ready.set()
        self._settled.set()

    def count_replacement(self, *, has_failed: bool = False) -> None:
        """Record that workers were replaced or could not be, or that there are none to replace."""
        self.has_failed_to_replace = has_failed
        self.replacements += 1
        self.notify()

    def wait(self, timeout: float | None = None) -> None:
        """Wait for a notification."""
        try:
            self._notes.get(timeout=None if timeout is None else max(0.0, min(timeout, 1e6)))
            while True:
                self._notes.get_nowait()
        except queue.Empty:
            pass

    def notify(self) -> None:
        """Wake the keeper, and signal the other wake-ups."""
        self._notes.put(None)
        for wakeup in self.wakeups.copy():
            wakeup.notify()
