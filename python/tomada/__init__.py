"""UDP sockets for Python on Linux: the socket module's interface over a Rust core.

``from tomada import socket`` replaces ``import socket``.
"""

from tomada._core import Batch, Datagram, DatagramError, Stats, __version__

__all__ = ["Batch", "Datagram", "DatagramError", "Stats", "__version__"]
