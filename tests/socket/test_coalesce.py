"""coalesce: a receive of many datagrams that collects more after the first one."""

import os
import signal
import socket as std
import struct
import time

import pytest

from collecting import every_take
from peer import DEADLINE
from support import CLOSED, Call, eventually
from tomada import socket
from traffic import numbered

# Longer than any test may take: a window of this length ends by something else.
LONG = 60.0


SINGLE = {
    "recv": lambda sock: sock.recv(100),
    "recv_datagram": lambda sock: sock.recv_datagram().data,
    "recv_many(1)": lambda sock: sock.recv_many(1)[0][0],
}


@pytest.fixture
def sock(kind):
    with kind.bound(socket) as sock:
        sock.coalesce = LONG
        yield sock


def send(sock, *payloads):
    for payload in payloads:
        sock.sendto(payload, sock.getsockname())


def test_coalesce_is_off_by_default(inet):
    with inet.bound(socket) as sock:
        assert sock.coalesce == 0.0


@pytest.mark.parametrize("seconds", [0, 1, 60, 200e-6, 1e-9])
def test_coalesce_returns_the_time_that_was_set(inet, seconds):
    with inet.bound(socket) as sock:
        sock.coalesce = seconds
        assert sock.coalesce == pytest.approx(seconds)


@pytest.mark.parametrize("seconds", [-1, -1e-6, 60.1, 200, float("nan"), float("inf")])
def test_coalesce_rejects_invalid_times(inet, seconds):
    with inet.bound(socket) as sock:
        sock.coalesce = 0.5
        with pytest.raises(ValueError, match="coalesce must be a number of seconds"):
            sock.coalesce = seconds
        assert sock.coalesce == 0.5


@every_take
def test_receive_collects_datagrams_after_the_first_one(sock, take):
    call = Call(take, sock).until_it_waits()
    send(sock, b"first")
    # It has taken nothing yet: the first one is still queued.
    call.until_it_waits()
    send(sock, b"second", b"third")
    sock.coalesce = 0  # ends the window
    assert call.result() == [b"first", b"second", b"third"]


@every_take
def test_datagram_that_is_queued_already_begins_the_window(sock, take):
    send(sock, b"first")
    call = Call(take, sock).until_it_waits()
    send(sock, b"second")
    sock.coalesce = 0
    assert call.result() == [b"first", b"second"]


@pytest.mark.parametrize("count", [1, 2, 3, 40])
@every_take
def test_window_ends_by_itself(inet, take, count):
    with inet.bound(socket) as sock:
        sock.coalesce = 0.01
        for _ in range(3):
            received = []
            send(sock, *numbered(count))
            while len(received) < count:
                start = time.monotonic()
                received += take(sock)
                assert time.monotonic() - start < DEADLINE
            assert received == numbered(count)


@every_take
def test_receive_waits_for_a_whole_window(inet, take):
    with inet.bound(socket) as sock:
        sock.coalesce = 0.02
        # After several datagrams, the next window begins at once; after one, with the next.
        for count in (1, 5, 1, 1):
            send(sock, *numbered(count))
            start = time.monotonic()
            assert take(sock) == numbered(count)
            assert time.monotonic() - start > 0.0195


@pytest.mark.parametrize("name", SINGLE)
def test_receives_of_single_datagrams_do_not_collect(sock, name):
    send(sock, b"first", b"second")
    assert [SINGLE[name](sock) for _ in range(2)] == [b"first", b"second"]


@every_take
def test_receives_that_do_not_wait_do_not_collect(sock, take):
    sock.setblocking(False)
    send(sock, b"first")
    assert take(sock) == [b"first"]
    with pytest.raises(BlockingIOError):
        take(sock)
    sock.setblocking(True)
    send(sock, b"second")
    assert [data for data, _ in sock.recv_many(10, std.MSG_DONTWAIT)] == [b"second"]


@every_take
def test_timeout_ends_the_window(sock, take):
    sock.settimeout(0.02)
    send(sock, b"first")
    start = time.monotonic()
    assert take(sock) == [b"first"]
    assert 0.0195 < time.monotonic() - start < DEADLINE
    with pytest.raises(TimeoutError):
        take(sock)


@every_take
def test_timeout_shorter_than_the_window(inet, take):
    with inet.bound(socket) as sock:
        sock.coalesce = 200e-6
        sock.settimeout(10e-6)
        for count in (1, 5, 3, 1):
            send(sock, *numbered(count))
            assert take(sock) == numbered(count)
            with pytest.raises(TimeoutError):
                take(sock)


def test_kernel_timeout_ends_the_window(inet):
    with inet.bound(socket) as sock:
        sock.settimeout(None)
        sock.coalesce = LONG
        sock.setsockopt(std.SOL_SOCKET, std.SO_RCVTIMEO, struct.pack("@ll", 2, 0))
        call = Call(sock.recv_many).until_it_waits()
        send(sock, b"first")
        assert len(call.result()) == 1


@every_take
def test_timeout_after_several_datagrams(sock, take):
    sock.settimeout(0.02)
    for _ in range(2):
        send(sock, *numbered(5))
        assert take(sock) == numbered(5)
        with pytest.raises(TimeoutError):
            take(sock)


@every_take
def test_close_ends_the_window(sock, take):
    send(sock, b"first")
    call = Call(take, sock).until_it_waits()
    sock.close()
    with pytest.raises(OSError, match=CLOSED):
        call.result()


def test_receive_that_was_full_is_followed_by_a_try(sock):
    send(sock, *numbered(5))
    call = Call(sock.recv_many, 2).until_it_waits()
    sock.coalesce = 0
    assert [data for data, _ in call.result()] == numbered(5)[:2]
    sock.coalesce = LONG
    sock.settimeout(0)
    assert [data for data, _ in sock.recv_many(2)] == numbered(5)[2:4]
    sock.settimeout(None)
    assert [data for data, _ in sock.recv_many(2)] == numbered(5)[4:]


@every_take
def test_window_ends_when_the_traffic_fills_it(inet, take):
    with inet.bound(socket) as sock:
        sock.coalesce = 0.001
        # The first two receives say how fast datagrams arrive.
        for count in (1, 20):
            send(sock, *numbered(count))
            assert take(sock) == numbered(count)
        sock.coalesce = LONG
        send(sock, *numbered(5))
        start = time.monotonic()
        assert take(sock) == numbered(5)
        assert time.monotonic() - start < DEADLINE


@every_take
def test_shorter_time_applies_to_the_window_that_has_begun(sock, take):
    send(sock, b"first")
    call = Call(take, sock).until_it_waits()
    sock.coalesce = 0.001
    assert call.result() == [b"first"]


@pytest.mark.thread_unsafe(reason="it has signal handlers")
@every_take
def test_signal_handlers_run_in_the_window(inet, handler, take):
    calls = handler()
    with inet.bound(socket) as sock:
        sock.coalesce = LONG
        send(sock, b"first")

        def disturb():
            os.kill(os.getpid(), signal.SIGUSR1)
            eventually(lambda: calls)
            send(sock, b"second")
            sock.coalesce = 0

        disturbing = Call(disturb)
        assert take(sock) == [b"first", b"second"]
        disturbing.result()


@pytest.mark.thread_unsafe(reason="it has signal handlers")
@every_take
def test_signals_do_not_prolong_the_window(inet, handler, take):
    calls = handler()
    with inet.bound(socket) as sock:
        sock.coalesce = 0.1
        send(sock, b"first")
        signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGUSR1))
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
        try:
            assert take(sock) == [b"first"]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        assert calls


def test_spin_does_not_end_the_window(inet):
    with inet.bound(socket) as sock:
        sock.spin, sock.coalesce = 1.0, LONG
        send(sock, b"first")
        call = Call(sock.recv_many).until_it_waits()
        send(sock, b"second")
        sock.coalesce = 0
        assert len(call.result()) == 2
