"""Transports and queues of a network in memory."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tomada._testing.network import Network

Name: TypeAlias = tuple[str, int]

LARGEST_V4, LARGEST_V6 = 65_507, 65_527
# The usual receive buffer of a socket (net.core.rmem_default), in bytes.
ROOM = 212_992
# The overhead of a datagram in that buffer, in bytes.
OVERHEAD = 256


class MemoryTransport(asyncio.DatagramTransport):
    """A datagram transport of a :class:`tomada.testing.Network`."""

    def __init__(
        self, network: Network, loop: asyncio.AbstractEventLoop, name: Name, peer: Name | None
    ) -> None:
        super().__init__({"sockname": _shown(name), "peername": peer and _shown(peer)})
        self._network = network
        self._loop = loop
        #: The local address.
        self.name = name
        #: The address of the only peer, or ``None``.
        self.peer = peer
        self._protocol: Any = None
        self._is_closing = False
        #: The number of datagrams sent.
        self.sent = 0
        #: Their payload bytes.
        self.sent_bytes = 0
        # The address that each peer has sent to: a wildcard transport replies from that address.
        self._asked: dict[Name, Name] = {}

    def __repr__(self) -> str:
        state = " closing" if self._is_closing else ""
        return f"<{type(self).__name__} {self.name} peer={self.peer}{state}>"

    def start(self, protocol: Any) -> None:
        """Set the protocol and announce the connection."""
        self._protocol = protocol
        self._loop.call_soon(protocol.connection_made, self)

    # Sending

    def sendto(self, data: Any, addr: Any = None) -> None:
        """Send a datagram to an address, or to the peer."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data must be a bytes-like object, not {type(data).__name__!r}")
        if self._is_closing:
            return
        to = self.peer if addr is None else (str(addr[0]), int(addr[1]))
        if to is None:
            raise TypeError("an endpoint without a peer needs an address to send to")
        if self.peer is not None and to != self.peer:
            raise ValueError(f"Invalid address: must be None or {self.peer}")
        payload = bytes(data)
        largest = LARGEST_V6 if ":" in to[0] else LARGEST_V4
        if len(payload) > largest:
            self.fail(OSError(90, "Message too long"))
            return
        source = self._asked.get(to, self.name)
        if source[0] in {"0.0.0.0", "::"}:  # noqa: S104 - a name in memory
            source = "::1" if source[0] == "::" else "127.0.0.1", source[1]
        self.sent += 1
        self.sent_bytes += len(payload)
        self._network.carry(self._loop, source, to, payload)

    def sendto_many(self, datagrams: Iterable[Any], addr: Any = None) -> None:
        """Send many datagrams: all to ``addr`` or the peer, or ``(data, address)`` pairs."""
        for item in datagrams:
            data, to = (item, addr) if addr is not None or self.peer is not None else item
            self.sendto(data, to)

    # Receiving

    def deliver(self, data: bytes, source: Name, destination: Name) -> None:
        """Pass a datagram to the protocol."""
        if self._is_closing or (self.peer is not None and source != self.peer):
            return
        if destination != self.name:
            self._asked[source] = destination
        try:
            self._protocol.datagram_received(data, _shown(source))
        except Exception as error:  # noqa: BLE001 - as an exception of a loop's callback
            self._loop.call_exception_handler(
                {
                    "message": "datagram_received() raised an exception",
                    "exception": error,
                    "transport": self,
                    "protocol": self._protocol,
                }
            )

    def fail(self, error: OSError) -> None:
        """Pass an error to the protocol."""
        if not self._is_closing:
            self._loop.call_soon(self._protocol.error_received, error)

    # State

    def close(self) -> None:
        """Close the transport; the protocol's ``connection_lost`` is called soon."""
        if self._is_closing:
            return
        self._is_closing = True
        self._network.forget(self)
        if self._protocol is not None:
            self._loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        """Close the transport: there is no buffer to drop."""
        self.close()

    def is_closing(self) -> bool:
        """Return whether the transport is closing or closed."""
        return self._is_closing

    def get_protocol(self) -> Any:
        """Return the protocol."""
        return self._protocol

    def set_protocol(self, protocol: Any) -> None:
        """Replace the protocol."""
        self._protocol = protocol

    def get_write_buffer_size(self) -> int:
        """Return 0: there is no send backlog."""
        return 0

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the limits of a standard transport, which are never reached."""
        return 16_384, 65_536

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Do nothing: there is no buffer."""


class Queue(asyncio.DatagramProtocol):
    """A receive buffer for tasks."""

    def __init__(self) -> None:
        self.datagrams: deque[tuple[bytes, Any]] = deque()
        self.errors: deque[OSError] = deque()
        self.closed = asyncio.Event()
        self.received = 0
        self.received_bytes = 0
        self.drops = 0
        self._bytes = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Queue a datagram, or drop it if there is no room."""
        size = len(data) + OVERHEAD
        if self._bytes + size > ROOM:
            self.drops += 1
            return
        self._bytes += size
        self.datagrams.append((data, addr))
        self.wake()

    def error_received(self, exc: Exception) -> None:
        """Queue an error."""
        if isinstance(exc, OSError):
            self.errors.append(exc)
            self.wake()

    def connection_lost(self, _exc: Exception | None) -> None:
        """End all waits."""
        self.closed.set()
        self.wake_all()

    def take(self) -> tuple[bytes, Any]:
        """Take the first datagram."""
        data, addr = self.datagrams.popleft()
        self._bytes -= len(data) + OVERHEAD
        self.received += 1
        self.received_bytes += len(data)
        return data, addr

    def wake(self) -> None:
        """Wake the task that has waited longest."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def wake_all(self) -> None:
        """Wake all tasks that wait."""
        while self._waiters:
            self.wake()

    async def wait(self) -> None:
        """Wait until something has arrived. Cancelling is safe."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.wake()  # another task takes it
            raise


def _shown(name: Name) -> Any:
    """Return an address in the form in which a socket of its family returns it."""
    return (*name, 0, 0) if ":" in name[0] else name
