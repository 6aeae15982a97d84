"""The lifespan of a worker: a context manager around the time in which it receives datagrams."""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tomada._server.context import Context, Logger

FAILED = "lifespan failed at the end of a worker"


class Lifespan:
    """A server's lifespan in one of its workers.

    However the worker ends, the lifespan is left as if its ``with`` block had succeeded, so the
    code after the ``yield`` of a generator runs even without ``try`` and ``finally``. Only a
    cancellation by the lifespan's own task group is passed to it, because the task group needs it.
    An exception raised while leaving is logged; one that ends the program is also raised.

    :param context: The server context; its ``lifespan`` is called here.
    :param worker: The worker's number.
    :raises TypeError: The function did not return a context manager.
    """

    def __init__(self, context: Context, worker: int, log: Logger) -> None:
        self._context, self._worker, self._log = context, worker, log
        self._manager: Any = contextlib.nullcontext()
        if context.settings.lifespan is not None:
            self._manager = context.settings.lifespan(context.server)
        kind = type(self._manager)
        if hasattr(kind, "__enter__") and hasattr(kind, "__exit__"):
            self.is_async = False
        elif hasattr(kind, "__aenter__") and hasattr(kind, "__aexit__"):
            self.is_async = True
        else:
            raise TypeError(
                f"lifespan must return a context manager, not {kind.__name__}: decorate it with "
                "contextlib.contextmanager or contextlib.asynccontextmanager"
            )

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Enter and leave the lifespan, without an event loop."""
        state = self._manager.__enter__()
        try:
            with self._holding(state):
                yield
        finally:
            try:
                self._manager.__exit__(None, None, None)
            except BaseException as error:
                self._log.exception(FAILED)
                if isinstance(error, SystemExit | KeyboardInterrupt):
                    raise

    @contextlib.asynccontextmanager
    async def entered_on_loop(self) -> AsyncIterator[None]:
        """Enter and leave the lifespan, on an event loop."""
        if not self.is_async:
            with self.entered():
                yield
            return
        state = await self._manager.__aenter__()
        try:
            with self._holding(state):
                yield
        except BaseException as error:
            if not await self._manager.__aexit__(type(error), error, error.__traceback__):
                raise
        else:
            try:
                await self._manager.__aexit__(None, None, None)
            except BaseException as error:
                self._log.exception(FAILED)
                if isinstance(error, SystemExit | KeyboardInterrupt):
                    raise

    @contextlib.contextmanager
    def _holding(self, state: object) -> Iterator[None]:
        if self._context.settings.lifespan is None:
            yield
            return
        self._context.states[self._worker] = state
        try:
            yield
        finally:
            del self._context.states[self._worker]


def check_lifespan(function: Any) -> None:
    """Raise :class:`TypeError` if a function cannot make context managers."""
    if function is not None and not callable(function):
        raise TypeError(f"lifespan must be callable or None, not {type(function).__name__}")
    for is_kind, decorator in (
        (inspect.isgeneratorfunction, "contextmanager"),
        (inspect.isasyncgenfunction, "asynccontextmanager"),
    ):
        if is_kind(function):
            raise TypeError(
                f"lifespan is a generator function: decorate it with contextlib.{decorator}"
            )
    if inspect.iscoroutinefunction(function):
        raise TypeError(
            "lifespan is a coroutine function: make it a generator, and decorate it with "
            "contextlib.asynccontextmanager"
        )
