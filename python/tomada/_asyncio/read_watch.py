"""The descriptor that a loop watches for a socket's datagrams and errors."""

from __future__ import annotations

import asyncio
import contextlib
import select
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class ReadWatch:
    """A descriptor that is readable while a socket has datagrams or an error.

    On a loop of asyncio's own this is the socket's descriptor. libuv (uvloop) stops watching a
    descriptor that has an error, such as an ICMP message brings, and does not say so:
    ``uv__poll_io`` in its ``unix/poll.c``. A send may have taken the error before the callback
    runs, so nothing can tell when to watch again. Such a loop therefore watches an ``epoll`` of the
    socket alone, which becomes readable and never has an error.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        self._loop: Any = loop
        self._epoll: select.epoll | None = None
        self._fd = fd
        if not isinstance(loop, asyncio.SelectorEventLoop):
            self._epoll = select.epoll()
            try:
                self._epoll.register(fd, select.EPOLLIN)
            except BaseException:
                self._epoll.close()
                raise
            self._fd = self._epoll.fileno()

    @property
    def fd(self) -> int:
        """The descriptor for the loop to watch."""
        return self._fd

    def start(self, callback: Callable[..., object], *args: Any) -> None:
        """Call back whenever there is something."""
        self._loop.add_reader(self._fd, callback, *args)

    def stop(self) -> None:
        """Stop calling back."""
        self._loop.remove_reader(self._fd)

    def close(self) -> None:
        """Close the descriptor, if it is not the socket's. The watch must have been stopped."""
        self._loop = None
        if self._epoll is not None:
            with contextlib.suppress(OSError):
                self._epoll.close()
