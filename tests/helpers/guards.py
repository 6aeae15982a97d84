"""A socket with a guard, and senders at any local address."""

import contextlib
import socket as std

from peer import DEADLINE
from tomada import socket

NEAR, FAR = "127.0.0.1", "127.9.8.7"


@contextlib.contextmanager
def guarded(guard=None, host="127.0.0.1", module=socket):
    """Open a guarded socket, and yield a function that sends to it from any local address."""
    family = std.AF_INET6 if ":" in host else std.AF_INET
    with module.socket(family, std.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE)
        sock.bind((host, 0))
        if guard is not None:
            sock.guard = guard
        port = sock.getsockname()[1]

        def send(data, source, to=None):
            of = std.AF_INET6 if ":" in source else std.AF_INET
            with std.socket(of, std.SOCK_DGRAM) as sender:
                sender.bind((source, 0))
                sender.sendto(data, (to or ("::1" if of == std.AF_INET6 else NEAR), port))

        yield sock, send
