"""spin: a receive that polls for a while before it sleeps, and its interruptions."""

import os
import signal
import socket as std
import threading
import time
from pathlib import Path

import pytest

import tomada
from support import CLOSED, DEADLINE, Call, RefusalError, eventually
from tomada import socket

pytestmark = pytest.mark.thread_unsafe(reason="it measures the process's CPU time")

LONG = 60.0

TAKE = {
    "recv": lambda sock: sock.recv(100),
    "recv_many": lambda sock: sock.recv_many()[0][0],
    "recv_datagram": lambda sock: sock.recv_datagram().data,
}

every_take = pytest.mark.parametrize("take", TAKE.values(), ids=TAKE)


def until_it_runs(thread):
    """Wait until a thread has used some milliseconds of CPU time: it is spinning."""
    times = Path(f"/proc/self/task/{thread.native_id}/schedstat")

    def used():
        return int(times.read_text().split()[0])

    before = used()
    eventually(lambda: used() > before + 5_000_000)
    return thread


def test_spin_is_off_by_default(inet):
    with inet.bound(socket) as sock:
        assert sock.spin == 0.0


@pytest.mark.parametrize("seconds", [0, 0.0, 1, 2.5, 0.000_05, 1e-9])
def test_spin_returns_the_time_that_was_set(inet, seconds):
    with inet.bound(socket) as sock:
        sock.spin = seconds
        assert sock.spin == pytest.approx(seconds)


@pytest.mark.parametrize("seconds", [-1, -0.1, float("nan"), float("inf"), 1e300])
def test_spin_rejects_invalid_times(inet, seconds):
    with inet.bound(socket) as sock:
        sock.spin = 0.5
        with pytest.raises(ValueError, match="spin must be a number of seconds"):
            sock.spin = seconds
        assert sock.spin == 0.5


@pytest.mark.parametrize("seconds", ["1", None, b"1"])
def test_spin_rejects_objects_that_are_not_numbers(inet, seconds):
    with inet.bound(socket) as sock, pytest.raises(TypeError):
        sock.spin = seconds


@every_take
def test_spin_ends_when_a_datagram_arrives(kind, take):
    with kind.bound(socket) as sock:
        sock.spin = LONG
        sock.sendto(b"there already", sock.getsockname())
        assert take(sock) == b"there already"
        call = until_it_runs(Call(take, sock))
        sock.sendto(b"later", sock.getsockname())
        assert call.result() == b"later"


def test_spin_works_for_recv_batch(inet):
    batch = tomada.Batch()
    with inet.bound(socket) as sock:
        sock.spin = LONG
        call = until_it_runs(Call(sock.recv_batch, batch))
        sock.sendto(b"x", sock.getsockname())
        assert call.result() == 1


def test_receive_sleeps_after_spinning(inet):
    with inet.bound(socket) as sock:
        sock.spin = 0.01
        call = Call(sock.recv, 100).until_it_waits()
        sock.sendto(b"x", sock.getsockname())
        assert call.result() == b"x"


@every_take
def test_timeout_ends_spinning(inet, take):
    with inet.bound(socket) as sock:
        sock.spin = LONG
        sock.settimeout(0.02)
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            take(sock)
        assert 0.02 <= time.monotonic() - start < DEADLINE
        sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            take(sock)


@every_take
def test_close_ends_spinning(inet, take):
    with inet.bound(socket) as sock:
        sock.spin = LONG
        call = until_it_runs(Call(take, sock))
        sock.close()
        with pytest.raises(OSError, match=CLOSED):
            call.result()


def test_signal_handlers_run_while_spinning(inet, handler):
    calls = handler()
    with inet.bound(socket) as sock:
        sock.spin = LONG

        def disturb():
            os.kill(os.getpid(), signal.SIGUSR1)
            eventually(lambda: calls)
            sock.sendto(b"x", sock.getsockname())

        disturbing = Call(disturb)
        assert sock.recv(100) == b"x"
        disturbing.result()


def test_exception_of_a_handler_ends_spinning(inet, handler):
    def refuse():
        raise RefusalError("no", "because")

    handler(refuse)
    begin = threading.Event()
    main = threading.main_thread()

    def disturb():
        begin.wait()
        until_it_runs(main)
        signal.pthread_kill(main.ident, signal.SIGUSR1)

    with inet.bound(socket) as sock:
        sock.spin = LONG
        disturbing = Call(disturb)
        begin.set()
        with pytest.raises(RefusalError):
            sock.recv(100)
        disturbing.result()


def test_other_threads_run_while_spinning(inet):
    with inet.bound(socket) as sock:
        sock.spin = LONG
        call = until_it_runs(Call(sock.recv, 100))
        assert sum(range(100_000)) == 4_999_950_000
        with inet.bound(std) as other:
            other.sendto(b"x", sock.getsockname())
        assert call.result() == b"x"


def test_error_of_the_peer_ends_spinning(inet):
    with inet.bound(std) as other:
        dead = other.getsockname()
    with inet.bound(socket) as sock:
        sock.spin = LONG
        sock.connect(dead)
        sock.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(100)
