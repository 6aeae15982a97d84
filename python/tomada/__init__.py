"""UDP sockets for Python on Linux: the socket module's interface over a Rust core.

``from tomada import socket`` replaces ``import socket``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tomada._core import Batch, Datagram, DatagramError, Stats, __version__

if TYPE_CHECKING:
    from tomada.client import Client

__all__ = [
    "Batch",
    "Client",
    "Datagram",
    "DatagramError",
    "Stats",
    "__version__",
]

# What is loaded when it is first used, so that a program that wants a socket loads no more.
_LAZY = {"Client": "tomada.client"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415 - as above

    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
