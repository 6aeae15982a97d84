"""The options of a socket that a server, a client, an endpoint or a command opens."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsIndex, TypeAlias

from tomada import _core, socket

if TYPE_CHECKING:
    from collections.abc import Sequence

# The longest times to poll, and to collect datagrams, in seconds.
LONGEST_SPIN = 1_000_000_000
LONGEST_COALESCE = 60
# The kernel takes the size of a buffer as a signed 32-bit number.
LARGEST_BUFFER = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class SocketOptions:
    """How to set up a socket.

    :param gro: Whether the kernel may deliver coalesced datagrams. ``None`` means yes, except on a
        socket that the caller shares.
    :param spin: How long a wait polls before it sleeps, in seconds.
    :param coalesce: How long a wait collects more datagrams after the first one, in seconds.
    :param rcvbuf: The size of the receive buffer in bytes; ``None`` for the default one.
    :param pacing: The highest rate to send at, in bytes per second; ``None`` for no limit.
    :param groups: Multicast groups to join, each an address, or the arguments of ``join_group``.
    :param guard: The guard for received datagrams and replies.
    :param proxy: The networks of trusted proxies.
    :param proxy_flows: How long a proxy's flow may be silent in seconds; ``None`` if each datagram
        has a PROXY header.
    :raises TypeError: An option has a wrong type.
    :raises ValueError: An option is out of range.
    """

    gro: bool | None = None
    spin: float = 0.0
    coalesce: float = 0.0
    rcvbuf: int | None = None
    pacing: int | None = None
    groups: Sequence[Any] = ()
    guard: _core.Guard | None = None
    proxy: Sequence[Any] = ()
    proxy_flows: float | None = None

    def __post_init__(self) -> None:
        _check_seconds("spin", self.spin, LONGEST_SPIN)
        _check_seconds("coalesce", self.coalesce, LONGEST_COALESCE)
        if self.spin and self.coalesce:
            raise ValueError("spin and coalesce exclude each other: use one of them")
        if self.rcvbuf is not None:
            if not isinstance(self.rcvbuf, SupportsIndex):
                raise TypeError(f"rcvbuf must be a number of bytes, not {self.rcvbuf!r}")
            if self.rcvbuf < 0:
                raise ValueError(f"rcvbuf must be at least 0 bytes, not {self.rcvbuf!r}")
            if self.rcvbuf > LARGEST_BUFFER:
                raise ValueError(
                    f"rcvbuf must be at most {LARGEST_BUFFER} bytes, not {self.rcvbuf!r}"
                )
        if self.pacing is not None:
            self._check_pacing(self.pacing)
        if isinstance(self.groups, str):
            raise TypeError(f"groups must be a list of groups: write [{self.groups!r}]")
        if not isinstance(self.guard, _core.Guard | None):
            raise TypeError(f"guard must be a tomada.Guard, not {self.guard!r}")
        _core.trust_proxies(None, self.proxy)
        if self.proxy_flows is not None:
            self._check_flows(self.proxy_flows)

    @staticmethod
    def _check_pacing(rate: int) -> None:
        if not isinstance(rate, SupportsIndex):
            raise TypeError(f"pacing must be a number of bytes, not {rate!r}")
        if rate < 1:
            raise ValueError(f"pacing must be at least 1 byte per second, not {rate!r}")

    def _check_flows(self, idle: float) -> None:
        if not self.proxy:
            raise ValueError("proxy_flows needs proxy, the networks of the proxies")
        if not idle > 0:
            raise ValueError(f"proxy_flows must be more than 0 seconds, not {idle!r}")

    def apply(self, sock: Any, *, gro: bool = True) -> None:
        """Set up a tomada socket that is not shared; with ``groups``, after it was bound.

        :param gro: Whether to enable GRO if ``self.gro`` is ``None``.
        """
        if self.proxy:
            _core.trust_proxies(sock, self.proxy, self.proxy_flows)
        if self.guard is not None:
            sock.guard = self.guard
        if self.spin:
            sock.spin = self.spin
        self.collect(sock)
        if (gro if self.gro is None else self.gro) and sock.family != socket.AF_UNIX:
            with contextlib.suppress(OSError):  # before Linux 5.0
                sock.gro = True
        if self.rcvbuf is not None:
            _set_buffer(sock, self.rcvbuf)
        self.pace(sock)
        self.join(sock)

    def collect(self, sock: Any) -> None:
        """Make a tomada socket collect datagrams, if ``coalesce`` is set."""
        if self.coalesce:
            sock.coalesce = self.coalesce

    def pace(self, sock: Any) -> None:
        """Limit the rate at which a tomada socket sends."""
        if self.pacing is not None:
            sock.pacing = self.pacing

    def join(self, sock: Any) -> None:
        """Join the groups with a tomada socket that was bound."""
        for group in self.groups:
            sock.join_group(*((group,) if isinstance(group, str) else group))


def _check_seconds(name: str, seconds: Any, longest: int) -> None:
    is_number = type(seconds) is float or isinstance(seconds, SupportsFloat)
    if not is_number:
        raise TypeError(f"{name} must be a number of seconds, not {seconds!r}")
    if not 0 <= seconds <= longest:
        wanted = f"a number of seconds, 0 or more, up to {longest:,}"
        raise ValueError(f"{name} must be {wanted}, not {seconds!r}")


def check_dtls(context: Any, *, is_server: bool) -> None:
    """Check the context that was passed to a server, a client or an endpoint as ``dtls``.

    :raises TypeError: It is not a :class:`tomada.dtls.Context`.
    :raises ValueError: It is for the other side, or it is for a server and has neither a
        certificate nor keys.
    """
    kind: Any = getattr(_core, "DtlsContext", ())  # a build without DTLS has none
    if not isinstance(context, kind):
        raise TypeError(f"dtls must be a tomada.dtls.Context, not {context!r}")
    context._prepare(is_server)  # noqa: SLF001 - part of the same package


#: The context of a client's sessions, and the name that the server's certificate must match.
Secured: TypeAlias = "tuple[_core.DtlsContext, str | None]"


def check_server_hostname(context: object, server_hostname: str | None) -> None:
    """Raise :class:`ValueError` if there is a name without a context."""
    if context is None and server_hostname is not None:
        raise ValueError("server_hostname needs dtls: without dtls, plain text is sent")


def secured_by(
    context: _core.DtlsContext | None, server_hostname: str | None, address: Any
) -> Secured | None:
    """Return the settings of a client's sessions, from its ``dtls`` and ``server_hostname``.

    :raises TypeError: As :func:`check_dtls`.
    :raises ValueError: As :func:`check_dtls`, or there is a name without a context.
    """
    check_server_hostname(context, server_hostname)
    if context is None:
        return None
    check_dtls(context, is_server=False)
    if server_hostname is None and isinstance(address, tuple):
        server_hostname = address[0]
    return context, server_hostname


def check_shared(sock: Any) -> None:
    """Raise :class:`TypeError` if a socket that the caller shares has a session.

    The session belongs to the object: its descriptor alone would send plain text.
    """
    if hasattr(sock, "do_handshake"):
        raise TypeError(
            f"{sock!r} has a session, and its descriptor alone would send plain text: "
            "call its own methods, or pass a plain socket"
        )


def _set_buffer(sock: socket.socket, size: int) -> None:
    try:
        # With CAP_NET_ADMIN there is no limit.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUFFORCE, size)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)  # warns if it is limited
