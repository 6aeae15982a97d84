"""UDP sockets for Python on Linux: the socket module's interface over a Rust core.

``from tomada import socket`` replaces ``import socket``.
"""

from importlib.metadata import version as _version

__version__ = _version("tomada")
