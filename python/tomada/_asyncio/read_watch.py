"""Watching a socket for datagrams and errors, or for room."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, WeakKeyDictionary, ref

from tomada import _core
from tomada._asyncio.owned import unchecked

if TYPE_CHECKING:
    from collections.abc import Callable

# A loop keeps its hub alive until it is closed.
_hubs: WeakKeyDictionary[asyncio.AbstractEventLoop, ReferenceType[_core.ReadHub]]
_hubs = WeakKeyDictionary()


class ReadWatch:
    """Calls back while a socket has datagrams or an error.

    A loop of asyncio's own watches the socket's descriptor. libuv (uvloop) stops watching a
    descriptor that has an error, such as an ICMP message brings, and does not say so:
    ``uv__poll_io`` in its ``unix/poll.c``. A send may have taken the error before the callback
    runs, so nothing can tell when to watch again. Such a loop therefore watches an ``epoll`` of all
    its sockets, which becomes readable and never has an error.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        self._fd = fd
        self._loop: Any = loop
        self._is_direct = isinstance(loop, asyncio.SelectorEventLoop)
        # A selector loop polls for events before it runs the tasks woken by the previous ones. So
        # the event after a wake-up is about the same datagram, which is received by then.
        self.repeats_events = self._is_direct
        if not self._is_direct:
            _hub(loop)

    def start(self, callback: Callable[..., object], *args: Any) -> None:
        """Call back whenever there is something."""
        if self._is_direct:
            self._loop._add_reader(self._fd, callback, *args)
        else:
            _hub(self._loop).add(self._fd, callback, *args)

    def stop(self) -> None:
        """Stop calling back. This comes before the descriptor is closed."""
        if self._is_direct:
            self._loop._remove_reader(self._fd)
        elif (hub := _known(self._loop)) is not None:  # otherwise the loop was closed
            hub.remove(self._fd)

    def close(self) -> None:
        """Release what watching needs, after it was stopped."""


class WindowWatch:
    """Calls back once for all datagrams of a window: ``socket.coalesce`` after the first one.

    The loop watches the socket until it has a datagram, and then only a timer. When that ends and
    the call has received the datagrams, and there were several, the next window begins at once. A
    loop's own timers would be too coarse: they count in milliseconds.
    """

    repeats_events = False

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: Any) -> None:
        self._sock = sock
        self._window = _core.ReceiveWindow()
        self._first_watch = ReadWatch(loop, sock._descriptor())
        self._timer_watch = ReadWatch(loop, self._window.fileno())
        self._is_open = False
        self._call: Callable[[], object]

    def start(self, callback: Callable[..., object], *args: Any) -> None:
        """Call back at the end of each window."""
        self._call = functools.partial(callback, *args)
        self._timer_watch.start(self._on_end)
        self._begin()

    def stop(self) -> None:
        """Stop calling back. This comes before the socket is closed."""
        if self._is_open:
            self._is_open = False
            self._window.close()
        else:
            self._first_watch.stop()
        self._timer_watch.stop()

    def close(self) -> None:
        """Release the timer, after this was stopped."""
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
            self._call()  # the last receive left some

    def _on_end(self) -> None:
        try:
            self._call()
        finally:
            # The call may have stopped this, or stopped and started it.
            if self._is_open:
                self._begin()


def watch_of(loop: asyncio.AbstractEventLoop, sock: Any) -> ReadWatch | WindowWatch:
    """Return what calls back when datagrams of a tomada socket are to be received."""
    return WindowWatch(loop, sock) if sock.coalesce else ReadWatch(loop, sock._descriptor())


class RoomWatch:
    """Calls back while a transport's socket has room for datagrams to send."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        self._fd = fd
        self._loop: Any = loop
        self._is_direct = isinstance(loop, asyncio.SelectorEventLoop)

    def start(self, callback: Callable[..., object]) -> None:
        """Call back whenever there is room."""
        loop = self._loop
        add = loop._add_writer if self._is_direct else unchecked(loop.add_writer)
        add(self._fd, callback)

    def stop(self) -> None:
        """Stop calling back. This comes before the descriptor is closed."""
        loop = self._loop
        remove = loop._remove_writer if self._is_direct else unchecked(loop.remove_writer)
        remove(self._fd)


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
