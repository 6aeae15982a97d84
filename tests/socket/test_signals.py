"""Signals during a wait: handlers run, and the call continues (PEP 475) or raises."""

import errno
import os
import signal
import sys
import threading
import time

import pytest

import tomada
from support import (
    CLOSED,
    DEADLINE,
    RECEIVE,
    Call,
    Child,
    RefusalError,
    eventually,
    fill,
    interrupt,
    run,
    sleeps_in_the_kernel,
)
from tomada import socket

pytestmark = pytest.mark.thread_unsafe(reason="only the main thread handles signals")

RECEIVE_ALL = RECEIVE | {
    "recv_many": socket.socket.recv_many,
    "recv_batch": lambda sock: sock.recv_batch(tomada.Batch(4)),
    "recv_datagram": socket.socket.recv_datagram,
}

every_receive = pytest.mark.parametrize("receive", RECEIVE.values(), ids=RECEIVE)

# Signals interrupt the main thread, which runs these tests.
MAIN = threading.main_thread()


@every_receive
@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_wait_continues_after_a_handler_that_returns(kind, handler, receive, timeout):
    calls = handler()
    with kind.bound(socket) as sock:
        sock.settimeout(timeout)

        def disturb():
            for count in (1, 2, 3):
                interrupt()
                eventually(lambda count=count: len(calls) == count)
            eventually(lambda: sleeps_in_the_kernel("self", MAIN.native_id))
            sock.sendto(b"awaited", sock.getsockname())

        disturbing = Call(disturb)
        assert receive(sock) in {b"awaited", 7}
        disturbing.result()
        assert len(calls) == 3


@pytest.mark.parametrize("receive", RECEIVE_ALL.values(), ids=RECEIVE_ALL)
def test_signal_that_arrives_while_another_thread_is_busy(inet, handler, receive):
    calls = handler()
    may_begin = threading.Event()
    with inet.bound(socket) as sock:
        sock.settimeout(None)

        def be_busy():
            may_begin.wait()
            # With the global lock, this thread runs from the moment that the other one waits in
            # the call until its loop is done. Until then the other one cannot continue.
            end = time.monotonic() + 0.02
            while time.monotonic() < end:
                pass
            signal.pthread_kill(MAIN.ident, signal.SIGUSR1)
            sys.setswitchinterval(interval)
            try:
                eventually(lambda: calls)
            finally:
                sock.sendto(b"awaited", sock.getsockname())

        interval = sys.getswitchinterval()
        busy = Call(be_busy)
        sys.setswitchinterval(DEADLINE)
        may_begin.set()
        try:
            receive(sock)
        finally:
            sys.setswitchinterval(interval)
        busy.result()


def test_sender_continues_to_wait_after_a_handler_that_returns(unix, handler):
    calls = handler()
    with unix.bound(socket) as receiver, unix.open(socket) as sender:
        count = fill(sender, receiver.getsockname())

        def disturb():
            interrupt()
            eventually(lambda: calls)
            return [receiver.recv(100) for _ in range(count + 1)]

        disturbing = Call(disturb)
        assert sender.sendto(b"late", receiver.getsockname()) == 4
        assert disturbing.result()[-1] == b"late"


def test_deadline_holds_however_often_handlers_run(inet, handler):
    calls = handler()
    over = threading.Event()

    def disturb():
        end = time.monotonic() + DEADLINE
        while not over.wait(0.005) and time.monotonic() < end:
            signal.pthread_kill(MAIN.ident, signal.SIGUSR1)

    with inet.bound(socket) as sock:
        sock.settimeout(0.1)
        disturbing = Call(disturb)
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            sock.recv(100)
        elapsed = time.monotonic() - start
        over.set()
        disturbing.result()
        # A timeout that restarted with each signal would last as long as the signals.
        assert 0.1 <= elapsed < DEADLINE
        assert calls


@every_receive
def test_exception_of_a_handler_ends_the_wait_and_loses_nothing(kind, handler, receive):
    def refuse():
        raise RefusalError("no", "why")

    handler(refuse)
    with kind.bound(socket) as sock:
        disturbing = Call(interrupt)
        with pytest.raises(RefusalError):
            receive(sock)
        disturbing.result()
        sock.sendto(b"still here", sock.getsockname())
        assert sock.recv(100) == b"still here"


def test_exception_of_a_handler_ends_the_wait_of_a_sender(unix, handler):
    def refuse():
        raise RefusalError("no", "why")

    handler(refuse)
    with unix.bound(socket) as receiver, unix.open(socket) as sender:
        count = fill(sender, receiver.getsockname())
        disturbing = Call(interrupt)
        with pytest.raises(RefusalError):
            sender.sendto(b"never", receiver.getsockname())
        disturbing.result()
        assert [int(receiver.recv(100)) for _ in range(count)] == list(range(count))
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv(100)


@every_receive
def test_handler_may_close_the_socket_of_the_wait(kind, handler, receive):
    with kind.bound(socket) as sock:
        handler(sock.close)
        disturbing = Call(interrupt)
        with pytest.raises(OSError, match=CLOSED):
            receive(sock)
        disturbing.result()
        assert sock.fileno() == -1


def test_handler_may_detach_the_socket_of_the_wait(inet, handler):
    detached = []
    with inet.bound(socket) as sock:
        handler(lambda: detached.append(sock.detach()))
        disturbing = Call(interrupt)
        with pytest.raises(OSError, match=CLOSED):
            sock.recv(100)
        disturbing.result()
        os.close(detached.pop())


def test_handler_may_close_the_socket_of_a_waiting_sender(unix, handler):
    with unix.bound(socket) as receiver, unix.open(socket) as sender:
        fill(sender, receiver.getsockname())
        handler(sender.close)
        disturbing = Call(interrupt)
        with pytest.raises(OSError, match=CLOSED):
            sender.sendto(b"never", receiver.getsockname())
        disturbing.result()


def test_handler_may_receive_from_the_same_socket(inet, handler):
    with inet.bound(socket) as sock:
        received = []

        def receive():
            sock.sendto(b"for the handler", sock.getsockname())
            received.append(sock.recv(100))

        handler(receive)

        def disturb():
            interrupt()
            eventually(lambda: received)
            sock.sendto(b"for the call", sock.getsockname())

        disturbing = Call(disturb)
        assert sock.recv(100) == b"for the call"
        disturbing.result()
        assert received == [b"for the handler"]


def test_handler_may_wait_for_another_socket_and_both_be_closed(inet, handler):
    with inet.bound(socket) as outer, inet.bound(socket) as inner:
        errors = []

        def wait():
            try:
                inner.recv(100)
            except OSError as error:
                errors.append(error.errno)

        calls = handler(wait)

        def disturb():
            interrupt()
            eventually(lambda: calls)
            eventually(lambda: sleeps_in_the_kernel("self", MAIN.native_id))
            # The thread that is woken for the outer socket is still in the handler.
            closing = Call(outer.close)
            inner.close()
            closing.result()

        disturbing = Call(disturb)
        with pytest.raises(OSError, match=CLOSED):
            outer.recv(100)
        disturbing.result()
        assert errors == [errno.EBADF]


def test_handler_may_change_the_timeout(inet, handler):
    with inet.bound(socket) as sock:
        sock.settimeout(None)
        calls = handler(lambda: sock.settimeout(5))

        def disturb():
            interrupt()
            eventually(lambda: calls)
            sock.sendto(b"x", sock.getsockname())

        disturbing = Call(disturb)
        assert sock.recv(100) == b"x"
        disturbing.result()
        assert sock.gettimeout() == 5


def test_signal_does_not_end_the_waits_of_other_threads(inet, handler):
    calls = handler()
    with inet.bound(socket) as sock, inet.bound(socket) as mine:
        waiting = Call(sock.recv, 100).until_it_waits()
        signal.pthread_kill(waiting.ident, signal.SIGUSR1)
        eventually(lambda: calls)
        assert waiting.is_alive()
        mine.sendto(b"x", sock.getsockname())
        assert waiting.result() == b"x"


INTERRUPTED = """
import sys
from tomada import socket

sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", 0))
sock.settimeout({timeout})
print(flush=True)
try:
    {call}
finally:
    sock.sendto(b"works", sock.getsockname())
    print(sock.recv(10).decode())
    sock.close()
"""


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("timeout", ["None", "60"])
@pytest.mark.parametrize("call", ["sock.recvfrom(10)", "sock.recv_into(bytearray(10))"])
def test_ctrl_c_ends_a_wait(timeout, call):
    with Child("-c", INTERRUPTED.format(timeout=timeout, call=call)) as child:
        child.line()
        child.until_it_waits()
        child.signal(signal.SIGINT)
        status, output, errors = child.end()
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
    assert output == "works\n"
    # Python kills itself with the signal, so that a shell sees the cause.
    assert status == -signal.SIGINT


def test_interval_timer_neither_ends_nor_prolongs_a_wait():
    program = """
import signal, time
from tomada import socket

calls = []
signal.signal(signal.SIGALRM, lambda *_: calls.append(1))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(0.2)
    start = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        sock.recvfrom(100)
    except TimeoutError:
        print(time.monotonic() - start >= 0.2, len(calls) > 1)
    # The timer would kill Python at exit, after the handler is removed.
    signal.setitimer(signal.ITIMER_REAL, 0)
"""
    assert run(program) == "True True\n"
