"""Substitute tomada's classes for the standard ones, in tests that do not know about tomada."""

from __future__ import annotations

import asyncio
import socket


def substitute_socket() -> None:
    """Put tomada's class where the standard module and the modules that import it look it up."""
    import tomada.socket

    socket.socket = tomada.socket.socket


def substitute_loop() -> None:
    """Give tomada's event loop to tests that request a selector event loop, or any event loop."""
    import tomada.asyncio

    # The base class's tests derive their own loop classes from it.
    for module in (asyncio, asyncio.unix_events, asyncio.selector_events):
        for name in ("EventLoop", "SelectorEventLoop", "BaseSelectorEventLoop"):
            if hasattr(module, name):
                setattr(module, name, tomada.asyncio.EventLoop)
    asyncio.DefaultEventLoopPolicy.new_event_loop = lambda _: tomada.asyncio.EventLoop()


SUBSTITUTES = {
    "stock": [],
    "socket": [substitute_socket],
    "loop": [substitute_loop],
    "both": [substitute_socket, substitute_loop],
}


def substitute(variant: str) -> None:
    """Make the substitutions of a variant, one of ``SUBSTITUTES``."""
    for put in SUBSTITUTES[variant]:
        put()


async def classes() -> dict[str, str]:
    """Name the classes of a datagram socket, of the event loop, and of its datagram transports."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
    )
    transport.close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        found = {"socket": type(sock), "loop": type(loop), "transport": type(transport)}
    return {name: f"{cls.__module__}.{cls.__qualname__}" for name, cls in found.items()}
