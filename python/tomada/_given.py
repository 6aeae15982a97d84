"""Sockets that the caller passes to a transport, which may have other holders."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from tomada import _core

if TYPE_CHECKING:
    import socket as _std
    from collections.abc import Callable

    from tomada._core import Guard

# linux/udp.h
SOL_UDP = 17
UDP_GRO = 104


class Given:
    """A socket that the caller shares, and its state before anything was changed."""

    def __init__(self, sock: _std.socket) -> None:
        self._sock = sock
        self._timeout = sock.gettimeout()
        try:
            self._blocks: bool | None = os.get_blocking(sock.fileno())
        except OSError:
            self._blocks = None  # it is closed; a later call raises the error

    def restore_mode(self) -> None:
        """Restore the blocking mode."""
        with contextlib.suppress(OSError):
            self._sock.settimeout(self._timeout)
        self._restore_blocking(self._sock.fileno())

    def set_up(
        self, ours: _core.Socket, *, gro: bool | None, guard: Guard | None
    ) -> Callable[[], None]:
        """Prepare a transport's socket; return a function that restores it before it is closed."""
        option = _gro_option(ours)
        former = ours.guard

        def restore() -> None:
            if guard is not None and ours.guard is guard:
                with contextlib.suppress(OSError):
                    ours.guard = former
            # Do not use `gro`, which would empty the queue that now belongs to the other holders.
            if option is not None and gro is not None and ours.gro == gro:
                with contextlib.suppress(OSError):
                    _core.Socket.setsockopt(ours, SOL_UDP, UDP_GRO, option)
            self._restore_blocking(ours.fileno())

        try:
            if gro is None:
                if option:
                    ours.gro = True  # the option is set already; this makes receives split
            elif option is not None:
                ours.gro = gro
            if guard is not None:
                ours.guard = guard
        except BaseException:
            restore()
            raise
        return restore

    def _restore_blocking(self, fd: int) -> None:
        if self._blocks is not None:
            with contextlib.suppress(OSError, ValueError):
                os.set_blocking(fd, self._blocks)


def _gro_option(sock: _core.Socket) -> int | None:
    """Return the kernel's option, or None if there is none, as on ``AF_UNIX``."""
    try:
        option: Any = _core.Socket.getsockopt(sock, SOL_UDP, UDP_GRO)
    except OSError:
        return None
    return int(option)
