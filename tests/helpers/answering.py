"""Plain ``socket`` servers that reply as a test tells them to, and code shared by clients."""

import collections
import contextlib
import itertools
import select
import socket as std
import threading
import time

from peer import DEADLINE

# A delay that no test waits for.
LONG = DEADLINE


class Server(threading.Thread):
    """A plain socket that replies to each datagram with the list that a function returns."""

    def __init__(self, kind, answer, address=None):
        super().__init__(daemon=True)
        self.sock = std.socket(kind.family, std.SOCK_DGRAM)
        self.sock.bind(address or kind.address())
        self.address = self.sock.getsockname()
        self.asked = []
        self._answer = answer
        self._is_ending = False
        self.start()

    def run(self):
        while not self._is_ending:
            self.sock.settimeout(0.05)  # how often to check whether to end
            try:
                data, sender = self.sock.recvfrom(1 << 17)
            except TimeoutError:
                continue
            self.asked.append((data, sender))
            self.sock.settimeout(DEADLINE)
            for reply in self._answer(data):
                # A client that has its reply may have closed its socket before the second one
                # arrives.
                with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
                    self.sock.sendto(reply, sender)

    def end(self):
        self._is_ending = True
        self.join()
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


class Slow(threading.Thread):
    """A plain socket that echoes each datagram after a delay, whatever else arrives meanwhile."""

    def __init__(self, kind, seconds):
        super().__init__(daemon=True)
        self.sock = std.socket(kind.family, std.SOCK_DGRAM)
        self.sock.bind(kind.address())
        self.address = self.sock.getsockname()
        self.asked = []
        self._seconds = seconds
        self._is_ending = False
        self.start()

    def run(self):
        waiting = collections.deque()
        while not self._is_ending:
            due = waiting[0][0] if waiting else time.monotonic() + 0.05
            if select.select([self.sock], [], [], max(due - time.monotonic(), 0))[0]:
                data, sender = self.sock.recvfrom(1 << 17)
                self.asked.append((data, sender))
                waiting.append((time.monotonic() + self._seconds, data, sender))
            while waiting and waiting[0][0] <= time.monotonic():
                _, data, sender = waiting.popleft()
                with contextlib.suppress(ConnectionRefusedError):
                    self.sock.sendto(data, sender)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._is_ending = True
        self.join()
        self.sock.close()


def echo(data):
    return [data]


def silence(_data):
    return []


class Lossy:
    """Echoes requests, but drops the requests and replies that a function selects."""

    def __init__(self, drops):
        self._number = itertools.count()
        self._drops = drops

    def __call__(self, data):
        return [] if self._drops(next(self._number)) else [data]


def same(request, reply):
    return request == reply
