"""Sockets that the caller passes to a transport and may also use elsewhere."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket as _std
    from collections.abc import Callable

    from tomada import _core
    from tomada._core import Guard


class Given:
    """A socket that the caller shares, with its original blocking mode.

    The core restores the options that a transport changes, because it counts which transports and
    servers of this process rely on each option.
    """

    def __init__(self, sock: _std.socket) -> None:
        self._sock = sock
        self._timeout = sock.gettimeout()
        try:
            self._blocks: bool | None = os.get_blocking(sock.fileno())
        except OSError:
            self._blocks = None  # closed; a later call raises the error

    def restore_mode(self) -> None:
        """Restore the blocking mode if no transport was created.

        A transport that closes leaves the socket non-blocking: by then, another library's transport
        may use a duplicate of the socket, and a blocking call would hang its event loop.
        """
        with contextlib.suppress(OSError):
            self._sock.settimeout(self._timeout)
        if self._blocks is not None:
            with contextlib.suppress(OSError, ValueError):
                os.set_blocking(self._sock.fileno(), self._blocks)

    def set_up(self, ours: _core.Socket, guard: Guard | None) -> Callable[[], None]:
        """Set a transport socket's guard; return a function that undoes this before closing."""
        former = ours.guard
        process = os.getpid()

        def restore() -> None:
            # In a forked child, the socket's filter belongs to the parent.
            if guard is not None and ours.guard is guard and os.getpid() == process:
                with contextlib.suppress(OSError):
                    ours.guard = former

        if guard is not None:
            try:
                ours.guard = guard
            except BaseException:
                restore()
                raise
        return restore
