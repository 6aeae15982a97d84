"""How the kernel chooses the worker that receives a datagram."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tomada import _core

if TYPE_CHECKING:
    from tomada.socket import socket

NAMES = ("hash", "cpu", "random")
LONGEST_KEY = 64
LAST_OFFSET = 65_535


@dataclass(frozen=True)
class Key:
    """The position of a peer's identifier in the payload.

    A call with a payload and an address returns the identifier, as the ``key`` function of a
    :class:`tomada.sinks.Sink` does.
    """

    offset: int
    length: int

    def __post_init__(self) -> None:
        for name, value, least, most in [
            ("offset", self.offset, 0, LAST_OFFSET),
            ("length", self.length, 1, LONGEST_KEY),
        ]:
            if not isinstance(value, int):
                raise TypeError(f"{name} must be an int, not {value!r}")
            if not least <= value <= most:
                raise ValueError(f"{name} must be from {least} to {most} bytes, not {value}")

    def __call__(self, data: bytes, _address: object = None) -> bytes:
        """Return the identifier, or the part of it that the payload contains."""
        return data[self.offset : self.offset + self.length]


Steering: TypeAlias = Literal["hash", "cpu", "random"] | Key


def key(offset: int, length: int) -> Key:
    """Return a value for ``Server(steering=…)`` that steers datagrams by bytes of their payload.

    It is also a ``key`` for :mod:`tomada.sinks`: one partition or subject for each value.

    All datagrams with the same bytes go to the same worker, whatever address they come from. So a
    peer whose payload contains its identifier stays with its worker when its address changes. The
    kernel does this with a classic BPF program that needs no privilege
    (``SO_ATTACH_REUSEPORT_CBPF`` in ``socket(7)``).

    A datagram too short to contain all of these bytes is steered by the ones that it contains or,
    if it contains none of them, by its address. If the server trusts proxies, the offset counts
    from the end of the PROXY header.

    The server turns ``gro`` off, because the kernel would steer all coalesced datagrams by the
    first one. The kernel still does so if a sender on the same machine uses ``UDP_SEGMENT``.

    :param offset: The number of bytes before the identifier, up to 65,535.
    :param length: The length of the identifier in bytes, from 1 to 64.
    :raises ValueError: A number is out of range.
    """
    return Key(offset, length)


def check_steering(steering: Any) -> None:
    """Raise :class:`ValueError` unless this is a valid ``steering`` option."""
    if not isinstance(steering, Key) and steering not in NAMES:
        raise ValueError(
            f"steering must be 'hash', 'cpu', 'random' or tomada.key(…), not {steering!r}"
        )


def steer(sock: socket, steering: Steering, sockets: int, *, has_proxies: bool) -> None:
    """Configure how the kernel steers datagrams among a reuseport group's ``sockets`` sockets."""
    core: Any = sock
    if isinstance(steering, Key):
        _core.steer_by_key(core, (steering.offset, steering.length), sockets, has_proxies)
    else:
        _core.steer(core, steering, sockets)
