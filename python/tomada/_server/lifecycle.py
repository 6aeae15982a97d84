"""When a server starts, runs and stops, whoever asks for it, and whatever they interrupt."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Literal, TypeAlias

from tomada._server.wakeup import Latch, Wakeup

State: TypeAlias = Literal["created", "starting", "running", "draining", "stopped"]

# So many seconds a call waits for the end of what it has aborted.
PATIENCE = 10.0
# So many seconds an abandoned start waits for the thread that has begun it.
ABANDON = 1.0
# How often it looks whether that thread is still about it.
LOOK = 0.05

# In place of a start: the server was stopped before.
STOPPED = object()


class StoppedWhileStartingError(RuntimeError):
    """What :meth:`Lifecycle.start` raises when another call, or a signal, has stopped the server."""

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

    :param start_thread: Starts the keeper's thread.
    :param keep: The keeper's work: it opens, calls :meth:`launch_by_starter` and
        :meth:`set_ready`, returns when :attr:`is_stopping`, and leaves nothing open.
    """

    def __init__(
        self, keep: Callable[[], None], start_thread: Callable[[threading.Thread], None]
    ) -> None:
        self._keep = keep
        self._start_thread = start_thread
        self._claims: list[object] = []  # the first has the server
        self._is_stopping = self._is_aborted = False
        self._prepared, self._settled = Latch(), Latch()
        self._keeper: threading.Thread | None = None
        self._launch: Callable[[], None] | None = None
        # Whether the thread that starts has called it, or has passed it over.
        self._is_launched: bool | None = None
        # Held by the thread that starts, as long as it is in start(). `with` releases a lock in
        # one step, which no signal handler interrupts.
        self._gate = threading.Lock()
        self._starter = 0
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
        if self.closed.is_set() or self._claims[:1] == [STOPPED]:
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

    # For those who have a server

    def start(self) -> None:
        """Have the keeper start the server, and return when it is ready.

        Whatever is raised, by the keeper or by a signal handler, the server is stopped then.
        """
        token = object()
        try:
            self._claims.append(token)
            if self._claims[0] is not token:
                if self._claims[0] is STOPPED:
                    what = "the server was stopped before it was started"
                else:
                    what = "a server is started once"
                raise RuntimeError(f"{what}; make another one")
            self._starter = threading.get_ident()
            with self._gate:
                self._start()
        except BaseException:
            if self._claims[:1] == [token]:
                self.abort()
            raise

    def _start(self) -> None:
        keep = contextvars.copy_context().run
        self._keeper = threading.Thread(
            target=keep, args=(self._run,), name="tomada.Server", daemon=True
        )
        self._start_thread(self._keeper)
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
        handler that has interrupted :meth:`start`, which goes on after it and raises.
        """
        try:
            if not self._claims:
                self._claims.append(STOPPED)
            if self._claims[0] is STOPPED:
                self.closed.set()
                return
            self.request_stop()
            if self._is_inside():
                return
            self.closed.wait()
            self._join()
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Have the keeper end the server at once, and wait for that."""
        self._is_aborted = True
        self.notify()
        keeper = self._keeper
        if keeper is None or keeper.ident is None:
            # It has not begun. If it does now, it looks at the request first.
            self.closed.set()
        elif not self._is_inside(starting=True):
            self.closed.wait(PATIENCE)
            self._join()

    def _is_inside(self, *, starting: bool = False) -> bool:
        """Say whether the calling thread is one that the keeper waits for."""
        thread = threading.get_ident()
        if not starting and self._starter == thread and self._gate.locked():
            return True
        keeper = self._keeper
        return thread in self.own_threads or (keeper is not None and keeper.ident == thread)

    def _join(self) -> None:
        """Let the keeper's thread end, too, which has nothing more to do."""
        if self._keeper is not None and self._keeper.ident is not None:
            self._keeper.join(ABANDON)

    # For the keeper

    def _run(self) -> None:
        try:
            if not self.is_stopping:
                self._keep()
        except BaseException as error:  # noqa: BLE001 - it is raised where the server is waited for
            self.error = error
        finally:
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
        while self._is_launched is None and self._gate.locked() and patience:
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
