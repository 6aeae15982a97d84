"""Signals at random moments of receiving: nothing is lost, and nothing is received twice."""

import contextlib
import signal
import socket as std
import threading

import pytest

import tomada
from families import length
from support import DEADLINE, Call, eventually
from tomada import socket

pytestmark = pytest.mark.thread_unsafe(reason="only the main thread handles signals")

SIGNALS = length(300)
END = b"end"


class AlarmError(Exception):
    """The exception that a handler raises."""


class Traffic:
    """Sends numbers to a socket, and signals to the main thread, then the end."""

    def __init__(self, kind, sock, calls):
        self.sent = []
        self._kind, self._sock, self._calls = kind, sock, calls
        self._is_over = threading.Event()
        self._sending, self._signalling = Call(self._send), Call(self._signal)

    def _send(self):
        with self._kind.open(std) as sender:
            sender.settimeout(DEADLINE)
            while not self._is_over.is_set():
                self.sent.append(b"%d" % len(self.sent))
                sender.sendto(self.sent[-1], self._sock.getsockname())
            sender.sendto(END, self._sock.getsockname())

    def _signal(self):
        for number in range(1, SIGNALS + 1):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
            eventually(lambda number=number: len(self._calls) >= number)
        self._is_over.set()

    def end(self):
        self._signalling.result()
        self._sending.result()


@pytest.fixture
def traffic(unix, handler):
    """Start the traffic, with a function that the signal handler calls."""
    with unix.bound(socket) as sock:
        sock.settimeout(DEADLINE)
        yield lambda action: (sock, Traffic(unix, sock, handler(lambda: action(sock))))


def test_exceptions_of_signal_handlers_at_random_moments_lose_nothing(traffic):
    batch, received = tomada.Batch(4), []
    is_armed = False

    def alarm(_):
        nonlocal is_armed
        if is_armed:
            is_armed = False
            raise AlarmError

    sock, sending = traffic(alarm)
    while END not in received:
        batch.clear()
        try:
            is_armed = True
            sock.recv_batch(batch)
            is_armed = False
        except AlarmError:
            pass  # before, in or after the call
        received += [bytes(data) for data, _ in batch]
    sending.end()
    assert received == [*sending.sent, END]


def test_receive_in_a_signal_handler_at_random_moments_of_another(traffic):
    received, inner = [], []

    def receive(sock):
        with contextlib.suppress(BlockingIOError):
            inner.extend(data for data, _ in sock.recv_many(2, std.MSG_DONTWAIT))
        if END in inner:  # the other receive waits for it
            inner.remove(END)
            sock.sendto(END, sock.getsockname())

    sock, sending = traffic(receive)
    while END not in received:
        received += [data for data, _ in sock.recv_many(4)]
    sending.end()
    received.remove(END)
    assert sorted(received + inner) == sorted(sending.sent)
    # Not so the others: a handler may interrupt a handler.
    assert received == sorted(received, key=int)
