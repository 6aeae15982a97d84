"""Closed, detached, unopened and unconnected sockets: the same as with the standard class."""

import contextlib
import os
import socket as std

import pytest

from parity import assert_same, assert_same_outcome

FAMILIES = (std.AF_INET, std.AF_INET6, std.AF_UNIX)

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)

NOWHERE = ("127.0.0.1", 9)

# Every method, with valid arguments.
CALLS = {
    "accept": lambda sock: sock.accept(),
    "bind": lambda sock: sock.bind(("127.0.0.1", 0)),
    "close": lambda sock: sock.close(),
    "connect": lambda sock: sock.connect(NOWHERE),
    "connect_ex": lambda sock: sock.connect_ex(NOWHERE),
    "detach": lambda sock: sock.detach(),
    "dup": lambda sock: sock.dup(),
    "fileno": lambda sock: sock.fileno(),
    "get_inheritable": lambda sock: sock.get_inheritable(),
    "getblocking": lambda sock: sock.getblocking(),
    "getpeername": lambda sock: sock.getpeername(),
    "getsockname": lambda sock: sock.getsockname(),
    "getsockopt": lambda sock: sock.getsockopt(std.SOL_SOCKET, std.SO_TYPE),
    "getsockopt with a length": lambda sock: sock.getsockopt(std.SOL_SOCKET, std.SO_TYPE, 4),
    "gettimeout": lambda sock: sock.gettimeout(),
    "listen": lambda sock: sock.listen(),
    "makefile": lambda sock: sock.makefile("rb").close(),
    "recv": lambda sock: sock.recv(10),
    "recv of nothing": lambda sock: sock.recv(0),
    "recv_into": lambda sock: sock.recv_into(bytearray(10)),
    "recv_into nothing": lambda sock: sock.recv_into(bytearray()),
    "recvfrom": lambda sock: sock.recvfrom(10),
    "recvfrom of nothing": lambda sock: sock.recvfrom(0),
    "recvfrom_into": lambda sock: sock.recvfrom_into(bytearray(10)),
    "recvmsg": lambda sock: sock.recvmsg(10),
    "recvmsg_into": lambda sock: sock.recvmsg_into([bytearray(10)]),
    "repr": lambda sock: repr(sock).replace("tomada.", ""),
    "send": lambda sock: sock.send(b"x"),
    "sendall": lambda sock: sock.sendall(b"x"),
    "sendall of nothing": lambda sock: sock.sendall(b""),
    "sendfile": lambda sock: sock.sendfile(None),
    "sendmsg": lambda sock: sock.sendmsg([b"x"]),
    "sendmsg to an address": lambda sock: sock.sendmsg([b"x"], [], 0, NOWHERE),
    "sendmsg_afalg": lambda sock: sock.sendmsg_afalg([b"x"], op=1),
    "sendto": lambda sock: sock.sendto(b"x", NOWHERE),
    "set_inheritable": lambda sock: sock.set_inheritable(True),
    "setblocking": lambda sock: sock.setblocking(False),
    "setsockopt": lambda sock: sock.setsockopt(std.SOL_SOCKET, std.SO_BROADCAST, 1),
    "setsockopt to nothing": lambda sock: sock.setsockopt(std.SOL_SOCKET, 1, None, 4),
    "settimeout": lambda sock: sock.settimeout(1),
    "shutdown": lambda sock: sock.shutdown(std.SHUT_RDWR),
    "with": lambda sock: sock.__enter__() is sock,
    "family, type and proto": lambda sock: (sock.family, sock.type, sock.proto, sock.timeout),
}

every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every_call
def test_call_on_a_closed_socket(call):
    def case(side):
        sock = side.bound()
        sock.close()
        return call(sock)

    assert_same_outcome(case)


@every_call
def test_call_on_a_detached_socket(call):
    def case(side):
        sock = side.bound()
        os.close(sock.detach())
        return call(sock)

    assert_same_outcome(case)


@every_call
def test_call_on_a_socket_that_was_never_opened(call):
    def case(side):
        class Unopened(side.module.socket):
            def __init__(self):
                # Attributes that the standard class's Python layer sets before it opens a socket.
                self._io_refs = 0
                self._closed = False

        return call(Unopened())

    assert_same_outcome(case)


@pytest.mark.thread_unsafe(reason="descriptor numbers are reused")
@every_call
def test_call_on_a_descriptor_closed_by_other_code(call):
    def case(side):
        sock = side.bound()
        os.close(sock.fileno())
        try:
            return call(sock)
        finally:
            with contextlib.suppress(OSError):
                sock.close()

    assert_same_outcome(case)


def test_close_twice():
    def case(side):
        sock = side.bound()
        return sock.close(), sock.close(), sock.fileno()

    assert_same(case)


def test_detach_twice():
    def case(side):
        sock = side.bound()
        os.close(sock.detach())
        return sock.detach(), sock.detach(), sock.fileno(), sock.close()

    assert_same(case)


def test_detached_descriptor_is_open_and_unchanged():
    def case(side):
        sock = side.bound()
        name = sock.getsockname()
        fd = sock.detach()
        with std.socket(fileno=fd) as same:
            return same.getsockname() == name, same.fileno() == fd, os.get_inheritable(fd)

    assert_same(case)


@every_family
def test_call_that_an_unconnected_socket_cannot_do(family):
    assert_same(lambda side: side.bound(family).getpeername(), OSError)
    assert_same(lambda side: side.bound(family).send(b"x"), OSError)
    assert_same(lambda side: side.bound(family).sendall(b"x"), OSError)
    assert_same(lambda side: side.bound(family).sendmsg([b"x"]), OSError)
    assert_same_outcome(lambda side: side.bound(family).shutdown(std.SHUT_RDWR))


@every_family
@pytest.mark.parametrize("backlog", [(), (0,), (5,), (-1,), (2**31 - 1,)], ids=repr)
def test_listen_on_a_datagram_socket(family, backlog):
    assert_same(lambda side: side.bound(family).listen(*backlog), OSError)


@every_family
def test_accept_on_a_datagram_socket(family):
    assert_same(lambda side: side.bound(family).accept(), OSError)
    assert_same(lambda side: side.connected(family)[0].accept(), OSError)


@every_family
@pytest.mark.parametrize("how", [std.SHUT_RD, std.SHUT_WR, std.SHUT_RDWR, 3, -1, 100])
def test_shutdown_of_a_connected_socket(family, how):
    def case(side):
        sock, peer = side.connected(family)
        peer.send(b"x")
        result = sock.shutdown(how)
        answers = [result]
        for call in (lambda: sock.recv(10), lambda: sock.recv(10), lambda: sock.send(b"y")):
            try:
                answers.append(call())
            except OSError as error:
                answers.append(error.errno)
        return answers

    assert_same_outcome(case)
