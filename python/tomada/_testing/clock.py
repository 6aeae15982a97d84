"""A clock for asyncio that skips waiting."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING, Any, TypeVar

from tomada.asyncio import EventLoop

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

Result = TypeVar("Result")


class VirtualClock:
    """A clock for an event loop: its time jumps to the next timer when nothing else is ready.

    Sleeps, timeouts and :meth:`~asyncio.loop.call_later` take no real time, but happen in order;
    everything else, such as running code, takes no virtual time. So a test with thirty seconds of
    retries takes milliseconds, and its timing is the same in every run.

    The loop's timers follow the virtual clock; :func:`time.monotonic` does not. Combine the clock
    with a :func:`~tomada.testing.network`, whose delays are timers of the loop. Sockets work too,
    but the clock may jump while their datagrams are in flight: pass ``patience`` if a peer is in
    another thread or process. While a function runs in :meth:`~asyncio.loop.run_in_executor` or
    :func:`asyncio.to_thread`, the clock stands still.

    :param patience: How long to wait for descriptors before the clock jumps, in real seconds.
    """

    def __init__(self, *, patience: float = 0.0) -> None:
        self._now = 0.0
        self._patience = patience
        # The number of functions that are running in threads of executors.
        self._threads = 0

    def time(self) -> float:
        """Return the virtual time in seconds. It starts at 0 or, with :meth:`on`, at the loop's."""
        return self._now

    def run(self, main: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine on a new loop with this clock, like :func:`asyncio.run`."""
        with asyncio.Runner(loop_factory=lambda: VirtualClockLoop(clock=self)) as runner:
            return runner.run(main)

    @contextlib.contextmanager
    def on(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Give this clock to a loop that is already running, until the end of the block.

        :raises TypeError: The loop is neither a selector loop of asyncio nor one of tomada's.
        """
        if not isinstance(loop, asyncio.SelectorEventLoop):
            raise TypeError(f"a virtual clock needs a loop of asyncio or tomada, not {loop!r}")
        self._now = loop.time()
        self.attach(loop)
        try:
            yield
        finally:
            # Instance attributes hide the methods of the classes.
            patched: Any = loop
            del patched.time, patched.run_in_executor, patched._selector.select
            del patched.shutdown_default_executor

    def attach(self, loop: Any) -> None:
        """Give this clock to a loop."""
        select, run_in_executor = loop._selector.select, loop.run_in_executor
        shutdown_default_executor = loop.shutdown_default_executor

        def jumping(timeout: float | None = None) -> Any:
            if timeout is None or timeout <= 0:
                return select(timeout)
            if self._threads:
                return select(None)  # a thread is about to call the loop
            ready = select(self._patience)
            if not ready:
                self._jump(loop, timeout)
            return ready

        def counting(executor: Any, function: Any, *args: Any) -> Any:
            future = run_in_executor(executor, function, *args)
            self._threads += 1
            future.add_done_callback(self._thread_ended)
            return future

        async def waiting(*timeout: float | None) -> None:  # before Python 3.12, it has no timeout
            self._threads += 1  # the executor's threads end in real time
            try:
                await shutdown_default_executor(*timeout)
            finally:
                self._threads -= 1

        loop._selector.select = jumping
        loop.shutdown_default_executor = waiting
        loop.run_in_executor = counting
        loop.time = self.time

    def _thread_ended(self, _: object) -> None:
        self._threads -= 1

    def _jump(self, loop: Any, seconds: float) -> None:
        """Advance by the given time in seconds, but not past the next timer."""
        due = loop._scheduled[0].when() if loop._scheduled else math.inf
        if due - self._now > seconds:  # a loop waits for at most a day
            self._now += seconds
            return
        self._now = due
        if due + loop._clock_resolution <= due:
            # After months, the clock's resolution is finer than a float's, and the timer would not
            # count as due.
            self._now = math.nextafter(due, math.inf)


class VirtualClockLoop(EventLoop):
    """An event loop with a :class:`VirtualClock`, which starts at 0.

    Use it with ``asyncio.Runner(loop_factory=VirtualClockLoop)``, or :func:`run`.

    :param clock: The clock; by default, a new one.
    """

    def __init__(self, *, clock: VirtualClock | None = None) -> None:
        super().__init__()
        self.clock = VirtualClock() if clock is None else clock
        self.clock.attach(self)


def run(main: Coroutine[Any, Any, Result], *, patience: float = 0.0) -> Result:
    """Run a coroutine on a loop with a :class:`VirtualClock`, like :func:`asyncio.run`."""
    return VirtualClock(patience=patience).run(main)
