"""UDP sockets for Python on Linux: the interface of the socket module, on a Rust core.

Use ``from tomada import socket`` instead of ``import socket``.
"""

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

# Type checkers treat this name as true. Importing it from typing would take as long as importing
# the rest of tomada.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tomada.client import Client
    from tomada.server import Server, key, serve

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
    "key",
    "serve",
]

# Imported on first use, so that programs that only use sockets start faster.
_MODULES = {"Client": "client", "Server": "server", "key": "server", "serve": "server"}


def __getattr__(name: str) -> "Any":
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - as above

    value = globals()[name] = getattr(import_module(f"tomada.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
