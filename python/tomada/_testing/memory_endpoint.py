"""The endpoint of a network in memory."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tomada._asyncio.context_managers import Closing
from tomada._asyncio.endpoint import Endpoint
from tomada._client.exchange import Exchange, is_refusal
from tomada._client.retry import Retry
from tomada._client.round_trip import RoundTrip

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable

    from tomada._core import DatagramError
    from tomada._testing.memory_transport import MemoryTransport, Queue


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """The counters of a :class:`MemoryEndpoint`."""

    received: int
    """Datagrams that arrived in the receive buffer."""
    received_bytes: int
    """Their payload bytes."""
    sent: int
    """Datagrams that were sent into the network."""
    sent_bytes: int
    """Their payload bytes."""
    kernel_drops: int
    """Datagrams that did not fit into the receive buffer of 208 KiB."""


class MemoryEndpoint(Closing):
    """An endpoint of a :class:`Network`, with the interface of :class:`tomada.asyncio.Endpoint`.

    The methods behave as documented there, on the event loop's clock.
    """

    def __init__(
        self,
        opens: Callable[[Any, Any], Coroutine[Any, Any, MemoryEndpoint]],
        transport: MemoryTransport,
        queue: Queue,
    ) -> None:
        self._opens = opens
        self._transport = transport
        self._queue = queue
        self._is_receiving = True
        self._asking = asyncio.Lock()
        self._round_trip = RoundTrip()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._transport!r}>"

    async def recv(self) -> tuple[bytes, Any]:
        """Receive a datagram and its sender's address. Cancelling is safe."""
        return await self._receive(is_reply=False)

    async def _receive(self, *, is_reply: bool) -> tuple[bytes, Any]:
        while True:
            self._check_open()
            if not (is_reply or self._is_receiving):
                raise OSError(errno.ESHUTDOWN, "the endpoint has stopped receiving")
            if self._queue.errors:
                error = self._queue.errors.popleft()
                if self._transport.peer is not None:
                    raise error
                continue
            if self._queue.datagrams:
                return self._queue.take()
            await self._queue.wait()

    async def recv_many(self, max_datagrams: int = 64) -> list[tuple[bytes, Any]]:
        """Wait for one datagram and receive all that are queued, up to a maximum."""
        received = [await self.recv()]
        while self._queue.datagrams and len(received) < max_datagrams:
            received.append(self._queue.take())
        return received

    async def __aiter__(self) -> AsyncGenerator[tuple[bytes, Any], None]:
        """Receive datagrams, like :meth:`recv`, until the endpoint is closed or shuts down."""
        try:
            while self._is_receiving and not self.is_closing():
                yield await self.recv()
        except OSError:
            if self._is_receiving and not self.is_closing():
                raise

    def send(self, data: Any, addr: Any = None) -> None:
        """Send a datagram to ``addr``, or to the peer of a connected endpoint."""
        self._check_open()
        self._transport.sendto(data, addr)

    def send_many(self, datagrams: Iterable[Any], addr: Any = None) -> None:
        """Send many datagrams: all to ``addr`` or the peer, or ``(data, address)`` pairs."""
        self._check_open()
        self._transport.sendto_many(datagrams, addr)

    async def drain(self) -> None:
        """Let other tasks run: there is no send backlog to wait for."""
        self._check_open()
        await asyncio.sleep(0)

    async def request(
        self,
        data: Any,
        *,
        timeout: float = 1.0,
        retries: int = 3,
        match: Callable[[Any, bytes], bool] | None = None,
        retry_refused: bool = True,
    ) -> bytes:
        """Send a request to the peer and return its reply."""
        peer = self._transport.peer
        if peer is None:
            raise ValueError("request() needs an endpoint with a peer: open it with a remote_addr")
        self._check_open()
        retry = Retry(timeout, retries, retry_refused=bool(retry_refused))
        if match is not None:
            async with self._asking:
                self._queue.errors.clear()
                while self._queue.datagrams:
                    self._queue.take()
                return await self._exchange(data, retry, partial(match, data), self)
        host = self._transport.name[0]
        async with await self._opens((host, 0), peer) as apart:
            return await self._exchange(data, retry, None, apart)

    async def _exchange(
        self,
        data: Any,
        retry: Retry,
        match: Callable[[bytes], bool] | None,
        endpoint: MemoryEndpoint,
    ) -> bytes:
        time = asyncio.get_running_loop().time
        exchange = Exchange(retry, self._round_trip, time(), match)
        while exchange.attempt(time()):
            endpoint.send(data)
            try:
                async with asyncio.timeout_at(exchange.due):
                    reply = await endpoint._reply(exchange)
            except TimeoutError:
                continue
            exchange.complete(time())
            return reply
        raise exchange.timed_out(self.get_extra_info("peername"), time())

    async def _reply(self, exchange: Exchange) -> bytes:
        while True:
            try:
                reply, _ = await self._receive(is_reply=True)
            except OSError as error:
                if not is_refusal(error):
                    raise
                exchange.refuse(error)
                continue
            if exchange.accepts(reply):
                return reply

    def errors(self) -> list[DatagramError]:
        """Return an empty list: the network reports only refusals, to connected endpoints."""
        return []

    def stats(self) -> MemoryStats:
        """Return the counters, which have the same names as in :class:`tomada.Stats`."""
        queue, transport = self._queue, self._transport
        return MemoryStats(
            queue.received,
            queue.received_bytes,
            transport.sent,
            transport.sent_bytes,
            queue.drops,
        )

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return information about the transport: ``"sockname"`` and ``"peername"``."""
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Return whether the endpoint is closing or closed."""
        return self._transport.is_closing()

    def stop_receiving(self) -> None:
        """Stop receiving datagrams; sending and :meth:`request` continue to work."""
        self._is_receiving = False
        self._queue.wake_all()

    # It calls only methods that this class also has.
    #: The same as :meth:`tomada.asyncio.Endpoint.shutdown`.
    shutdown: Any = Endpoint.shutdown

    async def aclose(self) -> None:
        """End all waits and close the endpoint."""
        self.abort()
        await self._queue.closed.wait()

    def abort(self) -> None:
        """Close at once."""
        self._transport.close()

    def _check_open(self) -> None:
        if self._transport.is_closing():
            raise OSError(errno.EBADF, "the endpoint is closed")
