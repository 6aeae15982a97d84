"""Closing a socket that other threads use wakes them and frees the descriptor."""

import contextlib
import errno
import os
import socket as std
import sys
import threading

import pytest

from parity import assert_same, fresh
from support import (
    CLOSED,
    DEADLINE,
    HELPERS,
    RECEIVE,
    Call,
    eventually,
    fill,
    open_descriptors,
    run,
)
from tomada import socket

every_receive = pytest.mark.parametrize("receive", RECEIVE.values(), ids=RECEIVE)


def assert_ended(call):
    with pytest.raises(OSError, match=CLOSED):
        call.result()


@every_receive
@pytest.mark.parametrize("timeout", [None, 100])
def test_close_ends_a_wait_in_another_thread(kind, receive, timeout):
    sock = kind.bound(socket)
    sock.settimeout(timeout)
    call = Call(receive, sock).until_it_waits()
    sock.close()
    assert_ended(call)


@every_receive
def test_detach_ends_a_wait_in_another_thread(kind, receive):
    sock = kind.bound(socket)
    call = Call(receive, sock).until_it_waits()
    fd = sock.detach()
    assert_ended(call)
    # The descriptor stays open, and its new owner receives the datagrams.
    with std.socket(fileno=fd) as same:
        same.sendto(b"x", same.getsockname())
        assert same.recv(100) == b"x"


def test_close_ends_the_wait_of_a_sender(unix):
    with unix.bound(socket) as receiver:
        for connect in (True, False):
            sender = unix.open(socket)
            fill(sender, receiver.getsockname())
            if connect:
                sender.connect(receiver.getsockname())
                call = Call(sender.send, b"never").until_it_waits()
            else:
                call = Call(sender.sendto, b"never", receiver.getsockname()).until_it_waits()
            sender.close()
            assert_ended(call)


def test_close_ends_every_wait(inet):
    sock = inet.bound(socket)
    calls = [Call(sock.recvfrom, 100).until_it_waits() for _ in range(20)]
    sock.close()
    for call in calls:
        assert_ended(call)


def test_close_ends_only_the_waits_for_this_socket(inet):
    with inet.bound(socket) as other:
        sock = inet.bound(socket)
        staying = Call(other.recv, 100).until_it_waits()
        going = Call(sock.recv, 100).until_it_waits()
        sock.close()
        assert_ended(going)
        assert staying.is_alive()
        other.sendto(b"x", other.getsockname())
        assert staying.result() == b"x"


def test_close_of_a_duplicate_ends_no_wait(inet):
    with inet.bound(socket) as sock:
        call = Call(sock.recv, 100).until_it_waits()
        sock.dup().close()
        assert call.is_alive()
        sock.sendto(b"x", sock.getsockname())
        assert call.result() == b"x"


def test_close_frees_the_port_before_it_returns(kind):
    sock = kind.bound(socket)
    address = sock.getsockname()
    calls = [Call(sock.recvfrom, 100).until_it_waits() for _ in range(3)]
    sock.close()
    if kind.name == "path":
        os.unlink(address)  # noqa: PTH108 - as in a program that binds the path again
    with kind.open(std) as successor:
        successor.bind(address)
    for call in calls:
        assert_ended(call)


def test_close_does_not_take_datagrams_of_a_reused_descriptor(inet):
    sock = inet.bound(socket)
    fd = sock.fileno()
    calls = [Call(sock.recvfrom, 100).until_it_waits() for _ in range(3)]
    sock.close()
    successor = inet.bound(socket)
    if successor.fileno() != fd:
        # Something else was opened meanwhile.
        successor = socket.socket(fileno=os.dup2(successor.detach(), fd))
        successor.settimeout(DEADLINE)
    with successor, inet.open(std) as sender:
        assert successor.fileno() == fd
        for number in range(10):
            sender.sendto(b"%d" % number, successor.getsockname())
        assert [int(successor.recv(100)) for _ in range(10)] == list(range(10))
        for call in calls:
            assert_ended(call)


def test_close_while_many_threads_use_the_socket(inet):
    # Every call ends, and none fails with anything but EBADF.
    for _ in range(20):
        sock = inet.bound(socket)
        to = sock.getsockname()
        begin = threading.Barrier(7)

        def use(operation, sock=sock, begin=begin):
            begin.wait()
            while True:
                operation(sock)

        operations = (
            lambda sock: sock.recv(100),
            lambda sock: sock.recvfrom(100),
            lambda sock: sock.recv_into(bytearray(10)),
            lambda sock, to=to: sock.sendto(b"x", to),
            lambda sock, to=to: sock.sendmsg([b"y"], [], 0, to),
            lambda sock: sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF),
        )
        calls = [Call(use, operation) for operation in operations]
        begin.wait()
        sock.close()
        for call in calls:
            assert_ended(call)


def test_close_in_two_threads_at_once(inet):
    for _ in range(20):
        sock = inet.bound(socket)
        waiting = Call(sock.recv, 100).until_it_waits()
        closing = [Call(sock.close) for _ in range(4)]
        for call in closing:
            assert call.result() is None
        assert_ended(waiting)
        assert sock.fileno() == -1


def test_close_leaves_no_descriptors(inet):
    before = open_descriptors()
    for _ in range(10):
        sock = inet.bound(socket)
        calls = [Call(sock.recv, 100).until_it_waits() for _ in range(5)]
        sock.close()
        for call in calls:
            assert_ended(call)
    eventually(lambda: open_descriptors() == before)


@pytest.mark.parametrize("end", ["close", "detach"])
def test_end_frees_the_addresses_that_the_socket_remembers(inet, end):
    with inet.bound(socket) as sock:
        to = (*sock.getsockname(),)
        unknown = sys.getrefcount(to)
        sock.sendto(b"x", to)
        _, sender = sock.recvfrom(100)
        known = sys.getrefcount(to), sys.getrefcount(sender)
        fd = getattr(sock, end)()
        if fd is not None:
            os.close(fd)
        freed = sys.getrefcount(to), sys.getrefcount(sender)
    assert freed == (unknown, known[1] - 1)
    assert known[0] == unknown + 1


def test_thread_whose_wait_was_ended_can_wait_again(inet):
    with inet.bound(socket) as second:

        def use(first):
            with pytest.raises(OSError, match=CLOSED):
                first.recv(100)
            second.settimeout(0.01)
            with pytest.raises(TimeoutError):
                second.recv(100)
            second.settimeout(29)
            return second.recv(100)

        for _ in range(5):
            second.settimeout(0)
            sock = inet.bound(socket)
            call = Call(use, sock).until_it_waits()
            sock.close()
            eventually(lambda: second.gettimeout() == 29)
            second.sendto(b"x", second.getsockname())
            assert call.result() == b"x"


FAMILIES = (std.AF_INET, std.AF_INET6, std.AF_UNIX)


@pytest.mark.parametrize("moment", ["before", "during"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_shutdown_ends_waits(family, moment):
    def case(side):
        sock, _ = side.connected(family)
        sock.settimeout(None)
        if moment == "before":
            sock.shutdown(std.SHUT_RD)
            call = Call(sock.recv, 100)
        else:
            call = Call(sock.recv, 100).until_it_waits()
            sock.shutdown(std.SHUT_RD)
        return call.result(deadline=3)

    assert_same(case)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_shutdown_does_not_end_waits_with_a_timeout(family):
    def case(side):
        sock, _ = side.connected(family)
        sock.settimeout(0.02)
        sock.shutdown(std.SHUT_RD)
        sock.recv(100)

    assert_same(case, TimeoutError)


def test_shutdown_ends_the_wait_of_an_unconnected_udp_socket():
    # It raises ENOTCONN, but takes effect: programs use it to end their receiving thread.
    def case(side):
        sock = side.bound()
        sock.settimeout(None)
        call = Call(sock.recvfrom, 100).until_it_waits()
        with pytest.raises(OSError, match=rf"^\[Errno {errno.ENOTCONN}\] "):
            sock.shutdown(std.SHUT_RD)
        return call.result(deadline=3)[0]

    assert_same(case)


class Stream(socket.socket):
    """Opens streams in a program with its own class derived from ``socket.socket``."""


@pytest.mark.parametrize("timeout", [None, 100])
def test_close_does_not_wait_for_a_connection(timeout):
    sock = Stream(std.AF_INET, std.SOCK_STREAM)
    sock.bind(fresh(std.AF_INET))
    sock.listen()
    sock.settimeout(timeout)
    address = sock.getsockname()
    accepting = Call(sock.accept).until_it_waits()
    try:
        assert Call(sock.close).result(deadline=3) is None
    finally:
        # With the standard class, an accept without a timeout would wait for ever. This ends it.
        with std.socket() as client:
            client.connect_ex(address)
        with contextlib.suppress(OSError):
            accepting.result()[0].close()


@pytest.mark.parametrize("kind", [std.SOCK_STREAM, std.SOCK_SEQPACKET])
def test_close_does_not_wait_for_several_threads_in_accept(kind):
    for _ in range(20):
        with Stream(std.AF_UNIX, kind) as sock, std.socket(std.AF_UNIX, kind) as client:
            sock.bind("")
            sock.listen()
            accepting = [Call(sock.accept).until_it_waits() for _ in range(4)]
            client.connect(sock.getsockname())
            eventually(lambda calls=accepting: not all(call.is_alive() for call in calls))
            assert Call(sock.close).result(deadline=3) is None
            outcomes = []
            for call in accepting:
                try:
                    connection, _ = call.result()
                except OSError as error:
                    outcomes.append(error.errno)
                else:
                    connection.close()
                    outcomes.append(0)
            assert sorted(outcomes) == [0] + 3 * [errno.EBADF]


@pytest.mark.parametrize("timeout", [None, 100])
def test_close_does_not_wait_for_stream_data(timeout):
    with std.create_server(("127.0.0.1", 0)) as server:
        sock = Stream(std.AF_INET, std.SOCK_STREAM)
        sock.connect(server.getsockname())
        sock.settimeout(timeout)
        connection, _ = server.accept()
        receiving = Call(sock.recv, 100).until_it_waits()
        try:
            assert Call(sock.close).result(deadline=3) is None
        finally:
            connection.close()
            with contextlib.suppress(OSError):
                receiving.result()


def test_close_ends_waits_without_a_free_descriptor():
    program = """
import errno, os, resource, sys
sys.path.insert(0, sys.argv[1])
from support import CLOSED, Call
from tomada import socket

def bound():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock

first, second, third = bound(), bound(), bound()
third.settimeout(0.02)
# support reads /proc, which takes a descriptor, so a thread could not get one when it waits.
fill = []
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    while True:
        fill.append(os.dup(0))
except OSError:
    pass

def wait(sock):
    return sock.recv(100)

calls = [Call(wait, first), Call(wait, second)]
try:
    third.recv(100)
except TimeoutError:
    print("timed out")
first.sendto(b"x", first.getsockname())
print(calls[0].result())
second.close()
try:
    calls[1].result()
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    folder = str(HELPERS)
    assert run(program, folder) == "timed out\nb'x'\nEBADF\n"
