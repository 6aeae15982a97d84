"""Opening, adopting and duplicating sockets: the same as with the standard module."""

import os
import socket as std

import pytest

from parity import assert_same, assert_same_outcome

FAMILIES = (std.AF_INET, std.AF_INET6, std.AF_UNIX)

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)

OPENING = [
    *((), (std.AF_INET,), (std.AF_INET, std.SOCK_DGRAM), (2, 2), (2, 2, 0), (2, 2, 17), (10, 2)),
    *((1, 2), (2, 2, 6), (2, 2, 1), (2, 2, 58), (2, 2, -1), (2, 2, 136), (10, 2, 136), (1, 2, 1)),
    *((-1, 2), (-1, -1), (2, -1), (-1, 2, -1), (0, 2), (99, 2), (2, 0), (2, 99), (1, 5), (2, 1)),
    *((2, std.SOCK_DGRAM | std.SOCK_NONBLOCK), (2, std.SOCK_DGRAM | std.SOCK_CLOEXEC)),
    *((2, 2 | std.SOCK_NONBLOCK | std.SOCK_CLOEXEC), (2, 1 | std.SOCK_NONBLOCK), (2, 2 | 1 << 20)),
    *((2.0, 2), (2, 2.0), ("2", 2), (2, "2"), (2, 2, "0"), (2, 2, 0.0), (None, 2), (2, None)),
    *((True, 2), (2, True), (2**31, 2), (2, 2**31), (2, 2, 2**31), (2**32 + 2, 2), (2, 2**32 + 2)),
    *((2, 2, 0, None, None), (2, 2, None), ([], 2), (2, []), (2, 2, [])),
    *((2, 2, 0, -1), (2, 2, 0, -5), (2, 2, 0, 1.0), (2, 2, 0, "3"), (2, 2, 0, 2**31)),
    *((-1, -1, -1, -1), (-1, -1, -1, 1.0), (-1, -1, -1, "3"), (-1, -1, -1, 2**40), (2, 2, 0, [])),
    *((2, 2, 0, 1_000_000), (-1, -1, -1, 1_000_000), (2, -1, -1, 1_000_000)),
]


@pytest.mark.parametrize("arguments", OPENING, ids=repr)
def test_open_a_socket_of_any_kind(arguments):
    def case(side):
        with side.module.socket(*arguments) as sock:
            return (
                (sock.family, sock.type, sock.proto, sock.timeout, sock.get_inheritable()),
                [type(item) for item in (sock.family, sock.type, sock.proto)],
                os.get_blocking(sock.fileno()),
            )

    assert_same_outcome(case)


@pytest.mark.parametrize(
    "keywords",
    [
        {"family": 2, "type": 2, "proto": 17},
        {"type": 2, "family": 1},
        {"type": 2},
        {"type": 2, "fileno": None},
        {"type": 2, "colour": "red"},
        {"family": 2, "fileno": 1_000_000},
        {"kind": 2},
    ],
    ids=repr,
)
def test_open_a_socket_with_keywords(keywords):
    def case(side):
        with side.module.socket(**keywords) as sock:
            return sock.family, sock.type, sock.proto

    assert_same_outcome(case)


@every_family
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"family": -1, "type": -1, "proto": -1},
        {"family": std.AF_INET},
        {"type": std.SOCK_DGRAM},
        {"family": std.AF_INET, "type": std.SOCK_DGRAM},
        {"family": std.AF_INET6, "type": std.SOCK_DGRAM, "proto": 5},
        {"family": 99, "type": std.SOCK_DGRAM},
        {"family": std.AF_INET, "type": 99},
        {"type": std.SOCK_DGRAM | std.SOCK_NONBLOCK},
        {"type": std.SOCK_STREAM},
        {"proto": 17},
        {"family": "x"},
        {"type": "x"},
    ],
    ids=repr,
)
def test_adopt_a_descriptor(family, given):
    def case(side):
        fd = std.socket(family, std.SOCK_DGRAM).detach()
        try:
            sock = side.module.socket(**given, fileno=fd)
            assert sock.detach() == fd
            return sock.family, sock.type, sock.proto, sock.timeout, os.get_blocking(fd)
        finally:
            os.close(fd)

    assert_same_outcome(case)


@pytest.mark.parametrize("given", [{}, {"family": 2}, {"family": 2, "type": 2}], ids=repr)
def test_adopt_a_descriptor_that_is_not_a_socket(given):
    def case(side):
        reader, writer = os.pipe()
        try:
            return side.module.socket(**given, fileno=reader)
        finally:
            # It was not adopted: this would fail if it were closed.
            os.close(reader)
            os.close(writer)

    assert_same(case, OSError)


def test_adopt_a_nonblocking_descriptor():
    def case(side):
        with std.socket(std.AF_INET, std.SOCK_DGRAM | std.SOCK_NONBLOCK) as other:
            sock = side.keep(side.module.socket(fileno=other.detach()))
            return sock.gettimeout(), os.get_blocking(sock.fileno())

    assert_same(case)


@every_family
def test_dup_is_the_same_socket_and_lives_on(family):
    def case(side):
        sock, peer = side.connected(family)
        sock.settimeout(2)
        twin = side.keep(sock.dup())
        kind = type(twin) is type(sock), twin.family, twin.type, twin.proto
        same = twin.getsockname() == sock.getsockname(), twin.fileno() != sock.fileno()
        sock.close()
        peer.send(b"x")
        return kind, same, twin.recv(10), twin.gettimeout(), twin.get_inheritable()

    assert_same(case)


def test_fromfd_duplicates_the_descriptor():
    def case(side):
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", 0))
            twin = side.keep(side.module.fromfd(other.fileno(), std.AF_INET, std.SOCK_DGRAM, 17))
            same = isinstance(twin, side.module.socket), twin.fileno() != other.fileno()
            return same, twin.getsockname() == other.getsockname(), twin.proto, twin.timeout

    assert_same(case)
    assert_same(lambda side: side.module.fromfd(1_000_000, 2, 2), OSError)
    assert_same(lambda side: side.module.fromfd("x", 2, 2), TypeError)
    assert_same(lambda side: side.module.fromfd(1), TypeError)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (std.AF_UNIX,),
        (std.AF_UNIX, std.SOCK_DGRAM),
        (None, std.SOCK_DGRAM, 0),
        (std.AF_UNIX, std.SOCK_DGRAM | std.SOCK_NONBLOCK),
        (std.AF_UNIX, std.SOCK_SEQPACKET),
        (std.AF_INET, std.SOCK_DGRAM),
        (std.AF_UNIX, 99),
        ("x",),
        (None, "x"),
        (None, 2, "x"),
        (None, 2, 0, 0),
    ],
    ids=repr,
)
def test_socketpair(arguments):
    def case(side):
        left, right = map(side.keep, side.module.socketpair(*arguments))
        left.send(b"to the right")
        assert right.recv(100) == b"to the right"
        right.sendall(b"to the left")
        assert left.recvfrom(100) == (b"to the left", None)
        return [
            (sock.family, sock.type, sock.proto, sock.timeout, os.get_blocking(sock.fileno()))
            for sock in (left, right)
            if isinstance(sock, side.module.socket) and not sock.get_inheritable()
        ]

    assert_same_outcome(case)


def test_socketpair_keeps_the_default_timeout():
    def case(side):
        std.setdefaulttimeout(5.5)
        try:
            left, right = map(side.keep, side.module.socketpair(std.AF_UNIX, std.SOCK_DGRAM))
            return left.gettimeout(), right.gettimeout()
        finally:
            std.setdefaulttimeout(None)

    assert_same(case)


@pytest.mark.parametrize("inheritable", [True, False, 1, 0])
def test_set_inheritable(inheritable):
    def case(side):
        sock = side.open()
        before = sock.get_inheritable()
        sock.set_inheritable(inheritable)
        return before, sock.get_inheritable(), os.get_inheritable(sock.fileno())

    assert_same(case)
