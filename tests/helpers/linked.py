"""Plain sockets at the ends of a link, and checks of its counters."""

import contextlib
import socket as std
import time

from peer import DEADLINE


@contextlib.contextmanager
def plain(family=std.AF_INET, address=("127.0.0.1", 0)):
    """Open a plain socket."""
    with std.socket(family, std.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE)
        sock.bind(address)
        yield sock


def until(condition):
    """Wait until a condition holds, which should happen soon."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def assert_balanced(stats):
    """Check that the counters account for each datagram."""
    for path in (stats.to_server, stats.to_client):
        assert path.received + path.duplicated == path.sent + path.dropped + path.queued
