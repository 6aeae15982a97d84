"""UDP sockets for Python on Linux: the socket module's interface over a Rust core.

``from tomada import socket`` replaces ``import socket``.
"""

from typing import TYPE_CHECKING, Any

from tomada._core import (
    Batch,
    Datagram,
    DatagramError,
    Guard,
    GuardStats,
    ServerStats,
    Stats,
    __version__,
)

if TYPE_CHECKING:
    from tomada.client import Client
    from tomada.server import Server, serve

__all__ = [
    "Batch",
    "Client",
    "Datagram",
    "DatagramError",
    "Guard",
    "GuardStats",
    "Server",
    "ServerStats",
    "Stats",
    "__version__",
    "serve",
]

# Who wants a socket alone does not wait for the rest to be imported.
_MODULES = {"Client": "client", "Server": "server", "serve": "server"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - as above

    value = globals()[name] = getattr(import_module(f"tomada.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
