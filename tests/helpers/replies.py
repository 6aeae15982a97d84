"""Requests over a bad link, and a count of what became of them.

``TOMADA_LONG=1`` makes more than 100,000 requests, and prints their results.
"""

import contextlib
import itertools
import os
import threading

from answering import Server
from tomada.testing import impaired

IS_LONG = os.environ.get("TOMADA_LONG") == "1"

# The number of requests of each kind of client: sequential, or many in flight.
SINGLE = 8000 if IS_LONG else 250
MANY = 30_000 if IS_LONG else 1000

# The jitter also reorders.
IMPAIRMENTS = {"loss": 0.05, "duplicate": 0.02, "delay": 0.002, "jitter": 0.002}

# Longer than the delay of a late datagram, and short enough to wait for in a test.
TIMEOUT = 0.6

# How much a deadline may be missed by, in seconds, because a busy machine delays threads.
LATENESS = 10.0

_numbers = itertools.count()


def answers(request, reply):
    return reply == b"reply to " + request


def number(data):
    """Return the key of a question and of its reply."""
    return data.removeprefix(b"reply to ")


@contextlib.contextmanager
def bad_link(kind):
    """Provide a lossy link to a server that replies with the request's data."""
    with (
        Server(kind, lambda data: [b"reply to " + data]) as server,
        impaired(server.address, seed=12, log_size=0, **IMPAIRMENTS) as link,
    ):
        server.asked = _Forgetful()
        yield link
        path = link.stats.to_server
        assert path.lost or path.received < 200  # which all pass once in 28,000 times


class _Forgetful(list):
    """A list that stores nothing, because the long form would need much memory."""

    def append(self, _item):
        pass


class Tally:
    """Counts the results of requests, and fails if one got another's reply."""

    def __init__(self):
        self._lock = threading.Lock()
        self.answered = self.timed_out = self.wrong = 0

    def add(self, question, reply, elapsed=0.0):
        with self._lock:
            if isinstance(reply, bytes):
                self.answered += 1
                self.wrong += not answers(question, reply)
            else:
                assert type(reply) is TimeoutError, reply
                self.timed_out += 1
                assert elapsed == 0.0 or elapsed >= TIMEOUT * 0.99
        assert elapsed < TIMEOUT + LATENESS

    def check(self, total, what):
        if IS_LONG:
            print(
                f"{what}: {self.answered} answered, {self.timed_out} timed out, {self.wrong} wrong"
            )
        assert self.wrong == 0
        assert self.answered + self.timed_out == total
        # It is rare that all four attempts are lost.
        assert self.answered > total / 2


def questions(count):
    return [b"%d" % next(_numbers) for _ in range(count)]
