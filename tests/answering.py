"""Plain ``socket`` servers that answer as they are told, and what their clients have in common."""

import collections
import contextlib
import itertools
import select
import socket as std
import threading
import time

from peer import DEADLINE

# As long as no test waits for it.
LONG = DEADLINE


class Server(threading.Thread):
    """A plain socket that answers each datagram as a function says: with a list of datagrams."""

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
            self.sock.settimeout(0.05)  # between looks at whether to end
            try:
                data, sender = self.sock.recvfrom(1 << 17)
            except TimeoutError:
                continue
            self.asked.append((data, sender))
            self.sock.settimeout(DEADLINE)
            for reply in self._answer(data):
                # A client that was answered once may have closed its end to the second answer.
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
    """A plain socket that sends back each datagram after a while, whatever comes meanwhile."""

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
    """Answers with what was asked, but drops a request or a reply wherever a function says so."""

    def __init__(self, drops):
        self._number = itertools.count()
        self._drops = drops

    def __call__(self, data):
        return [] if self._drops(next(self._number)) else [data]


def same(request, reply):
    return request == reply
