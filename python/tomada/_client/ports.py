"""Local ports on which a server's replies may still arrive, so that no other request uses them."""

from __future__ import annotations

import errno
import heapq
import math
import os
import random
import threading
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from tomada._address import format_address

if TYPE_CHECKING:
    from socket import _Address

    from tomada._core import Socket

__all__ = ["PORTS", "NoPortError", "Ports", "late_for", "unique_name"]

# For how many seconds after a request ended a reply to it may arrive, at least. Linux forgets a UDP
# exchange without a reply after 30 s (nf_conntrack_udp_timeout), and so do most firewalls and NATs;
# it drops fragments that are not reassembled after 30 s (ipfrag_time). Longer is safer against a
# server with a longer queue, and uses the ports up sooner: 28,232 ports (the default range) that
# are avoided for 30 s last for 941 unanswered requests per second.
LATE = 30.0

# And in multiples of the timeout, which tells how slow a server the user expects.
LATE_TIMEOUTS = 2

# How many ports to draw before the ones that are left are counted out.
DRAWS = 32

# Why a socket cannot have a port, and what to do.
NONE_SAFE = "every free port may still get a late reply; pass match=, or lower the rate"
NONE_FREE = "no local port is free; close sockets, or widen sysctl net.ipv4.ip_local_port_range"

# Why a port cannot be bound, although another one can.
_TAKEN = frozenset({errno.EADDRINUSE, errno.EACCES, errno.EPERM})

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_RESERVED = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
_DEFAULT_RANGE = 32768, 60999

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound to it

# For how many seconds the machine's settings are believed: to read them takes longer than to open a
# socket.
UP_TO_DATE = 1.0
_machine: tuple[float, int, int, set[int]] | None = None

_chance = random.SystemRandom()


class NoPortError(OSError):
    """No port is free, or each of them may still get a late reply (``EADDRNOTAVAIL``)."""


def late_for(timeout: float) -> float:
    """Return for how many seconds after a request a reply to it may arrive."""
    return max(LATE, LATE_TIMEOUTS * timeout)


def unique_name() -> bytes:
    """Return an abstract name of ``AF_UNIX`` that no socket had before."""
    return b"\0" + os.urandom(16).hex().encode()


class Ports:
    """The ports to avoid, by server: one object for all clients of a process.

    The invariant: a port is put down here *before* the socket that has it gives it up. So a port
    that may get a late reply is either open, or here, or the time is over; and a socket that has
    just got a port finds out here whether it may keep it. A port that the kernel chose can be given
    up then, but one that was asked for cannot: to bind such a port, the lock is held.

    At most one entry per server and port is kept, up to the moment when it may be used again.

    The child of a fork copies the entries, and adds the ports of the sockets that its parent had
    open. After the fork, neither process learns which ports the other one avoids, as with any two
    processes. The kernel keeps them apart while the sockets are open. But if the parent closes a
    socket whose request it sent after the fork, the child may get the port and a late reply.
    """

    def __init__(self) -> None:
        # Not a plain lock: a signal handler or finalizer may close a client in the middle of this.
        self._lock = threading.RLock()
        self._avoided: dict[tuple[str, int], dict[int, float]] = {}
        # The moments when entries expire, the first one first.
        self._expiries: list[tuple[float, tuple[str, int], int]] = []

    def avoid(self, server: _Address, port: int, until: float) -> None:
        """Let no socket that asks this server have a port up to a moment."""
        with self._lock:
            self.expire()
            if until <= monotonic():
                return
            key = _key(server)
            avoided = self._avoided.setdefault(key, {})
            if avoided.get(port, 0.0) < until:
                avoided[port] = until
                heapq.heappush(self._expiries, (until, key, port))

    def expire(self) -> None:
        """Forget the ports that may be used again."""
        now = monotonic()
        try:
            if self._expiries[0][0] > now:
                return
        except IndexError:  # another thread may have just removed the last one
            return
        with self._lock:
            while self._expiries and self._expiries[0][0] <= now:
                _, key, port = heapq.heappop(self._expiries)
                avoided = self._avoided.get(key, {})
                if avoided.get(port, math.inf) <= now:
                    del avoided[port]
                if not avoided:
                    self._avoided.pop(key, None)

    def avoided(self, server: _Address) -> set[int]:
        """Return the ports that sockets which ask this server must not have now."""
        now = monotonic()
        with self._lock:
            entries = list(self._avoided.get(_key(server), {}).items())
        return {port for port, until in entries if until > now}

    def bind(self, sock: Socket, local: tuple[Any, ...], server: _Address) -> None:
        """Bind a socket that is going to ask a server to a local address, and a port not avoided.

        :param local: The address, without a port: the host and, with IPv6, flow and scope.
        :raises NoPortError: Each port that is free is avoided.
        """
        host, *scope = local
        key = _key(server)
        self.expire()
        try:
            sock.bind((host, 0, *scope))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise NoPortError(errno.EADDRNOTAVAIL, _text(server, NONE_FREE)) from None
        if not self._has_avoided(key, sock.getsockname()[1]):
            return
        sock._disconnect()  # noqa: SLF001 - gives up the port that the kernel chose
        candidates = _candidates(self.avoided(server))
        if not any(self._bind_to(sock, (host, port, *scope), key) for port in candidates):
            raise NoPortError(errno.EADDRNOTAVAIL, _text(server, NONE_SAFE))
        # A finalizer may have closed the socket that had this port a moment ago.
        if self._has_avoided(key, sock.getsockname()[1]):
            raise NoPortError(errno.EADDRNOTAVAIL, _text(server, NONE_SAFE))

    def _bind_to(self, sock: Socket, address: tuple[Any, ...], key: tuple[str, int]) -> bool:
        """Bind a socket to a port, unless it is taken or avoided."""
        with self._lock:  # the socket cannot give up a port that is not free
            return not self._has_avoided(key, address[1]) and _is_bound(sock, address)

    def _has_avoided(self, key: tuple[str, int], port: int) -> bool:
        avoided = self._avoided.get(key)
        return avoided is not None and port in avoided

    def start_anew(self) -> None:
        """Go on in a child process: no thread is there that could release the lock."""
        self._lock = threading.RLock()


def _candidates(avoided: Any) -> Any:
    """Yield ports of the machine's range that are not avoided, in random order, each to try."""
    global _machine  # noqa: PLW0603 - a cache
    now = monotonic()
    if _machine is None or _machine[0] <= now:
        _machine = now + UP_TO_DATE, *_local_ports()
    _, low, high, reserved = _machine
    for _ in range(DRAWS):
        port = _chance.randint(low, high)
        if port not in avoided and port not in reserved:
            yield port
    left = list(set(range(low, high + 1)).difference(avoided, reserved))
    _chance.shuffle(left)
    yield from left


def _local_ports() -> tuple[int, int, set[int]]:
    """Return the first and the last port that the kernel gives, and those between that it keeps."""
    try:
        low, high = map(int, _RANGE.read_text().split())
    except (OSError, ValueError):
        low, high = _DEFAULT_RANGE
    reserved: set[int] = set()
    try:
        for part in _RESERVED.read_text().strip().split(","):
            first, _, last = part.partition("-")
            if first:
                reserved.update(range(int(first), int(last or first) + 1))
    except (OSError, ValueError):
        pass
    return low, high, reserved


def _is_bound(sock: Socket, address: tuple[Any, ...]) -> bool:
    try:
        sock.bind(address)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def _key(server: Any) -> tuple[str, int]:
    """Return what is the same for all addresses of one server: its host and port."""
    host = server[0].partition("%")[0].removeprefix("::ffff:")
    return _WILDCARDS.get(host, host), server[1]


def _text(server: _Address, why: str) -> str:
    return f"cannot send to {format_address(server)}: {why}"


#: Those of this process.
PORTS = Ports()

os.register_at_fork(after_in_child=PORTS.start_anew)
