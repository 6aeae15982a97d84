"""The endpoint of :mod:`tomada.trio`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Self

import trio

from tomada._asyncio import endpoint as base

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from types import TracebackType

    from tomada._asyncio.events import Events
    from tomada._asyncio.transport import DatagramTransport


class Endpoint(base.Endpoint):
    """A datagram socket for trio tasks, created by :func:`tomada.trio.open_endpoint`.

    It has the methods of :class:`tomada.asyncio.Endpoint`. Every async method is a checkpoint, even
    if it does not wait, and so is every step of iterating over the endpoint. Cancelling a receive
    does not lose a datagram.
    """

    _semaphore = staticmethod(trio.Semaphore)

    def __init__(self, transport: DatagramTransport, events: Events) -> None:
        super().__init__(transport, events)
        self._asking = trio.Lock()

    def __aiter__(self) -> AsyncIterator[tuple[bytes, Any]]:
        """Receive datagrams, like :meth:`recv`, until the endpoint is closed or shuts down."""
        # Not a generator: trio warns about generators that are abandoned before their end.
        return self

    async def __anext__(self) -> tuple[bytes, Any]:
        try:
            return await self.recv()
        except OSError:
            if self._is_receiving and not self.is_closing():
                raise
        raise StopAsyncIteration

    async def _receive(self, take: Callable[..., Any], *args: Any, is_reply: bool = False) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        taken = await super()._receive(take, *args, is_reply=is_reply)
        # Shielded, because cancelling here would lose the datagram.
        await trio.lowlevel.cancel_shielded_checkpoint()
        return taken

    async def drain(self) -> None:
        """Wait until the send backlog is short, like :meth:`tomada.asyncio.Endpoint.drain`."""
        await trio.lowlevel.checkpoint()
        await super().drain()

    async def shutdown(self, timeout: float | None = None, tasks: Iterable[Any] = ()) -> int:
        """Stop receiving, send what is left in the send backlog, and close.

        In trio, tasks belong to nurseries: call :meth:`stop_receiving`, leave the nursery whose
        tasks send replies, and then call this. If this is cancelled, the endpoint closes at once.

        :param timeout: The time limit for the send backlog, in seconds; no limit by default.
        :param tasks: Must be empty.
        :return: 0.
        """
        if list(tasks):
            raise TypeError("instead of passing tasks, leave their nursery before shutdown()")
        self.stop_receiving()
        with trio.move_on_after(float("inf") if timeout is None else timeout):
            await self.aclose()
        return 0

    async def aclose(self) -> None:
        """End all waits, send what is left in the send backlog, and close the socket.

        If this is cancelled, the endpoint closes at once, and the send backlog is dropped.
        """
        await trio.lowlevel.cancel_shielded_checkpoint()
        try:
            await super().aclose()
            await trio.lowlevel.checkpoint_if_cancelled()
        except trio.Cancelled:
            self.abort()
            with trio.CancelScope(shield=True):
                await super().aclose()
            raise

    @staticmethod
    async def _pause() -> None:
        await trio.lowlevel.checkpoint()

    @staticmethod
    def _limit(seconds: float) -> Any:
        return _Limit(seconds)


class _Limit(contextlib.AbstractAsyncContextManager["_Limit"]):
    """Ends its block with :class:`TimeoutError`, like :func:`asyncio.timeout`."""

    def __init__(self, seconds: float) -> None:
        self._scope = trio.CancelScope(deadline=trio.current_time() + seconds)

    async def __aenter__(self) -> Self:
        self._scope.__enter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        is_handled = bool(self._scope.__exit__(kind, error, traceback))
        if self.expired():
            raise TimeoutError
        return is_handled

    def expired(self) -> bool:
        """Return whether the time ran out."""
        return self._scope.cancelled_caught
