"""Requests over a bad link, and a count of their results.

The long form makes 100,000 requests with each kind of ``Client``, and 8,000 from an endpoint, or
800 if they have a match, because such requests wait for one another. It prints their results.
"""

import contextlib
import itertools
import re
import threading

from families import LONG, length
from support import Child
from tomada.testing import impaired

# The number of requests in a test: with one in flight in each thread, with many in flight, and in
# tests where most requests wait for one another.
SINGLE = length(250, 100_000)
MANY = length(1000, 100_000)
FEW = length(250, 8000)
# The number of requests in a call of request_many, which waits for its last replies.
CALL = length(500, 10_000)

# The jitter also reorders datagrams.
IMPAIRMENTS = {"loss": 0.05, "duplicate": 0.02, "delay": 0.002, "jitter": 0.002}

# Longer than the delay of a late datagram, and short enough to wait for in a test.
TIMEOUT = 0.6

# How late a timeout may be, in seconds, because a busy machine delays threads.
LATENESS = 10.0

# The server is a process, because a thread would wait for the interpreter's lock, which the client
# holds. It ends by itself if its parent dies.
SERVER = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(60)
    print(sock.getsockname()[1], flush=True)
    while True:
        data, sender = sock.recvfrom(2048)
        sock.sendto(b"reply to " + data, sender)
"""

_numbers = itertools.count()


def answers(request, reply):
    return reply == b"reply to " + request


def number(data):
    """Return the key that a question and its reply share."""
    return data.removeprefix(b"reply to ")


@contextlib.contextmanager
def bad_link():
    """Yield a lossy link to a server that replies with the request's data."""
    with Child("-I", "-S", "-c", SERVER) as server:
        address = ("127.0.0.1", int(server.line()))
        with impaired(address, seed=12, log_size=0, **IMPAIRMENTS) as link:
            yield link
            path = link.stats.to_server
            assert path.lost or path.received < 200  # 200 datagrams all pass once in 28,000 times


def waited(error):
    """Return how long a request took according to its exception: in flight, and queued."""
    return sum(map(float, re.findall(r"(\d+\.\d+) s\b", str(error))))


class Tally:
    """Counts the results of requests, and fails if one got another's reply."""

    def __init__(self):
        self._lock = threading.Lock()
        self.answered = self.timed_out = self.wrong = 0
        self.longest = 0.0

    def add(self, question, reply, elapsed=0.0):
        with self._lock:
            if isinstance(reply, bytes):
                self.answered += 1
                self.wrong += not answers(question, reply)
            else:
                assert type(reply) is TimeoutError, reply
                self.timed_out += 1
                elapsed = elapsed or waited(reply)
                assert elapsed >= TIMEOUT * 0.99
            self.longest = max(self.longest, elapsed)
        assert elapsed < TIMEOUT + LATENESS

    def check(self, total, what):
        if LONG:
            print(
                f"{what}: {self.answered} answered, {self.timed_out} timed out, {self.wrong} "
                f"wrong, the longest took {self.longest:.3f} s of {TIMEOUT} s"
            )
        assert self.wrong == 0
        assert self.answered + self.timed_out == total
        # All four attempts of a request are rarely lost.
        assert self.answered > total / 2


def questions(count):
    return [b"%d" % next(_numbers) for _ in range(count)]
