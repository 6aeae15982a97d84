"""Wrong or unusual buffers, sizes, flags and control messages: the same as the standard class."""

import array
import contextlib
import mmap
import os
import socket as std
import sys

import pytest

from parity import assert_same, assert_same_outcome, hides_exceptions, outcome
from tomada import socket as ours

FAMILIES = (std.AF_INET, std.AF_INET6, std.AF_UNIX)

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def receiving(receive, family=std.AF_INET, sent=b"0123456789"):
    """Make a case that receives a datagram, and returns the rest of the queue."""

    def case(side):
        sock, peer = side.connected(family)
        peer.send(sent)
        peer.send(b"next")
        result = receive(sock)
        if isinstance(result, tuple):
            result = ["the peer" if item == peer.getsockname() else item for item in result]
        return result, sock.recv(100)

    return case


def into(method, make, *arguments):
    """Receive into a buffer, and return its contents."""

    def receive(sock):
        buffer = make()
        result = getattr(sock, method)(buffer, *arguments)
        result = result[0] if isinstance(result, tuple) else result
        return result, bytes(memoryview(buffer).cast("B"))

    return receive


@pytest.mark.parametrize("method", ["recv_into", "recvfrom_into"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: bytearray(0),
        lambda: bytearray(4),
        lambda: bytearray(20),
        lambda: memoryview(bytearray(20))[3:9],
        lambda: memoryview(bytearray(20)).cast("B", (4, 5)),
        lambda: memoryview(bytearray(20)).cast("I"),
        lambda: array.array("H", [1, 2]),
        lambda: array.array("d", []),
        lambda: memoryview(bytearray(20))[::2],
        lambda: memoryview(bytearray(20))[::-1],
        lambda: memoryview(b"read only"),
        lambda: b"read only",
        lambda: "text",
        lambda: [1, 2],
        lambda: None,
    ],
    ids=range(15),
)
def test_buffers_of_every_shape(method, make):
    assert_same_outcome(receiving(into(method, make)))
    assert_same_outcome(receiving(into(method, make, 2)))
    assert_same_outcome(receiving(into(method, make, 0, std.MSG_TRUNC)))


@pytest.mark.parametrize("method", ["recv_into", "recvfrom_into"])
@pytest.mark.parametrize("count", [-1, -(2**31), -(2**63), 0, 1, 7, 8, 9, 2**31, 2**63 - 1])
def test_counts_that_fit_or_do_not_fit_the_buffer(method, count):
    assert_same_outcome(receiving(into(method, lambda: bytearray(8), count)))
    assert_same_outcome(receiving(into(method, bytearray, count)))


@every_family
@pytest.mark.parametrize("method", ["recv", "recvfrom", "recvmsg"])
@pytest.mark.parametrize("size", [-1, -(2**31), -(2**63), 0, 1, 9, 10, 11, 65_535, 65_536, 1 << 20])
def test_sizes_of_every_kind(family, method, size):
    assert_same_outcome(receiving(lambda sock: getattr(sock, method)(size), family))


@every_family
@pytest.mark.parametrize("sent", [b"", b"0123456789"], ids=["empty", "ten bytes"])
@pytest.mark.parametrize(
    "flags",
    [
        *(std.MSG_PEEK, std.MSG_DONTWAIT, std.MSG_WAITALL, std.MSG_OOB, std.MSG_ERRQUEUE),
        *(std.MSG_TRUNC, std.MSG_TRUNC | std.MSG_PEEK, std.MSG_CTRUNC, std.MSG_CMSG_CLOEXEC),
        *(std.MSG_EOR, std.MSG_NOSIGNAL, 1 << 30, -1, -(2**31)),
    ],
    ids=hex,
)
def test_receive_flags_of_every_kind(family, sent, flags):
    for receive in (
        lambda sock: sock.recv_into(bytearray(20), 0, flags),
        lambda sock: sock.recvfrom_into(bytearray(4), 0, flags),
        lambda sock: sock.recv(20, flags),
        lambda sock: sock.recvfrom(20, flags),
        lambda sock: sock.recvmsg(20, 0, flags),
        lambda sock: sock.recvmsg_into([bytearray(2), bytearray(2)], 0, flags),
    ):
        assert_same_outcome(receiving(receive, family, sent))
    # With MSG_TRUNC, the standard class of CPython 3.15 returns more than it had room for.
    if sys.version_info < (3, 15) or not flags & std.MSG_TRUNC:
        assert_same_outcome(receiving(lambda sock: sock.recvmsg(4, 0, flags), family, sent))


@every_family
@pytest.mark.parametrize(
    "flags",
    [
        *(std.MSG_DONTROUTE, std.MSG_DONTWAIT, std.MSG_CONFIRM, std.MSG_EOR, std.MSG_NOSIGNAL),
        *(std.MSG_OOB, std.MSG_ERRQUEUE, std.MSG_TRUNC, std.MSG_PEEK, 1 << 30),
    ],
    ids=hex,
)
def test_send_flags_of_every_kind(family, flags):
    def case(send):
        def run(side):
            sock, peer = side.connected(family)
            return send(sock, peer.getsockname()), peer.recv(100)

        return run

    for send in (
        lambda sock, _: sock.send(b"data", flags),
        lambda sock, _: sock.sendall(b"data", flags),
        lambda sock, to: sock.sendto(b"data", flags, to),
        lambda sock, to: sock.sendmsg([b"data"], [], flags, to),
    ):
        assert_same_outcome(case(send))


@pytest.mark.parametrize("method", ["send", "sendall", "sendto", "sendmsg"])
@pytest.mark.parametrize("length", [65_507, 65_508, 65_535, 65_536, 1 << 20])
def test_datagrams_too_long_for_udp(method, length):
    def case(side):
        sock, peer = side.connected()
        data = bytes(length)
        calls = {
            "send": lambda: sock.send(data),
            "sendall": lambda: sock.sendall(data),
            "sendto": lambda: sock.sendto(data, peer.getsockname()),
            "sendmsg": lambda: sock.sendmsg([data[:100], data[100:]]),
        }
        return calls[method](), len(peer.recv(1 << 17))

    assert_same(case, OSError if length > 65_507 else None)


@pytest.mark.parametrize("length", [100_000, 1 << 20, 1 << 24])
def test_datagrams_too_long_for_a_unix_socket(length):
    def case(side):
        sock, peer = side.connected(std.AF_UNIX)
        return sock.send(bytes(length)), len(peer.recv(1 << 25))

    assert_same_outcome(case)


@pytest.mark.parametrize(
    "data",
    [
        memoryview(b"0123456789")[::2],
        memoryview(b"0123456789")[::-1],
        memoryview(b"0123456789").cast("B", (2, 5)),
        memoryview(b"").cast("I"),
        array.array("d", [1.0, 2.0]),
        mmap.mmap(-1, 100),
        "text",
        "",
        5,
        None,
        [b"list"],
        object(),
    ],
    ids=lambda data: type(data).__name__,
)
def test_payloads_of_every_kind(data):
    def case(send):
        def run(side):
            sock, peer = side.connected()
            result = send(sock, peer.getsockname())
            return result, peer.recv(200)

        return run

    assert_same_outcome(case(lambda sock, _: sock.send(data)))
    assert_same_outcome(case(lambda sock, _: sock.sendall(data)))
    assert_same_outcome(case(lambda sock, to: sock.sendto(data, to)))
    assert_same_outcome(case(lambda sock, _: sock.sendmsg([b"<", data, b">"])))
    # A view with several dimensions cannot be iterated over.
    is_hidden = getattr(data, "ndim", 1) > 1 and hides_exceptions("sendmsg", 0)
    hidden = NotImplementedError if is_hidden else None
    assert_same_outcome(case(lambda sock, _: sock.sendmsg(data)), hidden)


def failing_iterator():
    yield b"data"
    raise ZeroDivisionError


class ItemsOnly:
    """A sequence with ``__getitem__`` and without an iterator."""

    def __getitem__(self, index):
        return [b"a", b"b"][index]


@pytest.mark.parametrize(
    "make",
    [
        list,
        lambda: (b"a", b"b"),
        lambda: iter([b"a", b"b"]),
        lambda: {b"a": 1},
        lambda: b"bytes are numbers",
        lambda: [b"a", "text"],
        lambda: [b"a", None],
        lambda: [memoryview(b"abcd")[::2]],
        lambda: [b""] * 3,
        lambda: [b"x"] * os.sysconf("SC_IOV_MAX"),
        lambda: [b"x"] * (os.sysconf("SC_IOV_MAX") + 1),
        lambda: [b"x"] * 70_000,
        failing_iterator,
        ItemsOnly,
    ],
    ids=range(14),
)
def test_sendmsg_buffers_of_every_kind(make):
    def case(side):
        sock, peer = side.connected()
        return sock.sendmsg(make()), peer.recv(1 << 17)

    is_hidden = make is failing_iterator and hides_exceptions("sendmsg", 0)
    assert_same_outcome(case, ZeroDivisionError if is_hidden else None)


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        lambda: [bytearray(4), bytearray(2)],
        lambda: (bytearray(4), bytearray(20)),
        lambda: iter([bytearray(4), array.array("H", [0] * 8)]),
        lambda: [bytearray(), bytearray(), bytearray(1)],
        lambda: [bytearray(4), b"read only"],
        lambda: [memoryview(bytearray(8))[::2]],
        lambda: [bytearray(4), None],
        lambda: bytearray(8),
        lambda: 5,
        lambda: [bytearray(1) for _ in range(os.sysconf("SC_IOV_MAX"))],
        lambda: [bytearray(1) for _ in range(os.sysconf("SC_IOV_MAX") + 1)],
        lambda: [bytearray(1) for _ in range(70_000)],
        failing_iterator,
        ItemsOnly,
    ],
    ids=range(16),
)
def test_recvmsg_into_buffers_of_every_kind(make):
    def receive(sock):
        buffers = make()
        with contextlib.suppress(TypeError):
            # An iterator's buffers are freed with it.
            buffers = list(buffers)
        received = sock.recvmsg_into(buffers)
        return received[:3], [bytes(buffer) for buffer in buffers]

    assert_same_outcome(receiving(receive))


@pytest.mark.parametrize(
    "ancillary",
    [
        None,
        5,
        b"bytes",
        "text",
        [None],
        [()],
        [(1, 2)],
        [(1, 2, b"", 4)],
        [[std.SOL_SOCKET, std.SCM_RIGHTS, b""]],
        [("x", std.SCM_RIGHTS, b"")],
        [(std.SOL_SOCKET, "x", b"")],
        [(std.SOL_SOCKET, std.SCM_RIGHTS, "x")],
        [(std.SOL_SOCKET, std.SCM_RIGHTS, 5)],
        [(std.SOL_SOCKET, std.SCM_RIGHTS, b"")],
        [(std.SOL_SOCKET, std.SCM_RIGHTS, b"\xff\xff\xff\x7f")],
        [(std.SOL_SOCKET, std.SCM_RIGHTS, b"abc")],
        [(std.SOL_SOCKET, 77, b"")],
        [(2**31, 1, b"")],
        [(1, 2**31, b"")],
        [(-1, -1, b"data")],
        [(std.IPPROTO_IP, std.IP_TTL, b"")],
        [(std.IPPROTO_IP, std.IP_TTL, b"\0\0\0\0")],
        [(std.IPPROTO_IP, std.IP_TTL, b"\7\0\0\0")],
        [(std.IPPROTO_IP, std.IP_TTL, memoryview(b"\7.\0.\0.\0.")[::2])],
        [(std.IPPROTO_IP, std.IP_TTL, array.array("i", [7]))],
        [(std.IPPROTO_IP, std.IP_TTL, b"\7\0\0\0"), (std.IPPROTO_IP, std.IP_TOS, b"\1\0\0\0")],
        [(std.IPPROTO_IP, std.IP_TTL, bytes(100_000))],
        {(std.SOL_SOCKET, 77, b""): None},
        [b"abc"],
        ["abc"],
        {(1, 2, b"3")},
    ],
    ids=ascii,
)
@every_family
def test_control_messages_of_every_kind(family, ancillary):
    def case(side):
        sock, peer = side.connected(family)
        return sock.sendmsg([b"data"], ancillary), peer.recv(100)

    assert_same_outcome(case)


@every_family
@pytest.mark.parametrize("size", [-1, -(2**63), 0, 1, 16, 17, 24, 1000, 1 << 20, 2**31, 2**63 - 1])
def test_ancbufsize_of_every_size(family, size):
    def case(receive):
        def run(side):
            sock, peer = side.connected(family)
            sock.setsockopt(std.SOL_SOCKET, std.SO_PASSCRED, 1)
            sock.setsockopt(std.SOL_SOCKET, std.SO_PRIORITY, 1)
            if family != std.AF_UNIX:
                sock.setsockopt(std.IPPROTO_IP, std.IP_RECVTOS, 1)
            peer.send(b"0123456789")
            return receive(sock)[:3]

        return run

    assert_same_outcome(case(lambda sock: sock.recvmsg(100, size)))
    assert_same_outcome(case(lambda sock: sock.recvmsg_into([bytearray(4)], size)))


def test_buffer_is_released_after_the_call():
    def case(side):
        sock, _ = side.connected()
        buffer = bytearray(10)
        for call in (
            lambda: sock.send(buffer),
            lambda: sock.sendmsg([buffer], [(0, 0, buffer)]),
            lambda: sock.recv_into(buffer),
            lambda: sock.recvmsg_into([buffer, None]),
        ):
            with contextlib.suppress(OSError, TypeError):
                call()
            # A bytearray with an exported buffer cannot be resized.
            buffer.append(0)
        return len(buffer)

    assert_same(case)
    assert outcome(ours, case) == outcome(std, case) == ("returns", int, 14)
