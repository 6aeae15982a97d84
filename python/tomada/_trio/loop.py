"""The part of an event loop's interface that transports use, on trio."""

from __future__ import annotations

import contextlib
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Awaitable, Callable, Generator

_logger = logging.getLogger("tomada")
_running: trio.lowlevel.RunVar[Loop] = trio.lowlevel.RunVar("tomada's loop")


class Future:
    """A result that a task waits for. The wait is a trio checkpoint."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self._is_cancelled = False
        self._result: Any = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        """Return whether there is a result, or the waiting task was cancelled."""
        return self._event.is_set() or self._is_cancelled

    def cancelled(self) -> bool:
        """Return whether the waiting task was cancelled before there was a result."""
        return self._is_cancelled

    def set_result(self, result: Any) -> None:
        """Wake the task with a result."""
        self._result = result
        self._event.set()

    def set_exception(self, error: BaseException) -> None:
        """Wake the task with an exception."""
        self._error = error
        self._event.set()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        try:
            await self._event.wait()
        except trio.Cancelled:
            self._is_cancelled = not self._event.is_set()
            raise
        if self._error is not None:
            raise self._error
        return self._result


class Handle:
    """A scheduled call, or one that is made whenever a descriptor is ready."""

    def __init__(
        self, wait: Callable[[], Awaitable[object]], *, repeats: bool, when: float = 0.0
    ) -> None:
        self._when = when
        self._wait = wait
        self._repeats = repeats
        self._scope = trio.CancelScope()

    def start(self, call: Callable[[], object]) -> None:
        """Wait in a system task, which ends with the program's main task."""
        trio.lowlevel.spawn_system_task(self._run, call)

    def cancel(self) -> None:
        """Stop making the call."""
        self._scope.cancel()

    def cancelled(self) -> bool:
        """Return whether :meth:`cancel` was called."""
        return self._scope.cancel_called

    def when(self) -> float:
        """Return the time that the call was scheduled for."""
        return self._when

    async def _run(self, call: Callable[[], object]) -> None:
        # The descriptor may be closed meanwhile.
        with self._scope, contextlib.suppress(trio.ClosedResourceError, OSError):
            while not self._scope.cancel_called:
                await self._wait()
                if not self._scope.cancel_called:
                    call()
                if not self._repeats:
                    return


class Loop:
    """Takes the place of an asyncio event loop in transports, endpoints and requests."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._readers: dict[int, Handle] = {}
        self._writers: dict[int, Handle] = {}

    @staticmethod
    def running() -> Loop:
        """Return the loop of the current trio run."""
        try:
            return _running.get()
        except LookupError:
            _running.set(loop := Loop())
            return loop

    @staticmethod
    def time() -> float:
        """Return the time of the clock in seconds."""
        return time.monotonic()

    @staticmethod
    def get_debug() -> bool:
        """Return whether debug mode is on: it never is."""
        return False

    @staticmethod
    def create_future() -> Any:
        """Return a new future."""
        return Future()

    def call_soon(
        self, call: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> None:
        """Call a function soon. Functions are called in the order in which they were passed."""
        if context is not None:
            args = (call, *args)
            call = context.run
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._guarded, call, args)

    def call_later(self, seconds: float, call: Callable[..., Any], *args: Any) -> Handle:
        """Call a function after some time."""
        when = self.time() + seconds
        handle = Handle(partial(trio.sleep, seconds), repeats=False, when=when)
        handle.start(lambda: self._guarded(call, args))
        return handle

    def call_at(self, when: float, call: Callable[..., Any], *args: Any) -> Handle:
        """Call a function at a given time of the clock."""
        return self.call_later(max(when - self.time(), 0.0), call, *args)

    def add_reader(self, fd: int, call: Callable[..., Any], *args: Any) -> None:
        """Call a function whenever a descriptor is readable."""
        self._watch(self._readers, fd, trio.lowlevel.wait_readable, call, args)

    def remove_reader(self, fd: int) -> bool:
        """Stop the calls that :meth:`add_reader` started."""
        return self._unwatch(self._readers, fd)

    def add_writer(self, fd: int, call: Callable[..., Any], *args: Any) -> None:
        """Call a function whenever a descriptor is writable."""
        self._watch(self._writers, fd, trio.lowlevel.wait_writable, call, args)

    def remove_writer(self, fd: int) -> bool:
        """Stop the calls that :meth:`add_writer` started."""
        return self._unwatch(self._writers, fd)

    def _watch(
        self,
        watches: dict[int, Handle],
        fd: int,
        wait: Callable[[int], Awaitable[object]],
        call: Callable[..., Any],
        args: Any,
    ) -> None:
        self._unwatch(watches, fd)
        watches[fd] = handle = Handle(lambda: wait(fd), repeats=True)
        handle.start(lambda: self._guarded(call, args))

    @staticmethod
    def _unwatch(watches: dict[int, Handle], fd: int) -> bool:
        handle = watches.pop(fd, None)
        if handle is not None:
            handle.cancel()
        return handle is not None

    def _guarded(self, call: Callable[..., Any], args: Any) -> None:
        """Call a function; an exception must not reach trio, which would end the program."""
        try:
            call(*args)
        except Exception as error:  # noqa: BLE001 - as for all callbacks of a loop
            self.call_exception_handler({"message": f"{call!r} failed", "exception": error})

    @staticmethod
    def call_exception_handler(context: dict[str, Any]) -> None:
        """Log an exception that cannot be raised to a caller."""
        _logger.error(context["message"], exc_info=context.get("exception"))
