"""Errors of send_many: which datagram failed, which were sent, and the message."""

import errno
import socket as std

import pytest

from support import CLOSED, RefusalError
from tomada import socket
from traffic import numbered, payloads

# The index of the failing one among ten datagrams.
every_place = pytest.mark.parametrize("place", [0, 4, 9], ids=["first", "middle", "last"])


def among(items, place, item):
    """Replace one item, and return the datagrams before it, which should have been sent."""
    return [*items[:place], item, *items[place + 1 :]], items[:place]


@pytest.fixture
def dead(inet):
    """Make a UDP address where no socket is bound."""
    with inet.bound(std) as sock:
        return sock.getsockname()


NO_PAYLOADS = [
    "text",
    None,
    7,
    1.5,
    ["a list"],
    (),
    (b"a pair's half",),
    (b"three", ("127.0.0.1", 9), 0),
    (None, ("127.0.0.1", 9)),
    ("text", ("127.0.0.1", 9)),
    (("127.0.0.1", 9), b"turned round"),
    (b"x", None),
    (b"x", "127.0.0.1"),
    (b"x", ("127.0.0.1",)),
    (b"x", ("127.0.0.1", "9")),
    (b"x", (9, "127.0.0.1")),
]


@every_place
@pytest.mark.parametrize("item", NO_PAYLOADS, ids=repr)
@pytest.mark.parametrize("errors", ["raise", "continue"])
def test_send_many_raises_for_an_invalid_item_after_sending_those_before_it(
    inet, place, item, errors
):
    with inet.bound(socket) as sock:
        pairs = [(data, sock.getsockname()) for data in numbered(10)]
        items, before = among(pairs, place, item)
        with pytest.raises(TypeError) as caught:
            sock.send_many(items, errors=errors)
        assert (caught.value.index, caught.value.sent) == (place, place)
        assert f"(datagram {place}; {place} sent before it)" in str(caught.value)
        assert payloads(sock) == [data for data, _ in before]


@every_place
@pytest.mark.parametrize("item", ["text", None, 7, (b"x", ("127.0.0.1", 9))], ids=repr)
def test_send_many_to_one_address_treats_every_item_as_a_payload(inet, place, item):
    with inet.bound(socket) as sock:
        items, before = among(numbered(10), place, item)
        with pytest.raises(TypeError) as caught:
            sock.send_many(iter(items), sock.getsockname())
        assert (caught.value.index, caught.value.sent) == (place, place)
        assert payloads(sock) == before


@pytest.mark.parametrize("place", [1024, 4095, 4096, 4097, 9000])
def test_send_many_raises_the_index_of_a_late_invalid_item(inet, place):
    with inet.bound(socket) as sock, inet.open(socket) as sender:
        items, _ = among(numbered(10_000), place, None)
        with pytest.raises(TypeError) as caught:
            sender.send_many(items, sock.getsockname())
        assert (caught.value.index, caught.value.sent) == (place, place)
        assert sender.stats().sent == place


def test_send_many_propagates_an_exception_of_an_address(inet):
    class Port:
        def __index__(self):
            raise RefusalError("no", "because")

    with inet.bound(socket) as sock:
        with pytest.raises(RefusalError) as caught:
            sock.send_many([(b"a", sock.getsockname()), (b"b", ("127.0.0.1", Port()))])
        assert caught.value.args == ("no", "because")
        assert payloads(sock) == [b"a"]


def test_send_many_rejects_a_non_contiguous_buffer_like_sendto(inet):
    with inet.bound(socket) as sock:
        with pytest.raises(BufferError) as caught:
            sock.send_many([b"x", memoryview(b"abcdef")[::2]], sock.getsockname())
        assert (caught.value.index, caught.value.sent) == (1, 1)


def test_send_many_names_the_datagram_with_an_invalid_port(inet):
    with inet.bound(socket) as sock:
        here = sock.getsockname()
        with pytest.raises(OverflowError, match="port must be 0-65535") as caught:
            sock.send_many([(b"a", here), (b"b", ("127.0.0.1", 65_536)), (b"c", here)])
        assert (caught.value.index, caught.value.sent) == (1, 1)
        assert payloads(sock) == [b"a"]


def test_send_many_rejects_a_host_of_another_family_like_sendto(inet):
    with inet.bound(socket) as sock:
        here, there = sock.getsockname(), ("::1", 9)
        with pytest.raises(std.gaierror) as expected:
            sock.sendto(b"x", there)
        with pytest.raises(std.gaierror) as caught:
            sock.send_many([(b"a", here), (b"b", there)])
        assert caught.value.errno == expected.value.errno
        assert (caught.value.index, caught.value.sent) == (1, 1)


@pytest.mark.parametrize("refusal", [RefusalError("no", "because"), SystemExit(3), OSError(5, "x")])
def test_send_many_propagates_an_exception_of_the_iterable_after_sending_those_before_it(
    inet, refusal
):
    def datagrams():
        yield b"a"
        yield b"b"
        raise refusal

    with inet.bound(socket) as sock:
        with pytest.raises(type(refusal)) as caught:
            sock.send_many(datagrams(), sock.getsockname(), errors="continue")
        assert caught.value.args == refusal.args
        assert payloads(sock) == [b"a", b"b"]


@every_place
def test_send_many_names_a_datagram_that_is_too_long(inet, place):
    with inet.bound(socket) as sock:
        here = sock.getsockname()
        items, before = among(numbered(10), place, bytes(65_508))
        with pytest.raises(OSError, match="Message too long") as caught:
            sock.send_many(items, here)
        error = caught.value
        assert (error.errno, error.index, error.sent) == (errno.EMSGSIZE, place, place)
        assert f"(datagram {place} to {here}; {place} sent before it)" in str(error)
        assert payloads(sock) == before


def test_send_many_continues_after_a_datagram_that_is_too_long(inet):
    with inet.bound(socket) as sock:
        items = [b"a", bytes(65_508), b"b", b"b", bytes(70_000), bytes(70_000), b"c"]
        failures = sock.send_many(items, sock.getsockname(), errors="continue")
        assert [(index, error.errno, error.sent) for index, error in failures] == [
            (1, errno.EMSGSIZE, 1),
            (4, errno.EMSGSIZE, 3),
            (5, errno.EMSGSIZE, 3),
        ]
        assert payloads(sock) == [b"a", b"b", b"b", b"c"]


def test_send_many_reports_late_failures_with_their_indexes(inet):
    with inet.bound(socket) as sock, inet.open(socket) as sender:
        items = [b"x"] * 10_000
        bad = [0, 1023, 1024, 4095, 4096, 8192, 9999]
        for index in bad:
            items[index] = bytes(65_508)
        failures = sender.send_many(iter(items), sock.getsockname(), errors="continue")
        assert [index for index, _ in failures] == bad
        assert sender.stats().sent == 10_000 - len(bad)


def test_send_many_that_continues_returns_an_empty_list_without_failures(kind):
    with kind.bound(socket) as sock:
        assert sock.send_many([b"a", b"b"], sock.getsockname(), errors="continue") == []
        assert payloads(sock) == [b"a", b"b"]


def test_send_many_fails_at_the_index_of_a_forbidden_broadcast(inet):
    with inet.bound(socket) as sock:
        here, all_of_them = sock.getsockname(), ("127.255.255.255", 9)
        pairs = [(b"a", here), (b"b", all_of_them), (b"b", all_of_them), (b"c", here)]
        with pytest.raises(PermissionError) as caught:
            sock.send_many(pairs)
        error = caught.value
        assert (error.errno, error.index, error.sent) == (errno.EACCES, 1, 1)
        failures = sock.send_many(pairs, errors="continue")
        assert [(index, type(error)) for index, error in failures] == [
            (1, PermissionError),
            (2, PermissionError),
        ]
        assert payloads(sock) == [b"a", b"a", b"c"]


def test_send_many_fails_at_the_indexes_of_dead_peers(unix):
    with unix.bound(socket) as sock, unix.bound(std) as gone:
        here, missing, left = sock.getsockname(), unix.address(), gone.getsockname()
        gone.close()
        pairs = [(b"a", here), (b"b", missing), (b"c", here), (b"d", left), (b"e", here)]
        failures = sock.send_many(pairs, errors="continue")
        assert [(index, type(error), error.sent) for index, error in failures] == [
            (1, FileNotFoundError, 1),
            (3, ConnectionRefusedError, 2),
        ]
        assert missing in str(failures[0][1])
        assert payloads(sock) == [b"a", b"c", b"e"]


@pytest.mark.thread_unsafe(reason="ports are reused")
def test_send_many_raises_a_pending_error_and_sends_nothing(inet, dead):
    with inet.open(socket) as sock:
        sock.connect(dead)
        sock.send(b"anybody?")
        with inet.open(std) as risen:
            risen.bind(dead)
            with pytest.raises(ConnectionRefusedError) as caught:
                sock.send_many([b"a", b"bb", b"ccc"])
            assert (caught.value.index, caught.value.sent) == (0, 0)
            assert payloads(risen) == []
            # It is raised once.
            assert sock.send_many([b"a", b"bb", b"ccc"]) == 3
            assert payloads(risen) == [b"a", b"bb", b"ccc"]


@pytest.mark.thread_unsafe(reason="ports are reused")
def test_send_many_loses_one_datagram_to_a_pending_error(inet, dead):
    with inet.open(socket) as sock:
        sock.connect(dead)
        sock.send(b"anybody?")
        with inet.open(std) as risen:
            risen.bind(dead)
            failures = sock.send_many([b"a", b"bb", b"ccc"], errors="continue")
            assert [(index, error.errno) for index, error in failures] == [(0, errno.ECONNREFUSED)]
            assert payloads(risen) == [b"bb", b"ccc"]


def test_send_many_errors_caused_by_a_call_are_raised_by_the_next(inet, dead):
    with inet.open(socket) as sock:
        sock.connect(dead)
        assert sock.send_many([b"a", b"a", b"a"]) == 3
        with pytest.raises(ConnectionRefusedError):
            sock.recv_many()


def test_send_many_to_a_dead_peer_still_sends_to_the_others(inet, dead):
    with inet.bound(socket) as sock, inet.bound(std) as alive:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVERR, 1)
        pairs = [(b"%d" % at, to) for at, to in enumerate([alive.getsockname(), dead] * 4)]
        failures = sock.send_many(pairs, errors="continue")
        assert {type(error) for _, error in failures} <= {ConnectionRefusedError}
        missing = {b"%d" % index for index, _ in failures}
        assert payloads(alive) == [data for data, to in pairs if to != dead and data not in missing]


def test_send_many_without_a_peer_requires_an_address(inet):
    with inet.open(socket) as sock:
        with pytest.raises(OSError, match="Destination address required") as caught:
            sock.send_many([b"a", b"b"])
        assert (caught.value.index, caught.value.sent) == (0, 0)
        failures = sock.send_many([b"a", b"b"], errors="continue")
        assert [error.errno for _, error in failures] == [errno.EDESTADDRREQ] * 2


@pytest.mark.parametrize("single", [b"x", bytearray(b"x"), memoryview(b"x"), "x"], ids=repr)
def test_send_many_of_one_datagram_says_what_to_use(inet, single):
    with inet.bound(socket) as sock:
        with pytest.raises(TypeError, match=r"sendto\(\)"):
            sock.send_many(single, sock.getsockname())
        assert payloads(sock) == []


@pytest.mark.parametrize("nothing", [None, 5, object()], ids=["None", "int", "object"])
def test_send_many_rejects_objects_that_are_not_iterable(inet, nothing):
    with inet.bound(socket) as sock, pytest.raises(TypeError):
        sock.send_many(nothing, sock.getsockname())


def test_send_many_errors_argument_is_raise_or_continue(inet):
    with inet.bound(socket) as sock:
        for errors in ("ignore", "", "RAISE"):
            with pytest.raises(ValueError, match="errors must be 'raise' or 'continue'"):
                sock.send_many([b"x"], sock.getsockname(), errors=errors)
        with pytest.raises(TypeError):
            sock.send_many([b"x"], sock.getsockname(), 0, "raise")
        assert payloads(sock) == []


@pytest.mark.parametrize("flag", ["MSG_PEEK", "MSG_ERRQUEUE"])
def test_send_many_rejects_flags_that_it_does_not_support(inet, flag):
    with inet.bound(socket) as sock:
        sock.sendto(b"x", sock.getsockname())
        for flags in (getattr(socket, flag), getattr(socket, flag) | socket.MSG_DONTWAIT):
            with pytest.raises(ValueError):  # noqa: PT011 - each flag has its own message
                sock.recv_many(10, flags)
        assert sock.recv_many() == [(b"x", sock.getsockname())]


@pytest.mark.parametrize("most", [0, -1, -(2**62)])
def test_recv_many_maximum_is_at_least_one(inet, most):
    with inet.bound(socket) as sock:
        sock.sendto(b"x", sock.getsockname())
        with pytest.raises(ValueError, match="max_datagrams must be at least 1"):
            sock.recv_many(most)
        assert payloads(sock) == [b"x"]


def test_send_many_and_recv_many_on_a_closed_socket(inet):
    sock = inet.bound(socket)
    here = sock.getsockname()
    sock.close()
    with pytest.raises(OSError, match=CLOSED):
        sock.recv_many()
    for datagrams in ([b"x"], []):
        for errors in ("raise", "continue"):
            with pytest.raises(OSError, match=CLOSED):
                sock.send_many(datagrams, here, errors=errors)
