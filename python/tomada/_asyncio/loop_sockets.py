"""``sock_recvfrom``, ``sock_recvfrom_into`` and ``sock_sendto`` for loops that lack them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tomada._asyncio.owned import check, guard
from tomada._asyncio.read_watch import ReadWatch
from tomada._asyncio.readiness import Readiness

if TYPE_CHECKING:
    import socket as _std
    from collections.abc import Callable


class LoopSockets:
    """The methods of :class:`asyncio.loop` that receive and send datagrams over a socket."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop: Any = loop
        # The readiness that tasks wait for, by descriptor.
        self._readiness: dict[int, Readiness] = {}
        # The tasks that wait for room to send, by descriptor.
        self._rooms: dict[int, set[asyncio.Future[None]]] = {}

    def install(self) -> None:
        """Add these methods to the loop, and protect its transports' descriptors."""
        guard(self._loop)
        self._loop.sock_recvfrom = self.sock_recvfrom
        self._loop.sock_recvfrom_into = self.sock_recvfrom_into
        self._loop.sock_sendto = self.sock_sendto

    async def sock_recvfrom(self, sock: _std.socket, bufsize: int) -> Any:
        """Receive a datagram, like :meth:`asyncio.loop.sock_recvfrom`. Cancelling loses nothing."""
        return await self.receive(sock, sock.recvfrom, bufsize)

    async def sock_recvfrom_into(self, sock: _std.socket, buf: Any, nbytes: int = 0) -> Any:
        """Receive a datagram into a buffer, like :meth:`asyncio.loop.sock_recvfrom_into`."""
        return await self.receive(sock, sock.recvfrom_into, buf, nbytes or len(buf))

    async def sock_sendto(self, sock: _std.socket, data: Any, address: Any) -> int:
        """Send a datagram, like :meth:`asyncio.loop.sock_sendto`."""
        self._check(sock)
        while True:
            try:
                return sock.sendto(data, address)
            except (BlockingIOError, InterruptedError):
                pass
            await self._wait_for_room(sock.fileno())

    async def receive(self, sock: Any, receive: Callable[..., Any], *args: Any) -> Any:
        """Call a method that receives, as soon as there is something to receive."""
        self._check(sock)
        while True:
            try:
                received = receive(*args)
            except (BlockingIOError, InterruptedError):
                pass
            else:
                others = self._readiness.get(sock.fileno())
                if others is not None and getattr(sock, "pending", False):
                    others.wake()  # the kernel does not report datagrams in the backlog
                return received
            await self._wait(sock.fileno())

    async def _wait(self, fd: int) -> None:
        """Wait until a descriptor is readable."""
        check(self._loop, fd)
        if fd not in self._readiness:
            watch = ReadWatch(self._loop, fd)
            self._readiness[fd] = Readiness(self._loop, watch, lasts=False)
        readiness = self._readiness[fd]
        try:
            await readiness.wait()
        finally:
            if not readiness.waiters and self._readiness.get(fd) is readiness:
                del self._readiness[fd]

    async def _wait_for_room(self, fd: int) -> None:
        """Wait until a descriptor is writable. All tasks share the loop's only callback for it."""
        rooms = self._rooms.get(fd, set())
        if not rooms:
            self._loop.add_writer(fd, _wake, rooms)
            self._rooms[fd] = rooms
        room = self._loop.create_future()
        rooms.add(room)
        try:
            await room
        finally:
            rooms.discard(room)
            if not rooms:
                del self._rooms[fd]
                self._loop.remove_writer(fd)

    def _check(self, sock: _std.socket) -> None:
        if self._loop.get_debug() and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")


def _wake(rooms: set[asyncio.Future[None]]) -> None:
    for room in rooms:
        if not room.done():
            room.set_result(None)
