"""spin: a receive that stays awake for a while, and all that it must still heed."""

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

LONG = 60.0

TAKE = {
    "recv": lambda sock: sock.recv(100),
    "recv_many": lambda sock: sock.recv_many()[0][0],
    "recv_datagram": lambda sock: sock.recv_datagram().data,
}

every_take = pytest.mark.parametrize("take", TAKE.values(), ids=TAKE)


def until_it_runs(thread):
    """Wait until a thread has used the processor for some milliseconds: it is awake."""
    times = Path(f"/proc/self/task/{thread.native_id}/schedstat")

    def used():
        return int(times.read_text().split()[0])

    before = used()
    eventually(lambda: used() > before + 5_000_000)
    return thread


def test_at_first_a_socket_sleeps_at_once(inet):
    with inet.bound(socket) as sock:
        assert sock.spin == 0.0


@pytest.mark.parametrize("seconds", [0, 0.0, 1, 2.5, 0.000_05, 1e-9])
def test_a_time_comes_back_as_it_was_set(inet, seconds):
    with inet.bound(socket) as sock:
        sock.spin = seconds
        assert sock.spin == pytest.approx(seconds)


@pytest.mark.parametrize("seconds", [-1, -0.1, float("nan"), float("inf"), 1e300])
def test_what_is_no_time_is_refused(inet, seconds):
    with inet.bound(socket) as sock:
        sock.spin = 0.5
        with pytest.raises(ValueError, match="spin must be a number of seconds"):
            sock.spin = seconds
        assert sock.spin == 0.5


@pytest.mark.parametrize("seconds", ["1", None, b"1"])
def test_what_is_no_number_is_refused(inet, seconds):
    with inet.bound(socket) as sock, pytest.raises(TypeError):
        sock.spin = seconds


@every_take
def test_a_datagram_ends_the_wait(kind, take):
    with kind.bound(socket) as sock:
        sock.spin = LONG
        sock.sendto(b"there already", sock.getsockname())
        assert take(sock) == b"there already"
        call = until_it_runs(Call(take, sock))
        sock.sendto(b"later", sock.getsockname())
        assert call.result() == b"later"


def test_a_batch_is_received_awake_as_well(inet):
    batch = tomada.Batch()
    with inet.bound(socket) as sock:
        sock.spin = LONG
        call = until_it_runs(Call(sock.recv_batch, batch))
        sock.sendto(b"x", sock.getsockname())
        assert call.result() == 1


def test_after_its_time_a_receive_sleeps(inet):
    with inet.bound(socket) as sock:
        sock.spin = 0.01
        call = Call(sock.recv, 100).until_it_waits()
        sock.sendto(b"x", sock.getsockname())
        assert call.result() == b"x"


@every_take
def test_the_timeout_ends_the_wait_before_its_time(inet, take):
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
def test_close_ends_the_wait(inet, take):
    with inet.bound(socket) as sock:
        sock.spin = LONG
        call = until_it_runs(Call(take, sock))
        sock.close()
        with pytest.raises(OSError, match=CLOSED):
            call.result()


def test_signal_handlers_run_meanwhile(inet, handler):
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


def test_an_exception_of_a_handler_ends_the_wait(inet, handler):
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


def test_other_threads_run_meanwhile(inet):
    with inet.bound(socket) as sock:
        sock.spin = LONG
        call = until_it_runs(Call(sock.recv, 100))
        assert sum(range(100_000)) == 4_999_950_000
        with inet.bound(std) as other:
            other.sendto(b"x", sock.getsockname())
        assert call.result() == b"x"


def test_an_error_of_the_peer_ends_the_wait(inet):
    with inet.bound(std) as other:
        dead = other.getsockname()
    with inet.bound(socket) as sock:
        sock.spin = LONG
        sock.connect(dead)
        sock.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(100)
