"""Plain clients for the server's suites, and a load that accounts for each request."""

import asyncio
import collections
import contextlib
import itertools
import socket as std
import threading
import time
from pathlib import Path

import tomada
from peer import DEADLINE


@contextlib.contextmanager
def client(address, timeout=DEADLINE, local=None):
    """Open a plain socket connected to a server."""
    family = std.AF_UNIX
    if isinstance(address, tuple):
        family = std.AF_INET if len(address) == 2 else std.AF_INET6
    with std.socket(family, std.SOCK_DGRAM) as sock:
        sock.settimeout(timeout)
        if local is not None:
            sock.bind(local)
        sock.connect(address)
        yield sock


def ask(address, data=b"ping", timeout=DEADLINE):
    """Send one request, and return the reply."""
    with client(address, timeout) as sock:
        sock.send(data)
        return sock.recv(1 << 17)


def refused(sock):
    """Return whether datagrams from a connected socket are refused."""
    try:
        sock.send(b"is anybody there")
        sock.recv(100)
    except ConnectionRefusedError:
        return True
    except TimeoutError:
        return False
    return False


def until_refused(sock):
    """Send datagrams until a server on loopback refuses them, and return how many it accepted."""
    timeout, accepted = sock.gettimeout(), 0
    sock.setblocking(False)
    try:
        while True:
            with contextlib.suppress(BlockingIOError):  # AF_UNIX: the queue is full
                sock.send(b"still there?")
                if sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR):
                    break
                accepted += 1
    except (BrokenPipeError, ConnectionRefusedError):
        pass
    sock.settimeout(timeout)
    return accepted


def server(handler, address=("127.0.0.1", 0), **options):
    """Create a server; a ``with`` block starts it."""
    return tomada.Server(address, handler, **options)


# The number of requests after which a client of a Load changes its port.
REQUESTS_PER_PORT = 50


class Load:
    """Plain clients that send one request at a time each, until they are stopped or refused.

    A client changes its port after some requests, so that sooner or later every worker gets some:
    the port decides which one.

    Every request is counted as ``answered``, ``refused`` or, if neither happens in time, ``lost``.
    """

    def __init__(self, address, clients=4, timeout=DEADLINE, check=lambda request, reply: True):
        self._address, self._timeout, self._check = address, timeout, check
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.answered = self.refused = self.lost = self.wrong = 0
        # The number of replies by their first word.
        self.replies = collections.Counter()
        self.progress = [0] * clients
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(clients)
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self._over.set()
        self.join()

    def join(self):
        """Wait until all clients have stopped: once they are refused, or after :meth:`stop`."""
        for thread in self._threads:
            thread.join(2 * DEADLINE)
            assert not thread.is_alive(), "a client hangs"

    def _run(self, number):
        requests = (b"%d:%d" % (number, count) for count in itertools.count())
        while True:
            with client(self._address, self._timeout) as sock:
                for request in itertools.islice(requests, REQUESTS_PER_PORT):
                    if self._over.is_set() or self._count(sock, number, request) == "refused":
                        return

    def _count(self, sock, number, request):
        outcome, reply = self._ask(sock, request)
        with self._lock:
            setattr(self, outcome, getattr(self, outcome) + 1)
            if reply is not None:
                self.replies[reply.partition(b" ")[0]] += 1
                self.wrong += not self._check(request, reply)
        self.progress[number] += outcome != "refused"
        return outcome

    def _ask(self, sock, request):
        end = time.monotonic() + self._timeout
        try:
            sock.send(request)
            while time.monotonic() < end:
                reply = sock.recv(1 << 16)
                if reply.endswith(request):
                    return "answered", reply
        except ConnectionRefusedError:
            return "refused", None
        except TimeoutError:
            pass
        return "lost", None


class Gate:
    """Blocks calls of an async handler until a test opens it, which releases all at once."""

    def __init__(self):
        self._loop = None
        self._waiting = []
        self._is_open = False
        self.most = self.inside = 0

    async def wait(self):
        self._loop = asyncio.get_running_loop()
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            if not self._is_open:
                waiter = self._loop.create_future()
                self._waiting.append(waiter)
                await waiter
        finally:
            self.inside -= 1

    def open(self):
        """Open it, once a call waits."""
        self._is_open = True
        self._loop.call_soon_threadsafe(self._release)

    def _release(self):
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)


# The beginning of a program with a server.
HEAD = """
import os, signal, sys, threading, time, socket, tomada

def say(*what):
    os.write(1, (" ".join(map(str, what)) + "\\n").encode())

def free(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(address)

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("127.0.0.1", 0))
    address = sock.getsockname()
workers = int(sys.argv[1])
"""


def members(group):
    """Return the processes of a process group that have not exited."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, _, its_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(its_group) == group and state != "Z":
                found.append(int(entry.name))
    return found
