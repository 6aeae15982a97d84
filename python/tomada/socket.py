"""The standard ``socket`` module, with tomada's datagram sockets.

Replace ``import socket`` with ``from tomada import socket``; the rest of the program stays the
same. This module has every public name of the standard one. Sockets of type ``SOCK_DGRAM`` in the
families ``AF_INET``, ``AF_INET6`` and ``AF_UNIX`` are tomada's; all others are standard library
objects. It also has kernel constants that the standard module lacks (``UDP_SEGMENT``,
``SO_TIMESTAMPNS``, ``IP_RECVERR``, …).
"""

import socket as _std

TYPE_CHECKING = False  # as in tomada/__init__.py
if TYPE_CHECKING:
    # Of several definitions of a name, mypy uses the first; Python and other checkers, the last.
    from tomada._sockets import (
        SocketType as SocketType,
        fromfd as fromfd,
        socket as socket,
        socketpair as socketpair,
    )

from socket import *  # type: ignore[assignment]
from tomada import _core
from tomada._constants import *
from tomada._sockets import SocketType, fromfd, socket, socketpair  # noqa: F401

__all__ = sorted({*_std.__all__, *_core.CONSTANTS})  # noqa: PLE0605 - a list, but not a literal

# Names that "import *" omits, such as socket.EAGAIN or socket.errno. If both modules have a
# constant, use the standard module's, which is an enum member.
_OURS = {"socket", "SocketType", "fromfd", "socketpair"}
globals().update(
    {
        name: item
        for name, item in vars(_std).items()
        if not name.startswith("__") and name not in _OURS
    }
)
