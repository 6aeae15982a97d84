"""Advice for errors about which the kernel says little."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tomada._address import format_address

if TYPE_CHECKING:
    from threading import Thread

# By errno: for sockets, threads and processes that cannot be opened or started, for addresses that
# a server cannot use, and for datagrams that cannot be sent.
OF_OPENING = {
    errno.EMFILE: "this process has as many descriptors as its limit allows: raise it (ulimit -n; "
    "LimitNOFILE= in a unit of systemd), or close some",
    errno.ENFILE: "the machine has as many descriptors as sysctl fs.file-max allows",
    errno.EAGAIN: "no process or thread is left: the limit is that of the user (ulimit -u), of the "
    "control group (pids.max, TasksMax=) or of the machine (kernel.threads-max)",
    errno.ENOMEM: "the kernel has no memory for it",
    errno.ENOBUFS: "the kernel has no memory for it",
}
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
    errno.EHOSTUNREACH: "the host does not answer on its network, or a router knows no way to it",
    errno.ENETDOWN: "the interface is down",
    errno.EAGAIN: "the buffer of the socket or the peer was full for a second, or newer datagrams "
    "took the room",
    errno.EADDRNOTAVAIL: "the address to send from is no more this machine's",
}


def advise(error: OSError, what: str, advice: dict[int, str] | None = None) -> None:
    """Add the subject of an error, and advice, to its text."""
    text = f"{error.strerror}: {what}"
    if advice and error.errno in advice:
        text += f" ({advice[error.errno]})"
    error.strerror = text
    error.args = (error.errno, text)


@contextlib.contextmanager
def advised(address: Any, advice: dict[int, str]) -> Iterator[None]:
    """Add an address and advice to the text of errors for which there is advice."""
    try:
        yield
    except OSError as error:
        if error.errno in advice:
            advise(error, format_address(address), advice)
        raise


def start_thread(thread: Thread) -> None:
    """Start a thread, or raise :class:`OSError` if the system cannot create one."""
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
