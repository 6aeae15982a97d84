"""Descriptors that belong to a transport, and that nothing else may watch on its loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakValueDictionary

if TYPE_CHECKING:
    from collections.abc import Callable

    from tomada._asyncio.transport import DatagramTransport

# For loops other than selector loops, which have their own table.
_transports: WeakKeyDictionary[Any, WeakValueDictionary[int, DatagramTransport]]
_transports = WeakKeyDictionary()

_WATCHING = ("add_reader", "remove_reader", "add_writer", "remove_writer")


def own(loop: Any, transport: DatagramTransport, fd: int) -> None:
    """Reserve a descriptor for a transport until it closes."""
    if isinstance(loop, asyncio.SelectorEventLoop):
        transports = loop._transports  # type: ignore[attr-defined]
    else:
        transports = _transports.setdefault(loop, WeakValueDictionary())
    transports[fd] = transport


def check(loop: Any, fileobj: Any) -> None:
    """Raise the same error as a selector loop if a descriptor belongs to a transport."""
    if isinstance(loop, asyncio.SelectorEventLoop):
        loop._ensure_fd_no_transport(fileobj)  # type: ignore[attr-defined]
        return
    try:
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
    except (AttributeError, ValueError):
        return  # the loop raises the right exception
    transports = _transports.get(loop)
    transport = None if transports is None else transports.get(fd)
    if transport is not None and not transport.is_closing():
        raise RuntimeError(f"File descriptor {fd!r} is used by transport {transport!r}")


def guard(loop: Any) -> None:
    """Make a loop's ``add_reader`` and similar check descriptors, as a selector loop's do."""
    for name in _WATCHING:
        if not hasattr(getattr(loop, name), "unchecked"):
            setattr(loop, name, _checking(loop, getattr(loop, name)))


def unchecked(method: Any) -> Any:
    """Return the original of such a method, for use by transports."""
    return getattr(method, "unchecked", method)


def _checking(loop: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    def checked(fd: Any, *args: Any) -> Any:
        check(loop, fd)
        return method(fd, *args)

    checked.unchecked = method  # type: ignore[attr-defined]
    return checked
