"""The types of a server's handlers and options, and checks of their values."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from tomada._server.steering import check_steering

if TYPE_CHECKING:
    import asyncio

    from _typeshed import ReadableBuffer

    from tomada._core import Datagram, DtlsContext, Guard
    from tomada._server.steering import Steering
    from tomada.server import Server

# The result of a handler, or of the coroutine of an async handler.
Reply: TypeAlias = "ReadableBuffer | None"
Replies: TypeAlias = "Iterable[ReadableBuffer | None] | None"

# A handler, by its `takes`.
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
    gro: bool
    spin: float
    health: tuple[str, int] | None
    access_log: int
    groups: Sequence[Any]
    guard: Guard | None
    proxy: Sequence[Any]
    proxy_flows: float | None
    dtls: DtlsContext | None
    sock: Any
    fd: int | None


def check_choices(takes: str, steering: Any) -> None:
    """Raise :class:`ValueError` if an option has none of its values."""
    if takes not in ("data", "datagram", "batch", "timed"):
        names = "'data', 'datagram', 'batch' or 'timed'"
        raise ValueError(f"takes must be {names}, not {takes!r}")
    check_steering(steering)


def check_workers(workers: int, threads: int) -> None:
    """Raise :class:`ValueError` if a server cannot have these processes or threads."""
    for name, number in (("workers", workers), ("threads", threads)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    if threads == 1:
        return
    if workers > 1:
        raise ValueError("pass either workers or threads, not both")
    is_locked: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
    if is_locked():
        raise ValueError(
            "threads need a free-threaded interpreter (python3.13t or later), because the global "
            "interpreter lock lets only one of them run at a time: use workers"
        )


def check_limits(
    max_concurrency: int, max_requests: int | None, max_age: float | None, workers: int
) -> None:
    """Raise :class:`ValueError` if a limit cannot be kept."""
    if max_concurrency < 1:
        raise ValueError(f"max_concurrency must be at least 1, not {max_concurrency}")
    for name, limit in (("max_requests", max_requests), ("max_age", max_age)):
        if limit is None:
            continue
        if not limit > 0:  # or it is not a number
            raise ValueError(f"{name} must be positive, not {limit}")
        if workers == 1:
            raise ValueError(f"{name} replaces worker processes: pass workers=2 or more")
