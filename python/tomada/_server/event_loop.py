"""A worker on an event loop, which runs the calls to an async handler as tasks."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import math
import sys
from typing import TYPE_CHECKING, Any

from tomada._asyncio.read_watch import watch_of
from tomada._server.context import GRACE
from tomada._server.loops import loop_factory

if TYPE_CHECKING:
    from collections.abc import Callable

    from tomada import _core
    from tomada._asyncio.read_watch import ReadWatch, WindowWatch
    from tomada._server.context import Context
    from tomada._server.lifespan import Lifespan
    from tomada._server.wakeup import Wakeup

# The results of ServerCore.receive_once(): see its documentation.
WAIT, POLL, AGAIN, FULL, PAUSE, END = range(6)

# How often to check for drops and errors, in seconds.
TICK = 1.0
# How long to wait after consecutive errors, in seconds.
ERROR_PAUSE = 0.01
# How often to retry replies that found the send buffer full, in seconds.
RETRY = 0.001
# If a socket that refuses new datagrams has received none for this long, none are in transit.
SETTLE = 0.002
# The longest time that the timers of every loop accept, in seconds.
LONGEST_TIMER = 1e6
# How long cancelled tasks may take to end, in seconds.
CANCELLING = GRACE / 2


class EventLoopWorker:
    """Serves on an event loop of its own, until the core is told to stop.

    The core receives when the loop reports that the socket is readable, or when a handler call
    ends that blocked further ones. While the maximum number of calls is under way, the loop does
    not watch the socket.

    :param begin: Called once the lifespan is entered; returns whether to serve.
    :param end: Called before the lifespan is left, with the number of received datagrams that were
        not handled, and the reason, or ``None`` if draining took too long.
    :param on_exit: Called with each exception of a handler that ends the program. It must make the
        core end.
    :param wakeup: Becomes readable when a signal arrives.
    """

    def __init__(  # noqa: PLR0913 - the parts of a worker
        self,
        context: Context,
        core: _core.ServerCore,
        lifespan: Lifespan,
        begin: Callable[[], bool],
        end: Callable[[int, str | None], object],
        *,
        on_exit: Callable[[BaseException], object],
        wakeup: Wakeup | None,
    ) -> None:
        self._context, self._core, self._lifespan = context, core, lifespan
        self._begin, self._end, self._wakeup = begin, end, wakeup
        self._on_exit = on_exit
        self._loop: asyncio.AbstractEventLoop
        self._watch: ReadWatch | WindowWatch
        self._is_watched = False
        self._is_full = False  # receive again when a call ends
        self._is_stopping = self._is_overdue = False
        self._is_quiet = False  # while stopping: the last receive found nothing
        self._is_received = False  # there is nothing left to receive
        self._timers: dict[str, asyncio.Handle] = {}
        self._sessions_due = math.inf  # when to retransmit a handshake message
        self._changed = asyncio.Event()
        self._error: BaseException | None = None
        self._cause: str | None = None  # why datagrams are unanswered; None: not enough time

    def run(self) -> None:
        """Serve, and raise the exception that ended the worker, if any.

        An exception that ends the program, such as :class:`SystemExit` in a handler, stops the
        worker in order: it handles the other datagrams, and completes their calls.
        """
        with asyncio.Runner(loop_factory=loop_factory(self._context.settings.loop)) as runner:
            self._loop = loop = runner.get_loop()
            main = loop.create_task(self._main(), name="tomada.Server")
            while not main.done():
                try:
                    loop.run_until_complete(main)
                except BaseException as error:
                    if main.done() or loop.is_closed():
                        raise
                    self._fail(error)
        if self._error is not None:
            raise self._error

    async def _main(self) -> None:
        async with self._lifespan.entered_on_loop():
            if self._begin():
                await self._serve()

    async def _serve(self) -> None:
        core, loop, wakeup = self._core, self._loop, self._wakeup
        options: dict[str, Any] = {"loop": loop}
        if sys.version_info >= (3, 12):
            options["eager_start"] = True
        # The core calls both in the context of a task or of another thread, but they start handler
        # calls, which need the worker's own context.
        scope = contextvars.copy_context()
        tell_reply = functools.partial(loop.call_soon, self._end_turn, context=scope)
        take_stop = functools.partial(scope.run, self._take_stop)
        most = self._context.settings.max_concurrency
        core.attach(loop, options, most, tell_reply, take_stop, self._fail)
        self._watch = watch_of(loop, self._context.listeners.of(core.worker))
        if wakeup is not None:
            loop.add_reader(wakeup.fileno(), wakeup.clear)
        try:
            self._set_watched(is_watched=True)
            self._tick()
            await self._until_over()
        finally:
            if wakeup is not None:
                loop.remove_reader(wakeup.fileno())
            for timer in self._timers.values():
                timer.cancel()
            self._end_receiving()
            self._watch.close()
            self._detach()

    async def _until_over(self) -> None:
        """Wait until the server has stopped and all handler calls have ended."""
        cancelled = None
        while not (self._is_overdue or (self._is_received and self._core.under_way == 0)):
            try:
                await self._next_change()
            except asyncio.CancelledError as error:  # from a task group of the lifespan
                if cancelled is not None:
                    raise
                cancelled = error
                self._core.retire(self._context.settings.drain)
        self._end_receiving()
        if self._core.under_way:
            self._core.cancel_tasks()
            self._is_overdue = False
            self._call_later("deadline", CANCELLING, self._expire)
            while self._core.under_way and not self._is_overdue:
                await self._next_change()
        if cancelled is not None:
            raise cancelled

    async def _next_change(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    def _detach(self) -> None:
        try:
            unanswered = self._core.detach()
        except Exception as error:  # noqa: BLE001 - run() raises it
            self._fail(error)
        else:
            self._end(unanswered, self._cause)

    # Callbacks of the loop

    def _receive(self) -> None:
        """Receive once, and schedule the next receive."""
        if self._is_received:
            return
        if (planned := self._timers.pop("receive", None)) is not None:
            planned.cancel()  # otherwise, each turn would receive once more than the last
        try:
            result = self._core.receive_once()
            if self._context.settings.dtls is not None:
                self._set_session_timer()
        except BaseException as error:  # noqa: BLE001 - run() raises it
            self._fail(error)
            if self._is_received:
                return
            result = AGAIN
        is_quiet, self._is_quiet = self._is_quiet, False
        self._is_full = result == FULL
        self._set_watched(is_watched=result in (WAIT, POLL, AGAIN))
        if result == AGAIN or (result == POLL and self._is_stopping):
            self._timers["receive"] = self._loop.call_soon(self._receive)
        elif result == PAUSE:
            self._call_later("receive", ERROR_PAUSE, self._receive)
        elif result == END or (result == WAIT and self._is_stopping and is_quiet):
            self._end_receiving()
        elif result == WAIT and self._is_stopping:
            self._is_quiet = True
            self._set_watched(is_watched=False)
            self._call_later("receive", SETTLE, self._receive)

    def _end_receiving(self) -> None:
        self._is_received = True
        self._set_watched(is_watched=False)
        self._changed.set()

    def _end_turn(self) -> None:
        """Send the replies of this turn; receive again if there were too many calls to do so."""
        try:
            has_waiting = self._core.end_turn()
        except BaseException as error:  # noqa: BLE001 - run() raises it
            self._fail(error)
            return
        if has_waiting:
            self._call_later("send", RETRY, self._end_turn)
        if self._is_full:
            self._receive()
        self._changed.set()

    def _tick(self) -> None:
        try:
            self._core.tick()
        except BaseException as error:  # noqa: BLE001 - run() raises it
            self._fail(error)
        if self._core.is_stopping and not self._is_stopping:
            self._take_stop()
        self._call_later("tick", TICK, self._tick)

    def _set_session_timer(self) -> None:
        """Schedule the next retransmission, because a receive may have sent handshake messages."""
        due = self._core.tick_sessions()
        if due is not None and (when := self._loop.time() + due) < self._sessions_due:
            self._sessions_due = when
            self._call_later("sessions", due, self._on_session_timer)

    def _on_session_timer(self) -> None:
        self._sessions_due = math.inf
        try:
            self._set_session_timer()
        except BaseException as error:  # noqa: BLE001 - run() raises it
            self._fail(error)

    def _take_stop(self) -> None:
        """Set the deadline for draining, and keep receiving until nothing is left."""
        self._is_stopping = True
        left = self._core.time_left
        if left is not None:
            self._call_later("deadline", min(left, LONGEST_TIMER), self._expire)
        self._is_quiet = False  # so that the socket must be quiet for SETTLE seconds from now on
        self._receive()

    def _expire(self) -> None:
        self._is_overdue = True
        self._changed.set()

    def _fail(self, error: BaseException) -> None:
        """Record an exception for :meth:`run` to raise, and stop receiving.

        If a handler ended the program, the worker continues until the core is told to end.
        """
        if self._error is None:
            self._error = error
        if isinstance(error, SystemExit | KeyboardInterrupt):
            self._on_exit(error)
            return
        if self._cause is None:
            self._cause = f"serving has failed: {error!r}"
        self._end_receiving()
        self._core.retire(self._context.settings.drain)

    def _set_watched(self, *, is_watched: bool) -> None:
        if is_watched and not self._is_watched:
            self._watch.start(self._receive)
        elif self._is_watched and not is_watched:
            self._watch.stop()
        self._is_watched = is_watched

    def _call_later(self, what: str, seconds: float, callback: Callable[[], object]) -> None:
        """Set a timer, and cancel the previous one of this name."""
        if (previous := self._timers.get(what)) is not None:
            previous.cancel()
        self._timers[what] = self._loop.call_later(seconds, callback)
