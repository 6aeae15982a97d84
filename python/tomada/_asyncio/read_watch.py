"""Watches a socket for datagrams and errors, or for room to send."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, WeakKeyDictionary, ref

from tomada import _core
from tomada._asyncio.owned import unchecked

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

# A loop's reader callback keeps its hub alive until the loop is closed.
_hubs: WeakKeyDictionary[asyncio.AbstractEventLoop, ReferenceType[_core.ReadHub]]
_hubs = WeakKeyDictionary()


class ReadWatch:
    """Calls back while a socket has datagrams or an error.

    A selector loop watches the socket's descriptor itself. libuv (uvloop) silently stops watching a
    descriptor that has an error, for example from an ICMP message: see ``uv__poll_io`` in its
    ``unix/poll.c``. By the time the callback runs, a send may have cleared the error, so the
    callback cannot tell whether it must start watching again. Any other loop therefore watches an
    ``epoll`` of all its sockets, which becomes readable but never has an error.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        self._fd = fd
        self._loop: Any = loop
        self._is_direct = isinstance(loop, asyncio.SelectorEventLoop)
        # A subclass may replace the method by one that does not take a context.
        self._takes_context = getattr(type(loop), "_add_reader", None) is _core.LoopCore._add_reader
        # A selector loop polls for events before it runs the tasks that the previous events woke.
        # So the first event after a wake-up is about the same datagram, which the task has received
        # by the time the callback runs.
        self.repeats_events = self._is_direct
        if not self._is_direct:
            _hub(loop)

    def start(self, callback: Callable[[], object], context: Context | None = None) -> None:
        """Call back, in a context, whenever the socket has a datagram or an error."""
        if self._takes_context:
            self._loop._add_reader(self._fd, callback, context=context)
        elif self._is_direct:
            self._loop._add_reader(self._fd, *_in(context, callback))
        else:
            _hub(self._loop).add(self._fd, *_in(context, callback))

    def stop(self) -> None:
        """Stop calling back. Call this before the descriptor is closed."""
        if self._is_direct:
            self._loop._remove_reader(self._fd)
        elif (hub := _known(self._loop)) is not None:  # otherwise the loop was closed
            hub.remove(self._fd)

    def close(self) -> None:
        """Do nothing: this watch holds no resources."""


class WindowWatch:
    """Calls back once per window, which ends ``socket.coalesce`` seconds after its first datagram.

    The loop watches the socket until a datagram arrives, and then only a timer. When the timer
    expires, the callback receives the datagrams; if there were several, the next window begins at
    once. The loop's own timers are too coarse: they count in milliseconds.
    """

    repeats_events = False

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: Any) -> None:
        self._sock = sock
        self._window = _core.ReceiveWindow()
        self._first_watch = ReadWatch(loop, sock._descriptor())
        self._timer_watch = ReadWatch(loop, self._window.fileno())
        self._is_open = False
        self._call: Callable[[], object]

    def start(self, callback: Callable[[], object], context: Context | None = None) -> None:
        """Call back, in a context, at the end of each window."""
        call, *args = _in(context, callback)
        self._call = functools.partial(call, *args)
        self._timer_watch.start(self._on_end)
        self._begin()

    def stop(self) -> None:
        """Stop calling back. Call this before the socket is closed."""
        if self._is_open:
            self._is_open = False
            self._window.close()
        else:
            self._first_watch.stop()
        self._timer_watch.stop()

    def close(self) -> None:
        """Release the timer, after :meth:`stop`."""
        del self._window

    def _begin(self) -> None:
        self._is_open = self._window.renew(self._sock)
        if not self._is_open:
            self._first_watch.start(self._on_first)

    def _on_first(self) -> None:
        if self._window.open(self._sock):
            self._is_open = True
            self._first_watch.stop()
        else:
            self._call()  # the last receive left datagrams behind

    def _on_end(self) -> None:
        try:
            self._call()
        finally:
            # The callback may have stopped this watch, or stopped and restarted it.
            if self._is_open:
                self._begin()


def watch_of(loop: asyncio.AbstractEventLoop, sock: Any) -> ReadWatch | WindowWatch:
    """Return a watch that calls back when a tomada socket has datagrams to receive."""
    return WindowWatch(loop, sock) if sock.coalesce else ReadWatch(loop, sock._descriptor())


def watch_for_room(loop: Any, fd: int, callback: Callable[..., object]) -> None:
    """Call back whenever a transport's socket has room to send datagrams."""
    is_direct = isinstance(loop, asyncio.SelectorEventLoop)
    (loop._add_writer if is_direct else unchecked(loop.add_writer))(fd, callback)


def stop_watching_for_room(loop: Any, fd: int) -> None:
    """Stop calling back. Call this before the descriptor is closed."""
    is_direct = isinstance(loop, asyncio.SelectorEventLoop)
    (loop._remove_writer if is_direct else unchecked(loop.remove_writer))(fd)


def _in(context: Context | None, callback: Callable[[], object]) -> tuple[Any, ...]:
    """Return a function that calls back in a context, and its arguments."""
    return (callback,) if context is None else (context.run, callback)


def _hub(loop: asyncio.AbstractEventLoop) -> _core.ReadHub:
    hub = _known(loop)
    if hub is None:
        hub = _core.ReadHub()
        loop.add_reader(hub.fileno(), hub.ready)
        _hubs[loop] = ref(hub)
    return hub


def _known(loop: asyncio.AbstractEventLoop) -> _core.ReadHub | None:
    known = _hubs.get(loop)
    return None if known is None else known()
