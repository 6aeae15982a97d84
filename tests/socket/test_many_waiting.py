"""recv_many waiting: timeouts, signals, closing, and several threads at once."""

import errno
import socket as std
import sys
import threading
import time

import pytest

import tomada
from support import CLOSED, DEADLINE, Call, RefusalError, eventually, interrupt
from tomada import socket
from traffic import numbered, payloads

RECEIVE_SEVERAL = {
    "recv_many": socket.socket.recv_many,
    "recv_datagrams": socket.socket.recv_datagrams,
    "recv_batch": lambda sock: sock.recv_batch(tomada.Batch()),
}


def test_nonblocking_recv_many_raises(kind):
    with kind.bound(socket) as sock:
        for timeout, flags in ((0, 0), (None, socket.MSG_DONTWAIT)):
            sock.settimeout(timeout)
            with pytest.raises(BlockingIOError) as caught:
                sock.recv_many(flags=flags)
            assert caught.value.errno == errno.EAGAIN


@pytest.mark.parametrize("timeout", [0.02, 0.001, 1e-9])
def test_recv_many_does_not_time_out_early(kind, timeout):
    with kind.bound(socket) as sock:
        sock.settimeout(timeout)
        start = time.monotonic()
        with pytest.raises(TimeoutError, match=r"^timed out$"):
            sock.recv_many()
        assert time.monotonic() - start >= timeout


@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_one_datagram_ends_the_wait_of_recv_many(kind, peer, timeout):
    other = peer(kind)
    with kind.bound(socket) as sock:
        sock.settimeout(timeout)
        call = Call(sock.recv_many, 1000).until_it_waits()
        other.do("send", datagrams=[b""], to=sock.getsockname())
        assert call.result() == [(b"", other.address)]


def test_waiting_recv_many_uses_no_cpu(kind):
    with kind.bound(socket) as sock:
        sock.settimeout(0.2)
        start = time.process_time()
        with pytest.raises(TimeoutError):
            sock.recv_many()
        assert time.process_time() - start < 0.1


@pytest.mark.parametrize("timeout", [None, 100])
def test_close_ends_recv_many_in_another_thread(kind, timeout):
    sock = kind.bound(socket)
    sock.settimeout(timeout)
    call = Call(sock.recv_many).until_it_waits()
    sock.close()
    with pytest.raises(OSError, match=CLOSED):
        call.result()


def test_detach_ends_recv_many_and_loses_nothing(inet):
    sock = inet.bound(socket)
    call = Call(sock.recv_many).until_it_waits()
    with std.socket(fileno=sock.detach()) as same:
        with pytest.raises(OSError, match=CLOSED):
            call.result()
        same.sendto(b"x", same.getsockname())
        assert same.recv(10) == b"x"


@pytest.mark.parametrize("receive", RECEIVE_SEVERAL.values(), ids=RECEIVE_SEVERAL)
@pytest.mark.parametrize("moment", ["before", "during"])
def test_shutdown_ends_recv_many(inet, moment, receive):
    with inet.bound(socket) as sock:
        sock.settimeout(None)
        sock.connect(sock.getsockname())
        if moment == "before":
            sock.shutdown(socket.SHUT_RD)
            call = Call(receive, sock)
        else:
            call = Call(receive, sock).until_it_waits()
            sock.shutdown(socket.SHUT_RD)
        text = "the socket is shut down for receiving"
        with pytest.raises(OSError, match=rf"^\[Errno {errno.ESHUTDOWN}\] {text}$"):
            call.result(deadline=3)


def test_recv_many_continues_after_a_signal_handler_that_returns(kind, handler):
    calls = handler()
    with kind.bound(socket) as sock:

        def disturb():
            for count in (1, 2, 3):
                interrupt()
                eventually(lambda count=count: len(calls) == count)
            sock.sendto(b"awaited", sock.getsockname())

        disturbing = Call(disturb)
        assert sock.recv_many() == [(b"awaited", sock.getsockname())]
        disturbing.result()
        assert len(calls) == 3


def test_exception_of_a_signal_handler_ends_recv_many_and_loses_nothing(kind, handler):
    def refuse():
        raise RefusalError("no", "because")

    handler(refuse)
    with kind.bound(socket) as sock:
        disturbing = Call(interrupt)
        with pytest.raises(RefusalError):
            sock.recv_many()
        disturbing.result()
        sock.sendto(b"still here", sock.getsockname())
        assert sock.recv_many() == [(b"still here", sock.getsockname())]


def test_signal_handler_may_close_the_socket_of_a_waiting_recv_many(inet, handler):
    with inet.bound(socket) as sock:
        handler(sock.close)
        disturbing = Call(interrupt)
        with pytest.raises(OSError, match=CLOSED):
            sock.recv_many()
        disturbing.result()


def test_signal_handler_may_receive_from_the_socket_of_a_waiting_recv_many(inet, handler):
    with inet.bound(socket) as sock:
        received = []

        def receive():
            sock.send_many([b"for", b"the", b"handler"], sock.getsockname())
            received.extend(data for data, _ in sock.recv_many())

        handler(receive)

        def disturb():
            interrupt()
            eventually(lambda: received)
            sock.sendto(b"for the call", sock.getsockname())

        disturbing = Call(disturb)
        assert sock.recv_many() == [(b"for the call", sock.getsockname())]
        disturbing.result()
        assert received == [b"for", b"the", b"handler"]


def test_threads_in_recv_many_get_each_datagram_exactly_once(inet):
    datagrams = numbered(3000)
    with inet.bound(socket) as sock, inet.open(socket) as sender:
        received = [[] for _ in range(6)]
        taken = threading.Semaphore(0)

        def take(mine):
            while True:
                many = [data for data, _ in sock.recv_many(7)]
                mine += many
                taken.release(len(many))
                if many[-1] == b"end":
                    return

        calls = [Call(take, mine).until_it_waits() for mine in received]
        for start in range(0, 3000, 100):
            assert sender.send_many(datagrams[start : start + 100], sock.getsockname()) == 100
            for _ in range(100):
                assert taken.acquire(timeout=DEADLINE)
        for _ in calls:
            # One at a time, so that no thread takes two.
            sender.sendto(b"end", sock.getsockname())
            assert taken.acquire(timeout=DEADLINE)
        for call in calls:
            call.result()
        assert all(mine.pop() == b"end" for mine in received)
        assert all(mine == sorted(mine) for mine in received)
        assert sorted(data for mine in received for data in mine) == datagrams


def test_threads_in_send_many_send_each_datagram_exactly_once(inet):
    with inet.bound(socket) as sock, inet.bound(socket) as sender:
        begin = threading.Barrier(4)
        to = sock.getsockname()

        def send(number):
            begin.wait(DEADLINE)
            return sender.send_many([b"%d %03d" % (number, at) for at in range(50)], to)

        calls = [Call(send, number) for number in range(4)]
        assert [call.result() for call in calls] == [50] * 4
        received = payloads(sock)
        assert len(received) == 200
        for number in range(4):
            mine = [data for data in received if data.startswith(b"%d " % number)]
            assert mine == [b"%d %03d" % (number, at) for at in range(50)]


@pytest.mark.parametrize("most", [1 << 20, sys.maxsize])
def test_recv_many_returns_though_datagrams_keep_arriving(inet, most):
    over = threading.Event()
    with inet.bound(socket) as sock, inet.open(socket) as sender:
        sock.gro = True
        sender.connect(sock.getsockname())

        def flood():
            while not over.is_set():
                sender.send_many([b"x" * 16] * 64)

        flooding = Call(flood)
        try:
            for _ in range(3):
                assert Call(sock.recv_many, most).result()
        finally:
            over.set()
        flooding.result()


def test_other_threads_run_while_recv_many_waits(inet):
    with inet.bound(socket) as sock:
        call = Call(sock.recv_many).until_it_waits()
        assert sum(range(1000)) == 499_500
        sock.sendto(b"x", sock.getsockname())
        assert call.result() == [(b"x", sock.getsockname())]
