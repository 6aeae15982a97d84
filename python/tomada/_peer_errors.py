"""Errors about single peers, which must not end an endpoint that talks to many."""

from __future__ import annotations

import errno
from collections import deque
from typing import TYPE_CHECKING, TypeGuard

from tomada._address import format_address
from tomada._advice import OF_SENDING_LATER
from tomada._reports import LogLimiter, logger

if TYPE_CHECKING:
    from tomada._core import DatagramError

# linux/errqueue.h
SO_EE_ORIGIN_LOCAL = 1

# The number of errors to store until the program takes them. Beyond it, the oldest are dropped.
KEPT = 256

# The errors that a receive can raise because of a peer: the kernel's tables icmp_err_convert and
# icmpv6_err_convert, and the error for an ICMP "parameter problem".
FROM_PEERS = frozenset(
    {
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPROTO,
        errno.EMSGSIZE,
        errno.EACCES,
    }
)


def is_from_peer(error: BaseException) -> TypeGuard[OSError]:
    """Return whether a receive raised an error because of a peer; the socket itself still works.

    A send on a connected socket may also raise such an error about an earlier datagram. Repeating
    the send shows whether the error is its own.
    """
    return isinstance(error, OSError) and error.errno in FROM_PEERS


class PeerErrors:
    """Stores the most recent errors, and logs them at a limited rate."""

    def __init__(self) -> None:
        self._kept: deque[DatagramError] = deque(maxlen=KEPT)
        self._limiter = LogLimiter()
        self.count = 0

    def note(self, error: Exception) -> None:
        """Count and log an error, and store it if it says which datagram it is about."""
        self.count += 1
        about: DatagramError | None = getattr(error, "datagram_error", None)
        if about is None:
            self._log("receive", "an error from a peer: %s%s", error)
            return
        self._kept.append(about)
        was_sent = about.origin != SO_EE_ORIGIN_LOCAL
        text = "lost on the way to %s: %s%s" if was_sent else "not sent to %s: %s%s"
        advice = OF_SENDING_LATER.get(about.errno)
        reason = f"{error} ({advice})" if advice else error
        self._log("lost" if was_sent else "send", text, format_address(about.peer), reason)

    def take(self) -> list[DatagramError]:
        """Return the stored errors, oldest first, and forget them."""
        taken = list(self._kept)
        self._kept.clear()
        return taken

    def _log(self, kind: str, text: str, *args: object) -> None:
        suffix = self._limiter.suffix(kind)
        if suffix is not None:
            logger.warning(text, *args, suffix)
