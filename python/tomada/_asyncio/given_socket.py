"""Sockets that the caller passes to a transport, which may have other holders."""

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
    """A socket that the caller shares, and how it was before anything was changed.

    The options that a transport changes are the core's to restore: it counts which transports and
    servers of this process rely on each.
    """

    def __init__(self, sock: _std.socket) -> None:
        self._sock = sock
        self._timeout = sock.gettimeout()
        try:
            self._blocks: bool | None = os.get_blocking(sock.fileno())
        except OSError:
            self._blocks = None  # it is closed; a later call raises the error

    def restore_mode(self) -> None:
        """Restore the blocking mode, where no transport was made.

        A transport leaves the socket non-blocking when it closes. By then a transport of another
        library may use a duplicate of the socket, and would hang its event loop in a blocking call.
        """
        with contextlib.suppress(OSError):
            self._sock.settimeout(self._timeout)
        if self._blocks is not None:
            with contextlib.suppress(OSError, ValueError):
                os.set_blocking(self._sock.fileno(), self._blocks)

    def set_up(self, ours: _core.Socket, guard: Guard | None) -> Callable[[], None]:
        """Give a transport's socket its guard, and return what undoes it before it is closed."""
        former = ours.guard
        process = os.getpid()

        def restore() -> None:
            # The filter that a forked child finds is its parent's.
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
