"""The standard ``socket`` module with tomada's datagram sockets in it.

``from tomada import socket`` is the one line that changes in a program. Every public name of the
standard module is here. Sockets of type ``SOCK_DGRAM`` in the families ``AF_INET``, ``AF_INET6``
and ``AF_UNIX`` are tomada's; every other socket is the standard library's own object. The kernel's
constants that the standard module lacks (``UDP_SEGMENT``, ``SO_TIMESTAMPNS``, ``IP_RECVERR``, …)
are here too.
"""

import socket as _std
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Of a name's definitions mypy believes the first. Python, and other checkers, the last.
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

__all__ = sorted({*_std.__all__, *_core.CONSTANTS})  # noqa: PLE0605 - a list, though not a literal one

# What "import *" leaves out, like socket.EAGAIN or socket.errno; and where both have a constant,
# the standard module's, which is an enum's member.
_OURS = {"socket", "SocketType", "fromfd", "socketpair"}
globals().update(
    {
        name: item
        for name, item in vars(_std).items()
        if not name.startswith("__") and name not in _OURS
    }
)
