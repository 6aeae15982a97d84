"""Calls block exactly when the standard module's do, and raise EAGAIN otherwise."""

import array
import errno
import fcntl
import os
import socket as std
import struct
import subprocess
import sys
import termios

import pytest

from parity import assert_same
from support import RECEIVE, Call, fill
from tomada import Batch, socket

FAMILIES = (std.AF_INET, std.AF_INET6, std.AF_UNIX)
LIMIT = struct.pack("ll", 0, 20_000)
ioctl_number = array.array("i", [1])


def set_in_another_process(fd):
    program = "import os, sys; os.set_blocking(int(sys.argv[1]), False)"
    subprocess.run([sys.executable, "-c", program, str(fd)], pass_fds=[fd], check=True)


def set_on_a_copy(fd):
    copy = os.dup(fd)
    os.set_blocking(copy, False)
    os.close(copy)


# Ways to set O_NONBLOCK without the socket object's knowledge.
SET_NONBLOCKING = {
    "os.set_blocking": lambda fd: os.set_blocking(fd, False),
    "fcntl": lambda fd: fcntl.fcntl(
        fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK
    ),
    "ioctl": lambda fd: fcntl.ioctl(fd, termios.FIONBIO, ioctl_number),
    "a copy": set_on_a_copy,
    "another process": set_in_another_process,
}

# tomada's own receiving methods.
RECEIVE_MANY = {
    "recv_many": lambda sock: sock.recv_many(),
    "recv_datagram": lambda sock: sock.recv_datagram(),
    "recv_datagrams": lambda sock: sock.recv_datagrams(),
    "recv_batch": lambda sock: sock.recv_batch(Batch()),
}


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request):
    return request.param


def blocking(side, family):
    sock = side.bound(family)
    sock.settimeout(None)
    return sock


@pytest.mark.parametrize("way", SET_NONBLOCKING)
@pytest.mark.parametrize("name", ["recv", "recvmsg_into"])
def test_recv_with_o_nonblock_set_by_another_holder(way, name):
    def case(side):
        sock = blocking(side, std.AF_INET)
        SET_NONBLOCKING[way](sock.fileno())
        return Call(RECEIVE[name], sock).result()

    assert_same(case, BlockingIOError)


@pytest.mark.parametrize("name", RECEIVE)
def test_recv_on_a_nonblocking_descriptor(family, name):
    def case(side):
        sock = blocking(side, family)
        os.set_blocking(sock.fileno(), False)
        return Call(RECEIVE[name], sock).result()

    assert_same(case, BlockingIOError)


@pytest.mark.parametrize("name", RECEIVE_MANY)
@pytest.mark.parametrize("limit", ["O_NONBLOCK", "SO_RCVTIMEO"])
def test_recv_many_obeys_everything_that_limits_recv(kind, name, limit):
    with kind.bound(socket) as sock:
        sock.settimeout(None)
        for _ in range(2):  # the second call already knows the mode
            if limit == "O_NONBLOCK":
                os.set_blocking(sock.fileno(), False)
            else:
                sock.setsockopt(std.SOL_SOCKET, std.SO_RCVTIMEO, LIMIT)
            with pytest.raises(BlockingIOError):
                Call(RECEIVE_MANY[name], sock).result()


@pytest.mark.parametrize("open_again", ["fromfd", "fileno"])
def test_recv_on_an_adopted_nonblocking_descriptor(open_again):
    def case(side):
        sock = side.bound()
        if open_again == "fromfd":
            other = side.keep(side.module.fromfd(sock.fileno(), sock.family, sock.type))
        else:
            other = side.keep(side.module.socket(fileno=os.dup(sock.fileno())))
        assert other.gettimeout() is None
        return Call(other.recv, 100).result()

    assert_same(case, BlockingIOError)


@pytest.mark.parametrize("name", RECEIVE)
@pytest.mark.parametrize("setter", ["own", "other"])
def test_recv_with_so_rcvtimeo(name, setter):
    def case(side):
        sock = blocking(side, std.AF_INET)
        if setter == "own":
            sock.setsockopt(std.SOL_SOCKET, std.SO_RCVTIMEO, LIMIT)
        else:
            with std.socket(fileno=os.dup(sock.fileno())) as other:
                other.setsockopt(std.SOL_SOCKET, std.SO_RCVTIMEO, LIMIT)
        return Call(RECEIVE[name], sock).result()

    assert_same(case, BlockingIOError)


def test_recv_with_so_rcvtimeo_and_a_timeout():
    def case(side):
        sock = side.bound()
        sock.setsockopt(std.SOL_SOCKET, std.SO_RCVTIMEO, LIMIT)
        sock.settimeout(0.05)
        return Call(sock.recv, 100).result()

    assert_same(case, TimeoutError)


@pytest.mark.parametrize("limit", ["O_NONBLOCK", "SO_SNDTIMEO"])
@pytest.mark.parametrize("name", ["send", "sendall", "sendto", "sendmsg"])
def test_send_into_a_full_queue(limit, name):
    def case(side):
        sock, peer = side.connected(std.AF_UNIX)
        peer.settimeout(None)
        fill(sock, peer.getsockname())
        sock.settimeout(None)
        if limit == "O_NONBLOCK":
            os.set_blocking(sock.fileno(), False)
        else:
            sock.setsockopt(std.SOL_SOCKET, std.SO_SNDTIMEO, LIMIT)
        send = {
            "send": lambda: sock.send(b"x"),
            "sendall": lambda: sock.sendall(b"x"),
            "sendto": lambda: sock.sendto(b"x", peer.getsockname()),
            "sendmsg": lambda: sock.sendmsg([b"x"]),
        }
        return Call(send[name]).result()

    assert_same(case, BlockingIOError)


@pytest.mark.parametrize("timeout", [None, 0, 0.02])
@pytest.mark.parametrize("name", ["recv", "recvmsg"])
def test_recv_from_an_empty_error_queue(timeout, name):
    def case(side):
        sock = side.bound()
        sock.settimeout(timeout)
        return Call(getattr(sock, name), 100, *[0] * (name == "recvmsg"), std.MSG_ERRQUEUE).result()

    assert_same(case, TimeoutError if timeout else BlockingIOError)


def test_recv_with_msg_errqueue_on_af_unix_is_a_plain_recv():
    def case(side):
        sock, peer = side.connected(std.AF_UNIX)
        sock.settimeout(None)
        call = Call(sock.recvmsg, 100, 0, std.MSG_ERRQUEUE).until_it_waits()
        peer.send(b"x")
        return call.result()[0]

    assert_same(case)


def test_waiting_call_continues_when_its_socket_becomes_nonblocking():
    def case(side):
        sock, peer = side.connected()
        sock.settimeout(None)
        call = Call(sock.recv, 100).until_it_waits()
        sock.setblocking(False)
        peer.send(b"x")
        return call.result()

    assert_same(case)


def test_setblocking_true_again():
    def case(side):
        sock, peer = side.connected()
        sock.settimeout(None)
        os.set_blocking(sock.fileno(), False)
        with pytest.raises(BlockingIOError):
            Call(sock.recv, 100).result()
        os.set_blocking(sock.fileno(), True)
        call = Call(sock.recv, 100).until_it_waits()
        peer.send(b"x")
        return call.result()

    assert_same(case)


@pytest.mark.parametrize("gro", [False, True])
@pytest.mark.parametrize("name", RECEIVE)
@pytest.mark.parametrize("moment", ["before", "during"])
def test_recv_after_shut_rd_returns_nothing(gro, name, moment):
    def case(side):
        sock, _ = side.connected()
        if side.module is socket:
            sock.gro = gro
        sock.settimeout(None)
        if moment == "before":
            sock.shutdown(std.SHUT_RD)
            call = Call(RECEIVE[name], sock)
        else:
            call = Call(RECEIVE[name], sock).until_it_waits()
            sock.shutdown(std.SHUT_RD)
        return call.result()

    assert_same(case)


@pytest.mark.parametrize("gro", [False, True])
def test_recv_after_shut_rd_on_a_nonblocking_descriptor(gro):
    def case(side):
        sock, _ = side.connected()
        if side.module is socket:
            sock.gro = gro
        sock.settimeout(None)
        os.set_blocking(sock.fileno(), False)
        sock.shutdown(std.SHUT_RD)
        return Call(sock.recv, 100).result()

    assert_same(case, BlockingIOError)


@pytest.mark.parametrize("timeout", [None, 0, 0.02])
def test_accept_on_a_datagram_socket(family, timeout):
    def case(side):
        sock = side.bound(family)
        sock.settimeout(timeout)
        return Call(sock.accept).result()

    assert_same(case, TimeoutError if timeout else OSError)


class Stream(socket.socket):
    """Opens streams in a program with its own class derived from ``socket.socket``."""


STREAMS = {std: std.socket, socket: Stream}


@pytest.mark.parametrize("limit", ["O_NONBLOCK", "SO_RCVTIMEO", "nobody listens"])
@pytest.mark.parametrize("family", [std.AF_INET, std.AF_UNIX], ids=lambda family: family.name)
def test_accept(family, limit):
    def case(side):
        sock = side.keep(STREAMS[side.module](family, std.SOCK_STREAM))
        sock.bind("" if family == std.AF_UNIX else ("127.0.0.1", 0))
        if limit != "nobody listens":
            sock.listen()
        if limit == "O_NONBLOCK":
            os.set_blocking(sock.fileno(), False)
        elif limit == "SO_RCVTIMEO":
            sock.setsockopt(std.SOL_SOCKET, std.SO_RCVTIMEO, LIMIT)
        return Call(sock.accept).result()

    assert_same(case, OSError if limit == "nobody listens" else BlockingIOError)


@pytest.mark.parametrize("name", ["recv", "recv_into"])
def test_msg_waitall_on_a_stream(name):
    def case(side):
        one, other = std.socketpair()
        sock = side.keep(STREAMS[side.module](fileno=one.detach()))
        buffer = bytearray(6)
        if name == "recv":
            call = Call(lambda: sock.recv(6, std.MSG_WAITALL))
        else:
            call = Call(lambda: (sock.recv_into(buffer, 0, std.MSG_WAITALL), bytes(buffer)))
        with other:
            for part in (b"ab", b"cd"):
                other.send(part)
                call.until_it_waits()
            other.send(b"efgh")
            received = call.result()
            other.send(b"ij")
        return received, sock.recv(4), sock.recv(6, std.MSG_WAITALL)

    assert_same(case)


def test_connect_on_a_nonblocking_descriptor():
    def case(side):
        with std.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            sock = side.keep(STREAMS[side.module](std.AF_INET, std.SOCK_STREAM))
            os.set_blocking(sock.fileno(), False)
            return Call(sock.connect_ex, listener.getsockname()).result() in {0, errno.EINPROGRESS}

    assert_same(case)


def test_spinning_call_obeys_o_nonblock():
    with socket.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.spin = 60.0
        os.set_blocking(sock.fileno(), False)
        with pytest.raises(BlockingIOError):
            Call(sock.recv, 100).result()


def test_two_waiting_calls_one_with_msg_dontwait():
    with socket.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        call = Call(sock.recv, 100).until_it_waits()
        with pytest.raises(BlockingIOError):
            sock.recv(100, std.MSG_DONTWAIT)
        sock.sendto(b"x", sock.getsockname())
        assert call.result() == b"x"


@pytest.mark.parametrize("limit", ["none", "O_NONBLOCK", "SO_RCVTIMEO", "timeout"])
@pytest.mark.parametrize("name", [*RECEIVE, *RECEIVE_MANY])
def test_a_queued_datagram_is_received_right_after_a_sleep(kind, name, limit):
    receive = (RECEIVE | RECEIVE_MANY)[name]
    for _ in range(5):  # the second call probably waits before it tries
        with kind.bound(socket) as sock, kind.bound(std) as sender:
            sock.settimeout(None)
            call = Call(receive, sock)
            sender.sendto(b"first", sock.getsockname())
            call.result()
            sender.sendto(b"second", sock.getsockname())
            if limit == "O_NONBLOCK":
                os.set_blocking(sock.fileno(), False)
            elif limit == "SO_RCVTIMEO":
                sock.setsockopt(std.SOL_SOCKET, std.SO_RCVTIMEO, LIMIT)
            elif limit == "timeout":
                sock.settimeout(1e-9)
            receive(sock)
            assert sock.stats().received == 2
