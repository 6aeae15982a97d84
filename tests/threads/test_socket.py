"""Several threads on one socket: each datagram arrives once, and closing ends all calls."""

import contextlib
import errno
import os
import socket as std
import threading
import time

import pytest

import tomada
from support import DEADLINE, RACES, eventually, together
from tomada import socket
from traffic import RECEIVE_SOME, SEND_ALL, everything, numbered

pytestmark = pytest.mark.thread_unsafe(reason="it starts threads itself")

COUNT = 100 * RACES
# The maximum number of datagrams in flight: fewer than any queue holds.
WINDOW = 96
CHUNK = 16


class Flow:
    """Datagrams from several threads to several others, at most as many as the queue holds."""

    def __init__(self, count):
        self._room = threading.Semaphore(WINDOW)
        self._count = count
        self._lock = threading.Lock()
        self._end = time.monotonic() + DEADLINE
        self.received = []

    @property
    def is_over(self):
        assert time.monotonic() < self._end, "datagrams were lost"
        return len(self.received) >= self._count

    def send(self, sock, to, datagrams, way):
        """Send datagrams as fast as they are received."""
        for start in range(0, len(datagrams), CHUNK):
            chunk = datagrams[start : start + CHUNK]
            for _ in chunk:
                assert self._room.acquire(timeout=DEADLINE), "datagrams were lost"
            SEND_ALL[way](sock, [(data, to) for data in chunk])

    def receive(self, sock, way):
        """Receive until everything that was sent is received, whether or not the socket waits."""
        while not self.is_over:
            with contextlib.suppress(TimeoutError, BlockingIOError):
                received = [bytes(data) for data, _ in RECEIVE_SOME[way](sock, 7)]
                with self._lock:
                    self.received += received
                self._room.release(len(received))


@pytest.fixture(params=[False, True], ids=["plain", "gro"])
def shared(request, kind):
    """Open a socket with a short timeout, with or without coalescing."""
    if kind.is_unix and request.param:
        pytest.skip("gro is for IP")
    with kind.bound(socket) as sock:
        sock.settimeout(0.05)
        if request.param:
            sock.gro = True
        yield sock


def exchange(sock, sender, *others):
    """Send and receive in several threads, beside others; check that everything arrives."""
    to = sock.getsockname()
    ways = [way for way in SEND_ALL if way != "a run" or sock.family != std.AF_UNIX]
    number = len(ways)
    sent = numbered(COUNT * number)
    flow = Flow(len(sent))
    together(
        *(lambda way=way: flow.receive(sock, way) for way in RECEIVE_SOME),
        *(
            lambda way=way, mine=sent[index::number]: flow.send(sender, to, mine, way)
            for index, way in enumerate(ways)
        ),
        *(lambda other=other: other(flow) for other in others),
    )
    assert sorted(flow.received) == sent
    return len(sent)


def test_threads_share_a_socket_to_send_and_receive(kind, shared):
    with kind.bound(socket) as sender:
        count = exchange(shared, sender)
        stats = shared.stats()
        assert (stats.received, stats.received_bytes) == (count, 8 * count)
        assert sender.stats().sent_bytes == 8 * count
        assert (stats.truncated, stats.kernel_drops, stats.errors) == (0, 0, 0)
        assert shared.pending == 0


def test_nothing_is_lost_while_another_thread_changes_the_timeout(kind, shared):
    def meddle(flow):
        while not flow.is_over:
            for timeout in (0, 0.01, 0.002):
                shared.settimeout(timeout)
                shared.spin = timeout / 10
                assert shared.gettimeout() == timeout

    with kind.bound(socket) as sender:
        exchange(shared, sender, meddle)


def test_nothing_is_lost_while_another_thread_changes_options(kind, shared):
    def meddle(flow):
        while not flow.is_over:
            shared.setsockopt(std.SOL_SOCKET, std.SO_BROADCAST, 1)
            assert shared.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == 0
            with contextlib.suppress(TimeoutError, BlockingIOError):
                shared.recv(1, std.MSG_PEEK)
            assert shared.errors() == []

    with kind.bound(socket) as sender:
        exchange(shared, sender, meddle)


def test_nothing_is_lost_while_another_thread_changes_the_guard(inet):
    def meddle(flow):
        guards = [tomada.Guard(max_size=100), None, tomada.Guard(allow=["127.0.0.0/8"])]
        while not flow.is_over:
            for guard in guards:
                sock.guard = guard
                assert sock.guard is guard
                os.sched_yield()

    with inet.bound(socket) as sock, inet.bound(socket) as sender:
        sock.settimeout(0.05)
        sock.gro = True
        exchange(sock, sender, meddle)
        assert sock.stats().refused == 0


def test_counters_only_grow_while_threads_receive(inet):
    def watch(flow):
        last = sock.stats()
        while not flow.is_over:
            stats = sock.stats()
            assert stats.received >= last.received
            assert stats.receive_calls >= last.receive_calls
            assert str(sock.getsockname()[1]) in repr(sock)
            last = stats

    with inet.bound(socket) as sock, inet.bound(socket) as sender:
        sock.settimeout(0.05)
        exchange(sock, sender, watch, watch)


# The calls that threads make on a socket until another thread closes it.
USES = {
    "recvfrom": lambda sock, _: sock.recvfrom(100),
    "recv_many": lambda sock, _: sock.recv_many(),
    "recv_batch": lambda sock, _: sock.recv_batch(tomada.Batch(4)),
    "recvmsg": lambda sock, _: sock.recvmsg(100),
    "sendto": lambda sock, to: sock.sendto(b"x", to),
    "send_many": lambda sock, to: sock.send_many([b"x", b"y"], to),
    "setsockopt": lambda sock, _: sock.setsockopt(std.SOL_SOCKET, std.SO_BROADCAST, 1),
    "settimeout": lambda sock, _: sock.settimeout(0.01),
    "ask": lambda sock, _: (sock.stats(), sock.pending, sock.errors(), sock.getsockname()),
}


def until_closed(use, sock, to, calls):
    """Use a socket until it is closed, and return the errno of the error."""
    while True:
        try:
            use(sock, to)
        except (TimeoutError, BlockingIOError):
            pass
        except OSError as error:
            return error.errno
        calls.append(None)


def strangers():
    """Check that no thread reads from, or writes to, a socket that reuses a descriptor's number."""
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.settimeout(DEADLINE)
        for data in numbered(50):
            stranger.sendto(data, stranger.getsockname())
        assert [stranger.recv(100) for _ in range(50)] == numbered(50)
        assert stranger.getsockopt(std.SOL_SOCKET, std.SO_BROADCAST) == 0
        return stranger.fileno()


@pytest.mark.parametrize("end", ["close", "detach"])
def test_close_in_one_thread_while_others_use_the_socket(kind, end):
    for _ in range(RACES):
        sock, calls = kind.bound(socket), []
        sock.settimeout(0.01)
        to = sock.getsockname()

        def finish(sock=sock, calls=calls):
            eventually(lambda: len(calls) > 50)
            fd = sock.detach() if end == "detach" else sock.close()
            assert sock.fileno() == -1
            strangers()
            if end == "detach":
                os.close(fd)

        uses = [
            lambda use=use, sock=sock, to=to, calls=calls: until_closed(use, sock, to, calls)
            for use in USES.values()
        ]
        numbers = together(*uses, finish)
        assert numbers == [errno.EBADF] * len(USES) + [None]


def test_datagrams_not_received_by_threads_stay_with_the_descriptor(kind):
    def receive(way):
        with contextlib.suppress(OSError):
            while True:
                received.extend(bytes(data) for data, _ in RECEIVE_SOME[way](sock, 1))

    def detach():
        eventually(lambda: len(received) > 10)
        return sock.detach()

    for _ in range(RACES):
        sock, received, sent = kind.bound(socket), [], []
        with kind.bound(socket) as sender:
            to = sock.getsockname()

            def send(sender=sender, to=to, sent=sent):
                with contextlib.suppress(TimeoutError):  # full, and no thread reads any longer
                    for data in numbered(200):
                        sender.sendto(data, to)
                        sent.append(data)

            sender.settimeout(0.05)
            *_, fd = together(*(lambda way=way: receive(way) for way in RECEIVE_SOME), send, detach)
            with std.socket(fileno=fd) as rest:
                left = [data for data, _ in everything(rest)]
        assert sorted([*received, *left]) == sorted(sent)


def test_close_and_detach_at_once_give_the_descriptor_to_one(inet):
    for _ in range(10 * RACES):
        sock = inet.bound(socket)
        _, fd, again = together(sock.close, sock.detach, sock.detach)
        assert sock.fileno() == -1
        assert -1 in {fd, again}
        for number in {fd, again} - {-1}:
            os.close(number)


def test_init_in_several_threads_opens_one_socket(inet):
    for _ in range(10 * RACES):
        sock = socket.socket.__new__(socket.socket)

        def start(sock=sock):
            try:
                sock.__init__(std.AF_INET, std.SOCK_DGRAM)
            except RuntimeError as error:
                return str(error)

        results = together(start, start, start)
        assert sorted(map(bool, results)) == [False, True, True]
        sock.bind(inet.address())
        sock.close()
