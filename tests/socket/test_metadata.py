"""recv_datagram and recv_datagrams: metadata that the kernel provides on request."""

import functools
import socket as std
import struct
import time

import pytest

from support import CLOSED, DEADLINE, Call, RefusalError, eventually, interrupt
from tomada import socket
from traffic import LO, numbered, payloads, send_run

OF_IPV4 = [
    (socket.SOL_SOCKET, socket.SO_TIMESTAMPNS),
    (socket.SOL_SOCKET, socket.SO_RXQ_OVFL),
    (socket.IPPROTO_IP, socket.IP_PKTINFO),
    (socket.IPPROTO_IP, socket.IP_RECVTTL),
    (socket.IPPROTO_IP, socket.IP_RECVTOS),
]
OF_IPV6 = [
    (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO),
    (socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT),
    (socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS),
]
METADATA = ("destination", "interface", "timestamp_ns", "ttl", "tos", "ecn")


def ask(sock):
    """Make a socket request metadata, which it does at its first receive."""
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv_datagram()
    sock.settimeout(DEADLINE)


@pytest.fixture
def asked(inet):
    """Provide a socket that has requested metadata, and a plain one."""
    with inet.bound(socket) as sock, inet.bound(std) as sender:
        ask(sock)
        yield sock, sender


def test_recv_datagram_returns_all_metadata_over_ipv4(asked):
    sock, sender = asked
    sender.setsockopt(std.IPPROTO_IP, std.IP_TTL, 7)
    sender.setsockopt(std.IPPROTO_IP, std.IP_TOS, 0xB9)
    before = time.time_ns()
    sender.sendto(b"payload", sock.getsockname())
    datagram = sock.recv_datagram()
    assert before <= datagram.timestamp_ns <= time.time_ns()
    assert (datagram.data, datagram.address) == (b"payload", sender.getsockname())
    assert (datagram.host, datagram.port) == sender.getsockname()
    assert (datagram.destination, datagram.interface) == ("127.0.0.1", LO)
    assert (datagram.ttl, datagram.tos, datagram.ecn) == (7, 0xB9, 1)
    assert (datagram.truncated, datagram.kernel_drops, len(datagram)) == (False, 0, 7)


def test_recv_datagram_returns_all_metadata_over_ipv6(inet6):
    with inet6.bound(socket) as sock, inet6.bound(std) as sender:
        ask(sock)
        sender.setsockopt(std.IPPROTO_IPV6, std.IPV6_UNICAST_HOPS, 9)
        sender.setsockopt(std.IPPROTO_IPV6, std.IPV6_TCLASS, 0x2A)
        before = time.time_ns()
        sender.sendto(b"payload", sock.getsockname())
        (datagram,) = sock.recv_datagrams()
        assert before <= datagram.timestamp_ns <= time.time_ns()
        assert (datagram.data, datagram.address) == (b"payload", sender.getsockname())
        assert (datagram.host, datagram.port) == sender.getsockname()[:2]
        assert (datagram.destination, datagram.interface) == ("::1", LO)
        assert (datagram.ttl, datagram.tos, datagram.ecn) == (9, 0x2A, 2)


@pytest.fixture
def dual(inet6):
    """Provide an IPv6 socket that accepts IPv4 too, and its port."""
    with inet6.open(socket) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", 0))
        yield sock, sock.getsockname()[1]


def test_dual_stack_socket_reports_an_ipv4_peer_by_its_plain_address(dual, inet):
    sock, port = dual
    ask(sock)
    with inet.bound(std) as sender:
        sender.setsockopt(std.IPPROTO_IP, std.IP_TTL, 7)
        sender.setsockopt(std.IPPROTO_IP, std.IP_TOS, 0x2A)
        sender.sendto(b"x", ("127.0.0.2", port))
        datagram = sock.recv_datagram()
        assert datagram.address == ("::ffff:127.0.0.1", sender.getsockname()[1], 0, 0)
        assert (datagram.host, datagram.port) == sender.getsockname()
        assert (datagram.destination, datagram.interface) == ("127.0.0.2", LO)
        assert (datagram.ttl, datagram.tos, datagram.ecn) == (7, 0x2A, 2)
        # The plain address can be sent to.
        assert sock.send_many([b"y"], (datagram.host, datagram.port)) == 1
        assert sock.send_many([(b"z", (datagram.host, datagram.port))]) == 1
        assert [sender.recv(10), sender.recv(10)] == [b"y", b"z"]


def test_dual_stack_socket_tells_peers_of_both_families_apart(dual, inet, inet6):
    sock, port = dual
    ask(sock)
    with inet.bound(std) as four, inet6.bound(std) as six:
        four.sendto(b"4", ("127.0.0.1", port))
        six.sendto(b"6", ("::1", port))
        four.sendto(b"44", ("127.0.0.3", port))
        datagrams = sock.recv_datagrams()
        assert [(item.data, item.host, item.destination) for item in datagrams] == [
            (b"4", "127.0.0.1", "127.0.0.1"),
            (b"6", "::1", "::1"),
            (b"44", "127.0.0.1", "127.0.0.3"),
        ]


@pytest.mark.parametrize("asked_for", ["127.0.0.1", "127.0.0.2", "127.1.2.3"])
def test_destination_is_the_address_that_the_peer_sent_to(inet, asked_for):
    with inet.open(socket) as sock, inet.open(std) as sender:
        sock.bind(("0.0.0.0", 0))  # noqa: S104 - the wildcard address is tested
        ask(sock)
        sender.sendto(b"x", (asked_for, sock.getsockname()[1]))
        assert sock.recv_datagram().destination == asked_for


def test_af_unix_datagram_has_only_payload_and_sender(unix):
    with unix.bound(socket) as sock, unix.bound(std) as named, unix.open(std) as unnamed:
        named.sendto(b"a", sock.getsockname())
        unnamed.sendto(b"b", sock.getsockname())
        first, second = sock.recv_datagrams()
        assert (first.data, first.address) == (b"a", named.getsockname())
        assert (second.data, second.address) == (b"b", None)
        for name in (*METADATA, "host", "port"):
            assert getattr(first, name) is None
        assert (first.truncated, first.kernel_drops) == (False, 0)


def test_datagrams_queued_before_metadata_was_requested_still_arrive(inet):
    with inet.bound(socket) as sock:
        sock.sendto(b"before", sock.getsockname())
        datagram = sock.recv_datagram()
        assert (datagram.data, datagram.address) == (b"before", sock.getsockname())


def test_each_datagram_of_a_run_has_its_metadata(asked):
    sock, sender = asked
    sock.gro = True
    sender.setsockopt(std.IPPROTO_IP, std.IP_TTL, 5)
    send_run(sender, sock.getsockname(), b"".join(numbered(6)), 8)
    datagrams = [*sock.recv_datagrams(4), sock.recv_datagram()]
    assert [item.data for item in datagrams] == numbered(5)
    assert {(item.ttl, item.destination, item.interface) for item in datagrams} == {
        (5, "127.0.0.1", LO)
    }
    assert len({item.timestamp_ns for item in datagrams}) == 1
    # Datagrams taken by another receive method lose their metadata.
    assert sock.recvmsg(100, 1000)[0] == numbered(6)[5]


@pytest.mark.parametrize("option", OF_IPV4)
def test_plain_receives_do_not_request_metadata(inet, option):
    with inet.bound(socket) as sock, inet.bound(socket) as other:
        ask(other)
        sock.sendto(b"x", sock.getsockname())
        sock.recv_many()
        assert sock.getsockopt(*option) == 0
        assert other.getsockopt(*option) == 1


@pytest.mark.parametrize("option", OF_IPV4 + OF_IPV6)
@pytest.mark.parametrize("value", [0, 1])
def test_option_that_was_set_before_is_unchanged(inet6, option, value):
    with inet6.bound(socket) as sock:
        sock.setsockopt(*option, value)
        ask(sock)
        assert sock.getsockopt(*option) == value
        others = [other for other in OF_IPV4 + OF_IPV6 if other != option]
        assert {sock.getsockopt(*other) for other in others} == {1}


def test_metadata_that_the_user_disabled_is_none(inet):
    with inet.bound(socket) as sock:
        for option in OF_IPV4:
            sock.setsockopt(*option, 0)
        ask(sock)
        sock.sendto(b"x", sock.getsockname())
        datagram = sock.recv_datagram()
        assert [getattr(datagram, name) for name in METADATA] == [None] * 6
        assert (datagram.data, datagram.address) == (b"x", sock.getsockname())


@pytest.mark.usefixtures("stamped")
@pytest.mark.parametrize("name", ["SO_TIMESTAMP", "SO_TIMESTAMPING"])
def test_timestamp_of_another_kind_is_returned_and_stays_enabled(inet, name):
    option = getattr(socket, name)
    software = 0x8 | 0x10  # SOF_TIMESTAMPING_RX_SOFTWARE, SOF_TIMESTAMPING_SOFTWARE
    with inet.bound(socket) as sock:
        value = 1 if name == "SO_TIMESTAMP" else software
        sock.setsockopt(socket.SOL_SOCKET, option, value)
        ask(sock)
        before = time.time_ns()
        sock.sendto(b"x", sock.getsockname())
        stamp = sock.recv_datagram().timestamp_ns
        # Truncated to microseconds.
        assert before - 1000 < stamp <= time.time_ns()
        assert sock.getsockopt(socket.SOL_SOCKET, option) == value
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TIMESTAMPNS) == 0


def test_option_set_through_the_descriptor_is_unchanged(inet):
    with inet.bound(std) as plain:
        plain.setsockopt(std.SOL_SOCKET, socket.SO_TIMESTAMP, 1)
        with socket.socket(fileno=plain.detach()) as sock:
            sock.settimeout(DEADLINE)
            sock.sendto(b"x", sock.getsockname())
            assert sock.recv_datagram().timestamp_ns is not None
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TIMESTAMP) == 1


def test_recvmsg_still_returns_control_messages_that_the_user_enabled(inet):
    with inet.bound(socket) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTTL, 1)
        sock.sendto(b"x", sock.getsockname())
        _, ancillary, _, _ = sock.recvmsg(10, 1000)
        ttl = struct.pack("i", sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL))
        assert ancillary == [(socket.IPPROTO_IP, socket.IP_TTL, ttl)]


def test_kernel_drops_are_reported_with_the_next_datagram(asked):
    sock, sender = asked
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(500):
        sender.sendto(bytes(100), sock.getsockname())
    received = len(payloads(sock))
    sender.sendto(b"behind", sock.getsockname())
    datagram = sock.recv_datagram()
    assert datagram.data == b"behind"
    assert 0 < datagram.kernel_drops == 500 - received == sock.stats().kernel_drops


def test_datagram_cannot_be_made_or_changed(asked):
    sock, sender = asked
    sender.sendto(b"data", sock.getsockname())
    datagram = sock.recv_datagram()
    with pytest.raises(TypeError):
        type(datagram)()
    for name in ("data", "address", "truncated", "host", *METADATA):
        with pytest.raises(AttributeError):
            setattr(datagram, name, None)
    here, there = sender.getsockname(), sock.getsockname()[0]
    assert repr(datagram) == f"<tomada.Datagram of 4 bytes from {here} to {there}>"


def test_datagram_outlives_its_socket(inet):
    with inet.bound(socket) as sock:
        ask(sock)
        sock.sendto(b"data", sock.getsockname())
        datagram = sock.recv_datagram()
    del sock
    assert (datagram.data, datagram.destination) == (b"data", "127.0.0.1")
    with pytest.raises(OSError, match=CLOSED):
        datagram.reply(b"too late")


@pytest.mark.parametrize("most", [0, -1])
def test_recv_datagrams_maximum_is_at_least_one(inet, most):
    with inet.bound(socket) as sock, pytest.raises(ValueError, match="max_datagrams"):
        sock.recv_datagrams(most)


@pytest.mark.parametrize("flag", ["MSG_PEEK", "MSG_ERRQUEUE"])
def test_recv_datagram_rejects_flags_that_it_does_not_support(inet, flag):
    with inet.bound(socket) as sock:
        for receive in (sock.recv_datagram, functools.partial(sock.recv_datagrams, 5)):
            with pytest.raises(ValueError):  # noqa: PT011 - each flag has its own message
                receive(flags=getattr(socket, flag))


@pytest.mark.parametrize("name", ["recv_datagram", "recv_datagrams"])
def test_recv_datagram_waits_like_other_receives(kind, handler, name):
    calls = handler()
    with kind.bound(socket) as sock:
        receive = getattr(sock, name)
        sock.settimeout(0.02)
        with pytest.raises(TimeoutError):
            receive()
        sock.settimeout(None)
        with pytest.raises(BlockingIOError):
            receive(flags=socket.MSG_DONTWAIT)

        def disturb():
            interrupt()
            eventually(lambda: calls)
            sock.sendto(b"x", sock.getsockname())

        disturbing = Call(disturb)
        received = receive()
        disturbing.result()
        assert (received if name == "recv_datagram" else received[0]).data == b"x"
        waiting = Call(receive).until_it_waits()
        sock.close()
        with pytest.raises(OSError, match=CLOSED):
            waiting.result()


def test_exception_of_a_signal_handler_loses_no_datagram(inet, handler):
    def refuse():
        raise RefusalError("no", "because")

    handler(refuse)
    with inet.bound(socket) as sock:
        disturbing = Call(interrupt)
        with pytest.raises(RefusalError):
            sock.recv_datagrams()
        disturbing.result()
        sock.sendto(b"still here", sock.getsockname())
        assert sock.recv_datagram().data == b"still here"
