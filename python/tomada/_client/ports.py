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

# How long after the end of a request a reply to it may arrive, in seconds. Linux forgets a UDP
# exchange without a reply after 30 s (nf_conntrack_udp_timeout), and so do most firewalls and NATs;
# it drops fragments that are not reassembled after 30 s (ipfrag_time). A longer time is safer with
# a server whose queue is longer, but uses up the ports sooner: with 30 s, the default range of
# 28,232 ports is enough for 941 unanswered requests per second.
LATE = 30.0

# The same in multiples of the timeout, which shows how slow a server the user expects. The longer
# time applies.
LATE_TIMEOUTS = 2

# How many ports to draw at random before listing the remaining ones.
DRAWS = 32

# Why a socket cannot have a port, and what to do.
NONE_SAFE = "every free port may still get a late reply; pass match=, or lower the rate"
NONE_FREE = "no local port is free; close sockets, or widen sysctl net.ipv4.ip_local_port_range"

# Errors from binding a port that do not concern other ports.
_TAKEN = frozenset({errno.EADDRINUSE, errno.EACCES, errno.EPERM})

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_RESERVED = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
_DEFAULT_RANGE = 32768, 60999

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound to it

# How long the machine's settings are cached, in seconds: reading them takes longer than opening a
# socket.
UP_TO_DATE = 1.0
_machine: tuple[float, int, int, set[int]] | None = None

_chance = random.SystemRandom()


class NoPortError(OSError):
    """No port is free, or each of them may still get a late reply (``EADDRNOTAVAIL``)."""


def late_for(timeout: float) -> float:
    """Return how long after the end of a request a reply to it may arrive, in seconds."""
    return max(LATE, LATE_TIMEOUTS * timeout)


def unique_name() -> bytes:
    """Return an abstract name of ``AF_UNIX`` that no socket had before."""
    return b"\0" + os.urandom(16).hex().encode()


class Ports:
    """The ports to avoid, by server: one object for all clients of a process.

    The invariant: a port is recorded here *before* its socket gives it up. So until no late reply
    can arrive, a port is either in use by its socket or recorded here, and a socket that has just
    been bound can check here whether it may keep its port. It can give up a port that the kernel
    chose, but not one that it was bound to by number: the lock is held while binding such a port.

    There is at most one entry per server and port. It is removed when the port may be used again.

    A forked child copies the entries, and adds the ports of the sockets that its parent had open.
    After the fork, neither process learns which ports the other one avoids, as with any two
    processes. The kernel keeps them apart while the sockets are open. But if the parent closes a
    socket whose request it sent after the fork, the child may get the port and a late reply.
    """

    def __init__(self) -> None:
        # Not a plain lock: a signal handler or finalizer may close a client while it is held.
        self._lock = threading.RLock()
        self._avoided: dict[tuple[str, int], dict[int, float]] = {}
        # A heap of the times when entries expire.
        self._expiries: list[tuple[float, tuple[str, int], int]] = []

    def avoid(self, server: _Address, port: int, until: float) -> None:
        """Keep sockets for this server from using a port until a given time."""
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
        """Return the ports that sockets for this server must not use now."""
        now = monotonic()
        with self._lock:
            entries = list(self._avoided.get(_key(server), {}).items())
        return {port for port, until in entries if until > now}

    def bind(self, sock: Socket, local: tuple[Any, ...], server: _Address) -> None:
        """Bind a socket for a server to a local address, with a port that is not avoided.

        :param local: The address, without a port: the host and, with IPv6, flow and scope.
        :raises NoPortError: No port is free, or every free port is avoided.
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
        # A finalizer may just have closed the socket that had this port.
        if self._has_avoided(key, sock.getsockname()[1]):
            raise NoPortError(errno.EADDRNOTAVAIL, _text(server, NONE_SAFE))

    def _bind_to(self, sock: Socket, address: tuple[Any, ...], key: tuple[str, int]) -> bool:
        """Bind a socket to a port, unless it is taken or avoided."""
        with self._lock:  # the socket could not give up an avoided port
            return not self._has_avoided(key, address[1]) and _is_bound(sock, address)

    def _has_avoided(self, key: tuple[str, int], port: int) -> bool:
        avoided = self._avoided.get(key)
        return avoided is not None and port in avoided

    def start_anew(self) -> None:
        """Replace the lock in a child process, which lacks the thread that could release it."""
        self._lock = threading.RLock()


def _candidates(avoided: Any) -> Any:
    """Yield the ports of the machine's range that are not avoided, in random order."""
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
    """Return the first and the last port that the kernel assigns, and the reserved ones."""
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
    """Return the host and port, in one form for all equivalent addresses of a server."""
    host = server[0].partition("%")[0].removeprefix("::ffff:")
    return _WILDCARDS.get(host, host), server[1]


def _text(server: _Address, why: str) -> str:
    return f"cannot send to {format_address(server)}: {why}"


#: The ports to avoid in this process.
PORTS = Ports()

os.register_at_fork(after_in_child=PORTS.start_anew)
