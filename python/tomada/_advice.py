"""What to do about an error that the kernel has but a few words for."""

from __future__ import annotations

import errno

# By errno, for addresses that a server cannot have, and for datagrams that cannot be sent.
OF_BINDING = {
    errno.EADDRINUSE: "another socket has it; take another port, or 0 for any free one",
    errno.EACCES: "it takes a privilege (CAP_NET_BIND_SERVICE); take a port from 1024 on",
    errno.EADDRNOTAVAIL: "this machine has no such address; '0.0.0.0' or '::' stands for all that "
    "it has",
}
OF_SENDING = {
    errno.EMSGSIZE: "a datagram takes at most 65,507 bytes over IPv4, and less where the path or "
    "an option says so",
    errno.EACCES: "to broadcast, set SO_BROADCAST first",
    errno.ENETUNREACH: "no route leads there",
}


def advise(error: OSError, what: str, advice: dict[int, str] | None = None) -> None:
    """Add to an error's text what it is about, and what to do."""
    text = f"{error.strerror}: {what}"
    if advice and error.errno in advice:
        text += f" ({advice[error.errno]})"
    error.strerror = text
    error.args = (error.errno, text)
