"""The sockets that a server receives from."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tomada import _core, socket
from tomada._address import check_address, format_address
from tomada._advice import OF_BINDING, OF_OPENING, advise, advised
from tomada._server.steering import steer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tomada._server.settings import Settings
    from tomada._server.steering import Steering
    from tomada._socket_options import SocketOptions

FIRST_PASSED_FD = 3  # SD_LISTEN_FDS_START in sd_listen_fds(3)
DISCARD = 9


class Listeners:
    """The sockets of one server: one for all its workers, or one for each.

    They are opened before any worker exists, and the process that starts the workers keeps them
    open until the server ends. Therefore an occupied port is reported at once; datagrams queued for
    a worker that dies wait for its replacement; and the reuseport group (``SO_REUSEPORT``) never
    changes, so each peer stays with its worker and no queue is lost with a closed socket.
    """

    def __init__(self, sockets: Sequence[Any], *, is_own: bool) -> None:
        self.sockets = list(sockets)
        self.address: Any = self.sockets[0].getsockname()
        self.is_own = is_own
        """Whether the server opened the sockets itself, so nothing receives from them later."""
        # Adopted sockets may have dropped datagrams before.
        self._before = self._all_drops()
        self._path = _identity(self.address) if is_own else None

    def of(self, worker: int) -> Any:
        """Return the socket that a worker receives from."""
        return self.sockets[worker % len(self.sockets)]

    def check(self, settings: Settings) -> None:
        """Raise :class:`ValueError` if an option does not work with these sockets."""
        if settings.cores > 1 and settings.steering != "hash":
            if len(self.sockets) == 1:
                raise ValueError("there is nothing to steer: the workers share one socket")
            if not self.is_own:
                raise ValueError("cannot steer sockets that were given to the server")
        if settings.socket.proxy_flows is not None and len(self.sockets) < settings.workers:
            raise ValueError("proxy_flows needs a socket for each worker, but they share one")
        if settings.dtls is not None and len(self.sockets) < settings.cores:
            raise ValueError(
                "dtls needs a socket for each worker, because a session belongs to one worker, but "
                "some would share one: pass an address, or use one worker"
            )

    def refuse(self) -> None:
        """Refuse new datagrams, while queued ones can still be received and answered.

        The kernel refuses new datagrams as if the server were gone (with an ICMP message or, on
        ``AF_UNIX``, with ``EPIPE``), so no datagram is lost silently. Sockets that were passed to
        the server stay unchanged, because another program may continue to use them.
        """
        if not self.is_own:
            return
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                if sock.family == socket.AF_UNIX:
                    sock.shutdown(socket.SHUT_RD)
                else:
                    _connect_to_nobody(sock)

    def disable_gro(self) -> None:
        """Turn off coalescing on sockets that were passed to the server.

        The program that uses them next may not expect coalesced datagrams. The kernel delivers
        those that are already coalesced to the calling process, which must receive and handle them.
        """
        if not self.is_own:
            for sock in self.sockets:
                with contextlib.suppress(OSError):
                    sock.gro = False

    def drops(self) -> tuple[int, int]:
        """Return how many datagrams the kernel dropped before the sockets were closed.

        The first number counts datagrams that found the buffer full, the second those that a
        kernel filter dropped.
        """
        (dropped, filtered), (dropped_before, filtered_before) = self._all_drops(), self._before
        return dropped - dropped_before, filtered - filtered_before

    def _all_drops(self) -> tuple[int, int]:
        stats = [sock.stats() for sock in self.sockets]
        return sum(s.kernel_drops for s in stats), sum(s.filter_drops for s in stats)

    def close(self) -> None:
        """Close the sockets, and remove the ``AF_UNIX`` path that binding created."""
        if any(_has_gro(sock) for sock in self.sockets):
            self.disable_gro()  # a worker that was killed did not do this
        for sock in self.sockets:
            sock.close()
        if self._path is not None and self._path == _identity(self.address):
            with contextlib.suppress(OSError):
                Path(os.fsdecode(self.address)).unlink()


def open_listeners(settings: Settings) -> Listeners:
    """Open the sockets of a server, or adopt those that were passed to it.

    :raises ValueError: There are none, or they do not fit the server's options.
    """
    listeners = _open(settings)
    try:
        listeners.check(settings)
    except BaseException:
        listeners.close()
        raise
    return listeners


def _open(settings: Settings) -> Listeners:
    if settings.address is not None:
        with advised(settings.address, OF_OPENING):
            return listen(
                settings.address, settings.cores, settings.socket, steering=settings.steering
            )
    if settings.sock is not None:
        duplicate = os.dup(settings.sock.fileno())
        try:
            return adopt([duplicate], settings.socket)
        except BaseException:
            os.close(duplicate)
            raise
    descriptors = [settings.fd] if settings.fd is not None else passed_descriptors()
    if not descriptors:
        raise ValueError(
            "no address to serve: pass address, sock or fd, or start the program with "
            "systemd's socket activation (LISTEN_FDS)"
        )
    if len(descriptors) > settings.cores:
        raise ValueError(
            f"systemd has passed {len(descriptors)} sockets, each of which needs a worker: "
            f"pass workers={len(descriptors)}"
        )
    return adopt(descriptors, settings.socket)


def listen(
    address: Any, count: int, options: SocketOptions, *, steering: Steering = "hash"
) -> Listeners:
    """Open the sockets for ``count`` workers.

    All workers share one socket if several sockets cannot share the address (``AF_UNIX``), or if
    each of them would receive a copy of every datagram (a multicast group).
    """
    family, name = resolve(address)
    if family == socket.AF_UNIX or options.groups:
        count = 1
    with contextlib.ExitStack() as stack:
        sockets: list[Any] = []
        for _ in range(count):
            sock: Any = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            sockets.append(sock)
            if family == socket.AF_INET6 and name[0] == "::":
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            if len(sockets) > 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _bind(sock, name)
            if count > 1 and len(sockets) == 1:
                # Set the option only after binding: without it, the first bind fails if the port is
                # occupied, even by a server whose workers share the port.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                name = sock.getsockname()
            options.apply(sock)
        if count > 1:
            steer(sockets[0], steering, count, has_proxies=bool(options.proxy))
        listeners = Listeners(sockets, is_own=True)
        stack.pop_all()
    return listeners


def adopt(descriptors: Sequence[int], options: SocketOptions) -> Listeners:
    """Take over sockets that are already open and bound."""
    sockets: list[Any] = []
    try:
        for descriptor in descriptors:
            sock = _adopt_one(descriptor)
            sockets.append(sock)
            options.apply(sock)
        return Listeners(sockets, is_own=False)
    except BaseException:
        for sock in sockets:
            sock.detach()  # the caller still owns the descriptor
        raise


def _adopt_one(descriptor: int) -> Any:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        advise(error, f"descriptor {descriptor}")
        raise
    if not isinstance(sock, _core.Socket):
        reason = "is no datagram socket"
    elif not _is_bound(sock):
        reason = "is bound to no address"
    else:
        return sock
    sock.detach()
    raise ValueError(f"the socket of descriptor {descriptor} {reason}")


def is_passed() -> bool:
    """Return whether systemd has passed sockets to this process."""
    count, pid = os.environ.get("LISTEN_FDS", ""), os.environ.get("LISTEN_PID", "")
    return count.isdecimal() and int(count) > 0 and pid == str(os.getpid())


def passed_descriptors() -> list[int]:
    """Return the descriptors that systemd has passed to this process, and forget them.

    Like ``sd_listen_fds(3)``, this requires ``LISTEN_PID`` to be this process, and removes both
    variables so that child processes do not use them.
    """
    is_ours = is_passed()
    count = os.environ.pop("LISTEN_FDS", "")
    for name in ("LISTEN_PID", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    if not is_ours:
        return []
    descriptors = list(range(FIRST_PASSED_FD, FIRST_PASSED_FD + int(count)))
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return descriptors


def resolve(address: Any) -> tuple[int, Any]:
    """Return the family and the numeric form of a local address."""
    if isinstance(address, os.PathLike):
        address = os.fspath(address)
    check_address(address)
    if isinstance(address, str | bytes):
        return socket.AF_UNIX, address
    host, port, *rest = address
    flags = socket.AI_PASSIVE
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_DGRAM, flags=flags)  # noqa: S104
    except socket.gaierror as error:
        advise(error, str(host))
        raise
    family, _, _, _, name = found[0]
    if family == socket.AF_INET6 and rest:
        name = (*name[:2], *rest)
    return family, name


def _bind(sock: socket.socket, name: Any) -> None:
    try:
        sock.bind(name)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and _is_stale(name):
            Path(os.fsdecode(name)).unlink()
            sock.bind(name)
            return
        advise(error, format_address(name), OF_BINDING)
        raise


def _is_stale(path: Any) -> bool:
    """Return whether a path belongs to a socket that is no longer open."""
    if _identity(path) is None:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _identity(path: Any) -> tuple[int, int] | None:
    """Return an identity that distinguishes a socket's path from a later file at that path."""
    if not isinstance(path, str | bytes) or not path or path[:1] in ("\0", b"\0"):
        return None
    try:
        found = Path(os.fsdecode(path)).stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISSOCK(found.st_mode) else None


def _is_bound(sock: socket.socket) -> bool:
    name = sock.getsockname()
    return bool(name[1] if isinstance(name, tuple) else name or _is_connected(sock))


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _connect_to_nobody(sock: socket.socket) -> None:
    """Make a socket receive no new datagrams. Sending to an explicit address still works.

    A connected socket receives only from its peer. The peer is a port that no program is expected
    to send from (discard, RFC 863), at a loopback address, which the kernel does not accept as a
    source from other machines.
    """
    name = sock.getsockname()
    host = "::1" if sock.family == socket.AF_INET6 else "127.0.0.1"
    try:
        sock.connect((host, DISCARD if name[1] != DISCARD else DISCARD + 1))
    except OSError:  # there is no route from the socket's address
        sock.connect(name)


def _has_gro(sock: Any) -> bool:
    try:
        return bool(sock.getsockopt(socket.IPPROTO_UDP, socket.UDP_GRO))
    except OSError:  # AF_UNIX, or before Linux 5.0
        return False
