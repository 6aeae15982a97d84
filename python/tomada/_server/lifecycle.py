"""When a server starts, runs and stops, whoever asks for it, and whatever they interrupt."""

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
from tomada._server.wakeup import Latch, Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable

State: TypeAlias = Literal["created", "starting", "running", "draining", "stopped"]

# So many seconds a call waits for the end of what it has aborted.
PATIENCE = 10.0
# So many seconds an abandoned start waits for the thread that has begun it.
ABANDON = 1.0
# How often it looks whether that thread is still about it.
LOOK = 0.05


class Claim:
    """What has the server: a call of :meth:`Lifecycle.start`, or in its place one of ``stop``."""

    def __init__(self) -> None:
        self.process, self.thread = os.getpid(), threading.get_ident()
        # Held for as long as the call runs. `with` releases a lock in one step, which no signal
        # handler interrupts.
        self.gate = threading.Lock()


# The server was stopped before it was started.
STOPPED = Claim()


class StoppedWhileStartingError(RuntimeError):
    """What :meth:`Lifecycle.start` raises when another call has stopped the server."""

    def __init__(self) -> None:
        super().__init__("the server was stopped while it was starting; make another one")


class Lifecycle:
    """The states of a server: created, starting, running, draining, stopped.

    A thread of its own, the *keeper*, does the work: it opens and closes, starts and stops. Python
    runs signal handlers in the main thread only, so that none interrupts the keeper, and no
    exception of a handler (Ctrl-C, an alarm) leaves its work half done. The other methods set a
    request, wake the keeper and wait for it. They may be called from any thread, from a signal
    handler that interrupts one of them at any line, and from the server's own threads.

    The state is not stored. It follows from facts, each of which becomes true once, by one step
    that nothing can interrupt: the first claim, the requests, and three latches. There is no lock
    that an interrupted call could hold.

    :param keep: The keeper's work: it opens, calls :meth:`launch_by_starter` and
        :meth:`set_ready`, returns when :attr:`is_stopping`, and leaves nothing open.
    """

    def __init__(self, keep: Callable[[], None]) -> None:
        self._keep = keep
        self._claims: list[Claim] = []  # the first has the server
        self._is_stopping = self._is_aborted = False
        self._prepared, self._settled = Latch(), Latch()
        self._keeper: threading.Thread | None = None
        self._is_begun = False
        self._launch: Callable[[], None] | None = None
        # Whether the thread that starts has called it, or has passed it over.
        self._is_launched: bool | None = None
        # SimpleQueue.put() may interrupt itself, and every other method.
        self._notes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.own_threads: set[int] = set()
        self.wakeups: list[Wakeup] = []
        """What to wake, besides the keeper, when something has changed."""
        self.ready = Latch()
        self.closed = Latch()
        self.error: BaseException | None = None
        """What has ended the server, or kept it from starting."""

    @property
    def state(self) -> State:
        """What the server is about."""
        if self.closed.is_set() or STOPPED in self._claims[:1]:
            return "stopped"
        if not self._claims:
            return "created"
        if self._is_stopping or self._is_aborted:
            return "draining"
        return "running" if self.ready.is_set() else "starting"

    @property
    def is_stopping(self) -> bool:
        """Whether the server was asked to end, by :meth:`stop` or :meth:`abort`."""
        return self._is_stopping or self._is_aborted

    @property
    def is_aborted(self) -> bool:
        """Whether it is to end at once, without an answer to what is queued."""
        return self._is_aborted

    @property
    def is_elsewhere(self) -> bool:
        """Whether another process has it, of which this one is a fork: there is no keeper here."""
        first = next(iter(self._claims), STOPPED)
        return first is not STOPPED and first.process != os.getpid()

    # For those who have a server

    def start(self) -> None:
        """Have the keeper start the server, and return when it is ready.

        Whatever is raised, by the keeper or by a signal handler, the server is stopped then.
        """
        claim = Claim()
        try:
            with claim.gate:
                self._claims.append(claim)
                self._check_first(claim)
                self._start()
        except BaseException:
            if claim.gate.locked():
                claim.gate.release()  # a trace function can raise where no signal handler can
            if self._claims[:1] == [claim]:
                self.abort()
            raise

    def _check_first(self, claim: Claim) -> None:
        if self._claims[0] is STOPPED:
            raise RuntimeError("the server was stopped before it was started; make another one")
        if self._claims[0] is not claim:
            raise RuntimeError("a server is started once; make another one")

    def _start(self) -> None:
        # Thread.start() breaks the thread where a signal handler interrupts it with an exception.
        # This starts a thread in one step, and that one starts the keeper.
        try:
            _thread.start_new_thread(self._begin, (contextvars.copy_context(),))
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
        self._prepared.wait()
        launch = self._launch
        if launch is not None and not self.is_stopping:
            launch()
            self._is_launched = True
        else:
            self._is_launched = False
        self.notify()
        self._settled.wait()
        if self.is_stopping and self.error is None:
            self.closed.wait()
        if self.error is not None:
            raise self.error
        if self.is_stopping:
            raise StoppedWhileStartingError

    def request_stop(self) -> None:
        """Ask for an orderly end, and return at once."""
        self._is_stopping = True
        self.notify()

    def stop(self) -> None:
        """Have the keeper end the server in good order, and wait for that.

        It does not wait where that would be for ever: in the server's own threads, and in a signal
        handler that has interrupted :meth:`start`, which goes on after it and raises. It does
        nothing in a process that was forked after the start.
        """
        try:
            if self.is_elsewhere or self._is_unstarted():
                return
            self.request_stop()
            if not self._is_inside():
                self._await_end()
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
        """Say whether the server was not started, and see to it that it never is."""
        if not self._claims:
            self._claims.append(STOPPED)
        if self._claims[0] is STOPPED:
            self.closed.set()
        return self._claims[0] is STOPPED

    def _is_inside(self) -> bool:
        """Say whether the calling thread is one that the keeper waits for."""
        thread, claim = threading.get_ident(), self._claims[0]
        return thread in self.own_threads or (claim.thread == thread and claim.gate.locked())

    def _await_end(self, timeout: float | None = None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        while not self.closed.wait(LOOK) and (end is None or time.monotonic() < end):
            if not (self._is_begun or self._claims[0].gate.locked()):
                # An exception has ended start() before there was a keeper. Should there be one
                # after all, it looks at the request before it does anything.
                self.closed.set()
        keeper = self._keeper
        if keeper is not None and keeper.ident is not None:
            keeper.join(ABANDON)  # which has nothing more to do

    # For the keeper

    def _begin(self, context: contextvars.Context) -> None:
        self._keeper = threading.Thread(
            target=context.run, args=(self._run,), name="tomada.Server", daemon=True
        )
        try:
            start_thread(self._keeper)
        except BaseException as error:  # noqa: BLE001 - it is raised where the server is waited for
            self.error = error
            self._end()

    def _run(self) -> None:
        self._is_begun = True
        self.own_threads.add(threading.get_ident())
        try:
            if not self.is_stopping:
                self._keep()
        except BaseException as error:  # noqa: BLE001 - it is raised where the server is waited for
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
        """Have the thread that starts call a function, and say whether it has.

        It forks there, so that a worker has the thread's local data, as any forked process does.
        """
        self._launch = launch
        self._prepared.set()
        patience = round(ABANDON / LOOK)
        while self._is_launched is None and self._claims[0].gate.locked() and patience:
            self.wait(LOOK)
            # It may be in a signal handler that waits for the end of the server.
            patience -= self.is_stopping
        return self._is_launched is True

    def set_ready(self) -> None:
        """Let the start return."""
        if not self.is_stopping:
            self.ready.set()
        self._settled.set()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until something has changed."""
        try:
            self._notes.get(timeout=None if timeout is None else max(0.0, min(timeout, 1e6)))
            while True:
                self._notes.get_nowait()
        except queue.Empty:
            pass

    def notify(self) -> None:
        """Wake the keeper, and what else waits for the server."""
        self._notes.put(None)
        for wakeup in self.wakeups.copy():
            wakeup.notify()
