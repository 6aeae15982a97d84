"""The types of a server's handlers and options."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

if TYPE_CHECKING:
    import asyncio

    from _typeshed import ReadableBuffer

    from tomada._core import Datagram, DtlsContext, Guard
    from tomada._server.steering import Steering
    from tomada.server import Server

# The result of a handler, or of the coroutine of an async handler.
Reply: TypeAlias = "ReadableBuffer | None"
Replies: TypeAlias = "Iterable[ReadableBuffer | None] | None"

# The type of a handler, for each value of `takes`.
DataHandler: TypeAlias = "Callable[[bytes, Any], Reply | Coroutine[Any, Any, Reply]]"
DatagramHandler: TypeAlias = "Callable[[Datagram], Reply | Coroutine[Any, Any, Reply]]"
BatchHandler: TypeAlias = (
    "Callable[[list[tuple[bytes, Any]]], Replies | Coroutine[Any, Any, Replies]]"
)
TimedHandler: TypeAlias = (
    "Callable[[list[tuple[bytes, Any, int | None]]], Replies | Coroutine[Any, Any, Replies]]"
)
Handler: TypeAlias = Callable[..., Any]

Takes: TypeAlias = Literal["data", "datagram", "batch", "timed"]
Loop: TypeAlias = "Literal['tomada', 'asyncio', 'uvloop'] | Callable[[], asyncio.AbstractEventLoop]"
Lifespan: TypeAlias = (
    "Callable[[Server], AbstractContextManager[Any] | AbstractAsyncContextManager[Any]]"
)


class ServerOptions(TypedDict, total=False):
    """The options of a server, except ``takes``: see :class:`tomada.Server`."""

    workers: int
    threads: int
    init: Callable[[], object] | None
    exit: Callable[[], object] | None
    lifespan: Lifespan | None
    loop: Loop | None
    max_concurrency: int
    max_requests: int | None
    max_age: float | None
    steering: Steering
    drain: float
    rcvbuf: int | None
    pacing: int | None
    gro: bool
    spin: float
    coalesce: float
    health: tuple[str, int] | None
    access_log: int
    groups: Sequence[Any]
    guard: Guard | None
    proxy: Sequence[Any]
    proxy_flows: float | None
    dtls: DtlsContext | None
    sock: Any
    fd: int | None
