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

# Advice by errno, for the socket, the endpoint, the server, the client and the command line. The
# meaning of an errno depends on the operation, so each operation has a table.

# Opening a socket, or starting a thread or a process.
OF_OPENING = {
    errno.EMFILE: "this process has reached its limit of open files: close some, or raise it "
    "(ulimit -n; LimitNOFILE= in a systemd unit)",
    errno.ENFILE: "the machine has reached its limit of open files: raise sysctl fs.file-max",
    errno.EAGAIN: "no more processes or threads can be started: raise the limit of the user "
    "(ulimit -u), the control group (pids.max, TasksMax=) or the machine (sysctl "
    "kernel.threads-max)",
    errno.ENOMEM: "the kernel has no memory left",
    errno.ENOBUFS: "the kernel has no memory left",
}

# Binding a socket.
OF_BINDING = {
    errno.EADDRINUSE: "another socket uses this address: choose another port, or 0 for a free one",
    errno.EACCES: "ports below 1024 are privileged: choose a higher one, or give the process "
    "CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: "this machine does not have this address: '0.0.0.0' or '::' stands for "
    "all of its addresses",
}

# Sending a datagram. The socket's methods use it too: the core looks it up.
OF_SENDING = {
    errno.EMSGSIZE: "split it: a datagram carries at most 65,507 bytes over IPv4 or 65,527 over "
    "IPv6, and only what fits the path MTU if the socket forbids fragments (IP_MTU_DISCOVER)",
    errno.EACCES: "to broadcast, set SO_BROADCAST first",
    errno.EDESTADDRREQ: "pass an address, or connect the socket",
    errno.ENETUNREACH: "there is no route to this address, or the local address no longer belongs "
    "to this machine",
    errno.EHOSTUNREACH: "the host does not respond on its network, or a router has no route to it",
    errno.ENETDOWN: "the network interface is down",
    errno.ENOBUFS: "a queue on the path to the device is full: retry later, or send fewer "
    "datagrams at a time",
    errno.EADDRNOTAVAIL: "the local address no longer belongs to this machine",
}

# Waiting for a DTLS handshake: the possible causes on the peer's side.
OF_SECURING = (
    "does not answer with DTLS, uses a different pre-shared key, or is slower than the timeout"
)

# Sending a datagram from the send backlog of an endpoint without a peer.
OF_SENDING_LATER = {
    **OF_SENDING,
    errno.EAGAIN: "the buffer of the socket or the peer was full for one second, or newer "
    "datagrams took its place",
}


def advise(error: OSError, what: str, advice: dict[int, str] | None = None) -> None:
    """Add a subject and advice to the text of an error."""
    text = f"{error.strerror}: {what}"
    if advice and error.errno in advice:
        text += f" ({advice[error.errno]})"
    error.strerror = text
    error.args = (error.errno, text)


def without_batch(error: OSError) -> OSError:
    """Remove a datagram's place in a batch, which the core adds, from the text of an error."""
    if error.errno is not None:
        text = os.strerror(error.errno)
        if str(error.strerror).startswith(f"{text} (datagram "):
            error.strerror = text
            error.args = (error.errno, text)
    return error


def advise_on_sending(error: OSError, address: Any) -> None:
    """Add the destination and advice to an error from sending that has only the kernel's text."""
    if error.errno in OF_SENDING and error.strerror == os.strerror(error.errno):
        advise(error, format_address(address), OF_SENDING)


def advise_if_known(error: OSError, address: Any, advice: dict[int, str]) -> None:
    """Add an address and advice to the text of an error if there is advice for it."""
    if error.errno in advice:
        advise(error, format_address(address), advice)


@contextlib.contextmanager
def advised(address: Any, advice: dict[int, str]) -> Iterator[None]:
    """Add an address and advice to the text of errors for which there is advice."""
    try:
        yield
    except OSError as error:
        advise_if_known(error, address, advice)
        raise


def start_thread(thread: Thread) -> None:
    """Start a thread, or raise :class:`OSError` if the system cannot create one."""
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
