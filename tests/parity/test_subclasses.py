"""Classes derived from ``tomada.socket.socket``, and sockets that were not closed."""

import errno
import gc
import os
import socket as std
import sys
import warnings
import weakref

import pytest

from parity import assert_same
from support import DEADLINE, Call, open_descriptors
from tomada import socket


def test_subclass_without_an_init(inet, peer):
    class Plain(socket.socket):
        pass

    other = peer(inet)
    with Plain(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE)
        other.ask("echo", count=1)
        sock.sendto(b"x", other.address)
        assert sock.recvfrom(10) == (b"x", other.address)
        assert isinstance(sock, socket.socket)
        with sock.dup() as twin:
            assert type(twin) is Plain


def test_subclass_with_its_own_attributes():
    def case(side):
        class Named(side.module.socket):
            def __init__(self, name, **options):
                super().__init__(std.AF_INET, type=std.SOCK_DGRAM, **options)
                self.name = name

        sock = side.keep(Named("the first", proto=17))
        sock.colour = "red"
        return sock.name, sock.colour, sock.proto, sock.type, vars(sock)

    assert_same(case)


def test_subclass_with_slots_has_no_other_attributes():
    def case(side):
        class Slotted(side.module.socket):
            __slots__ = ("name",)

        sock = side.keep(Slotted(std.AF_INET, std.SOCK_DGRAM))
        sock.name = "a name"
        sock.colour = "red"

    assert_same(case, AttributeError)


def test_subclass_overrides_methods_and_calls_super(inet, peer):
    class Counting(socket.socket):
        received = 0

        def recvfrom(self, bufsize, flags=0):
            data, address = super().recvfrom(bufsize, flags)
            self.received += len(data)
            return data.upper(), address

        def close(self):
            self.was_closed = True
            super().close()

    other = peer(inet)
    with Counting(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE)
        sock.bind(("127.0.0.1", 0))
        other.do("send", datagrams=[b"abc"], to=sock.getsockname())
        assert sock.recvfrom(10) == (b"ABC", other.address)
        assert sock.received == 3
    assert sock.was_closed
    assert sock.fileno() == -1


def test_subclass_with_other_bases():
    def case(side):
        class Named:
            name = "mixed in"

        class Mixed(Named, side.module.socket):
            pass

        sock = side.keep(Mixed(std.AF_INET, std.SOCK_DGRAM))
        return sock.name, sock.type, isinstance(sock, Named), vars(sock)

    assert_same(case)


def test_subclass_whose_init_opens_nothing():
    def case(side):
        class Never(side.module.socket):
            def __init__(self):
                pass

        sock = Never()
        return sock.fileno(), int(sock.family), int(sock.type), sock.proto, sock.gettimeout()

    assert_same(case)


def test_failed_init_leaves_no_descriptor():
    class Failing(socket.socket):
        def __init__(self):
            super().__init__(std.AF_INET, std.SOCK_DGRAM)
            self.close()
            raise ZeroDivisionError

    before = open_descriptors()
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            Failing()
        with pytest.raises(OSError, match=os.strerror(errno.EPROTONOSUPPORT)):
            socket.socket(std.AF_INET, std.SOCK_DGRAM, std.IPPROTO_TCP)
    assert open_descriptors() == before


def test_second_init_keeps_the_first_socket():
    # The standard class leaks the first descriptor, and closes neither.
    with socket.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        before = open_descriptors()
        fd = sock.fileno()
        with pytest.raises(RuntimeError):
            sock.__init__(std.AF_INET, std.SOCK_DGRAM)
        assert sock.fileno() == fd
        assert open_descriptors() == before


class Stream(socket.socket):
    """Opens streams in a program with its own class derived from ``socket.socket``."""

    def __init__(self, family=std.AF_INET, kind=std.SOCK_STREAM, proto=0, fileno=None):
        super().__init__(family, kind, proto, fileno)


def test_stream_subclass_as_a_tcp_client():
    with std.create_server(("127.0.0.1", 0)) as server, Stream() as client:
        client.settimeout(DEADLINE)
        client.connect(server.getsockname())
        connection, _ = server.accept()
        with connection:
            assert client.send(b"there") == 5
            assert connection.recv(100) == b"there"
            connection.sendall(b"and back")
            assert client.recv(3) == b"and"
            assert client.recv(100) == b" back"
            assert client.getpeername() == server.getsockname()
        assert client.recv(100) == b""


def test_stream_subclass_as_a_tcp_server():
    with Stream() as server, std.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.settimeout(DEADLINE)
        accepting = Call(server.accept).until_it_waits()
        client.connect(server.getsockname())
        connection, address = accepting.result()
        with connection:
            assert address == client.getsockname()
            client.sendall(b"one line\nanother\n")
            with connection.makefile("r", encoding="ascii") as lines:
                assert lines.readline() == "one line\n"
            connection.sendall(b"thanks")
            assert client.recv(100) == b"thanks"


@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_stream_subclass_sendall_sends_more_than_fits_at_once(timeout):
    data = bytes(range(256)) * 40_000
    with std.create_server(("127.0.0.1", 0)) as server, Stream() as client:
        client.settimeout(timeout)
        client.connect(server.getsockname())
        sending = Call(client.sendall, data).until_it_waits()
        connection, _ = server.accept()
        with connection:
            received = bytearray()
            while len(received) < len(data):
                received += connection.recv(1 << 20)
            assert received == data
            assert sending.result() is None


def test_stream_connection_is_refused():
    def case(side):
        class Own(side.module.socket):
            pass

        with std.create_server(("127.0.0.1", 0)) as server:
            nobody = server.getsockname()
        for timeout in (None, 5):
            sock = side.keep(Own(std.AF_INET, std.SOCK_STREAM))
            sock.settimeout(timeout)
            assert sock.connect_ex(nobody)
        sock = side.keep(Own(std.AF_INET, std.SOCK_STREAM))
        sock.connect(nobody)

    assert_same(case, ConnectionRefusedError)


def test_unclosed_socket_warns_and_its_descriptor_is_closed():
    sock = socket.socket(std.AF_INET, std.SOCK_DGRAM)
    fd, text = sock.fileno(), repr(sock)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del sock
        gc.collect()
    (warning,) = caught
    assert warning.category is ResourceWarning
    assert str(warning.message) == f"unclosed {text}"
    assert warning.source is not None
    del caught, warning
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(fd)


def test_unclosed_socket_in_a_reference_cycle_is_collected():
    class Holder(socket.socket):
        pass

    sock = Holder(std.AF_INET, std.SOCK_DGRAM)
    sock.itself = sock
    fd = sock.fileno()
    gc.collect()
    del sock
    with pytest.warns(ResourceWarning, match=f"unclosed .*Holder fd={fd},"):
        gc.collect()
    gc.collect()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(fd)


def test_closed_socket_with_a_datagram_that_refers_to_it_is_collected():
    class Keeping(socket.socket):
        pass

    with Keeping(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.sendto(b"x", sock.getsockname())
        sock.last = sock.recv_datagram()
    known = weakref.ref(sock)
    del sock
    gc.collect()
    assert known() is None


def test_unclosed_socket_is_closed_if_the_warning_is_an_error(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda problem: reported.append(problem.exc_type))
    sock = socket.socket(std.AF_INET, std.SOCK_DGRAM)
    fd = sock.fileno()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del sock
        gc.collect()
    assert reported == [ResourceWarning]
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(fd)


@pytest.mark.parametrize("end", ["close", "detach"])
def test_closed_or_detached_socket_does_not_warn(end):
    sock = socket.socket(std.AF_INET, std.SOCK_DGRAM)
    fd = getattr(sock, end)()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del sock
        gc.collect()
    assert caught == []
    if end == "detach":
        os.close(fd)


def test_failed_socket_does_not_warn():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(OSError, match=os.strerror(errno.EPROTONOSUPPORT)):
            socket.socket(std.AF_INET, std.SOCK_DGRAM, std.IPPROTO_TCP)
        gc.collect()
    assert caught == []


def test_collected_socket_closes_its_file():
    with socket.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        file = sock.makefile("rb")
        fd = sock.fileno()
    os.fstat(fd)
    del sock
    file.close()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(fd)
