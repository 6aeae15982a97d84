"""send_datagram and send_datagrams: metadata that a datagram is sent with."""

import errno
import socket as std
import struct
import time

import pytest

import links
import skips
from support import DEADLINE
from tomada import Datagram, socket
from traffic import LO

FIELDS = ("ttl", "tos", "ecn", "source", "interface", "transmit_time_ns")
NO_INTERFACE = 0x7FFFFFFF


class Reader:
    """A plain socket that reports how each datagram arrived."""

    def __init__(self, family):
        six = family == std.AF_INET6
        self.sock = std.socket(family, std.SOCK_DGRAM)
        self.sock.settimeout(DEADLINE)
        if six:
            self.sock.setsockopt(std.IPPROTO_IPV6, std.IPV6_RECVHOPLIMIT, 1)
            self.sock.setsockopt(std.IPPROTO_IPV6, std.IPV6_RECVTCLASS, 1)
            self.sock.setsockopt(std.IPPROTO_IPV6, std.IPV6_RECVPKTINFO, 1)
        else:
            self.sock.setsockopt(std.IPPROTO_IP, socket.IP_RECVTTL, 1)
            self.sock.setsockopt(std.IPPROTO_IP, std.IP_RECVTOS, 1)
            self.sock.setsockopt(std.IPPROTO_IP, socket.IP_PKTINFO, 1)
        self.sock.bind(("::1" if six else "127.0.0.1", 0))
        self.address = self.sock.getsockname()

    def take(self):
        """Return the payload, sender, TTL, TOS and interface of the next datagram."""
        data, control, _, sender = self.sock.recvmsg(1000, 1000)
        found = {(level, kind): value for level, kind, value in control}
        if self.sock.family == std.AF_INET6:
            (ttl,) = struct.unpack("i", found[std.IPPROTO_IPV6, std.IPV6_HOPLIMIT])
            (tos,) = struct.unpack("i", found[std.IPPROTO_IPV6, std.IPV6_TCLASS])
            (interface,) = struct.unpack("16xI", found[std.IPPROTO_IPV6, std.IPV6_PKTINFO])
        else:
            (ttl,) = struct.unpack("i", found[std.IPPROTO_IP, std.IP_TTL])
            (tos,) = struct.unpack("B", found[std.IPPROTO_IP, std.IP_TOS])
            (interface,) = struct.unpack("I8x", found[std.IPPROTO_IP, socket.IP_PKTINFO])
        return data, sender[0], ttl, tos, interface


@pytest.fixture
def reader4(inet):
    reader = Reader(inet.family)
    with reader.sock:
        yield reader


@pytest.fixture
def reader6(inet6):
    reader = Reader(inet6.family)
    with reader.sock:
        yield reader


@pytest.fixture
def sender(inet):
    with inet.open(socket) as sock:
        yield sock


@pytest.fixture
def sender6(inet6):
    with inet6.open(socket) as sock:
        yield sock


@pytest.fixture
def pairs(sender, sender6, reader4, reader6):
    """Provide a sender and a reader of each family."""
    return (sender, reader4), (sender6, reader6)


SEND = {
    "send_datagram": lambda sock, datagram: sock.send_datagram(datagram),
    "send_datagrams": lambda sock, datagram: sock.send_datagrams([datagram]),
}
either_way = pytest.mark.parametrize("send", SEND.values(), ids=SEND)


@either_way
def test_send_datagram_sets_metadata_over_ipv4(sender, reader4, send):
    datagram = Datagram(
        b"x", reader4.address, ttl=7, tos=0xB8, ecn=1, source="127.0.0.2", interface="lo"
    )
    send(sender, datagram)
    assert reader4.take() == (b"x", "127.0.0.2", 7, 0xB9, LO)
    # The socket's own options are unchanged.
    sender.sendto(b"y", reader4.address)
    assert reader4.take() == (b"y", "127.0.0.1", 64, 0, LO)


@either_way
def test_send_datagram_sets_metadata_over_ipv6(sender6, reader6, send):
    send(sender6, Datagram(b"x", reader6.address, ttl=255, tos=0x2A, source="::1", interface=LO))
    assert reader6.take() == (b"x", "::1", 255, 0x2A, LO)


@either_way
@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1"])
def test_send_datagram_sets_metadata_to_an_ipv4_peer_of_an_ipv6_socket(
    sender6, reader4, send, address
):
    to = (address, reader4.address[1])
    send(sender6, Datagram(b"x", to, ttl=9, tos=4, source="127.0.0.3", interface=LO))
    assert reader4.take() == (b"x", "127.0.0.3", 9, 4, LO)


@either_way
def test_send_datagram_to_a_connected_peer(sender, sender6, reader4, reader6, send):
    cases = [
        (sender, reader4, reader4.address),
        (sender6, reader6, reader6.address),
        (socket.socket(std.AF_INET6, std.SOCK_DGRAM), reader4, None),
    ]
    for sock, reader, to in cases:
        with sock:
            sock.connect(to or ("::ffff:127.0.0.1", reader.address[1]))
            send(sock, Datagram(b"x", ttl=3, ecn=2))
            assert reader.take()[2:] == (3, 2, LO)


@either_way
@pytest.mark.parametrize("only", [{"ttl": 5}, {"tos": 8}, {"ecn": 3}, {"interface": LO}, {}])
def test_fields_that_are_none_follow_the_socket(pairs, send, only):
    for sock, reader in pairs:
        send(sock, Datagram(b"x", reader.address, **only))
        _, _, ttl, tos, _ = reader.take()
        assert ttl == only.get("ttl", 64)
        assert tos == only.get("tos", only.get("ecn", 0))


def test_received_datagram_can_be_sent_back(inet, inet6):
    """All of its metadata: it arrives as it has come, from where it has gone."""
    for kind, ttl, local in ((inet, 11, "127.0.0.5"), (inet6, 12, "::1")):
        any_address = "::" if kind.family == std.AF_INET6 else "0.0.0.0"  # noqa: S104
        with kind.open(socket) as server, kind.open(socket) as client:
            server.bind((any_address, 0))
            for sock in (server, client):
                sock.setblocking(False)
                with pytest.raises(BlockingIOError):
                    sock.recv_datagram()
                sock.settimeout(DEADLINE)
            client.connect((local, server.getsockname()[1]))
            client.send_datagram(Datagram(b"question", ttl=ttl, tos=0xBA))
            received = server.recv_datagram()
            assert (received.source, received.interface) == (local, LO)
            assert server.send_datagrams([received, received.replace(data=b"answer", ttl=64)]) == 2
            (back, answer) = [client.recv_datagram() for _ in range(2)]
            assert (back.data, back.ttl, back.tos) == (b"question", ttl, 0xBA)
            assert (answer.data, answer.ttl, answer.tos) == (b"answer", 64, 0xBA)
            assert back.host == answer.host == local


def test_received_datagram_can_be_sent_by_a_socket_of_another_family(inet, sender6, reader4):
    with inet.bound(socket) as sock:
        sock.sendto(b"x", sock.getsockname())
        sock.recv_datagram()
        sock.sendto(b"x", sock.getsockname())
        received = sock.recv_datagram()
    sender6.send_datagram(received.replace(address=reader4.address))
    assert reader4.take()[:2] == (b"x", "127.0.0.1")


def test_send_datagrams_sends_runs_that_end_where_metadata_differs(sender, reader4):
    """Each datagram keeps its own metadata, though equal ones are sent in one call."""
    expected = [(b"%03d" % number, 1 + number // 10, number // 7) for number in range(100)]
    datagrams = [Datagram(data, reader4.address, ttl=ttl, tos=tos) for data, ttl, tos in expected]
    assert sender.send_datagrams(iter(datagrams)) == len(expected)
    taken = [reader4.take() for _ in expected]
    assert [(data, ttl, tos) for data, _, ttl, tos, _ in taken] == expected
    assert sender.stats().sent == len(expected)


def test_send_datagrams_to_many_peers(sender, inet):
    readers = [Reader(inet.family) for _ in range(5)]
    datagrams = [
        Datagram(b"%d" % number, readers[number % 5].address, ttl=1 + number)
        for number in range(40)
    ]
    assert sender.send_datagrams(datagrams) == 40
    for number in range(40):
        assert readers[number % 5].take()[::2][:2] == (b"%d" % number, 1 + number)
    for reader in readers:
        reader.sock.close()


def test_datagram_is_what_was_given():
    time_ns = time.monotonic_ns()
    datagram = Datagram(
        bytearray(b"data"),
        ("192.0.2.1", 53),
        ttl=1,
        tos=0xFC,
        ecn=3,
        source="::ffff:192.0.2.7",
        interface="lo",
        transmit_time_ns=time_ns,
    )
    assert (datagram.data, datagram.address, len(datagram)) == (b"data", ("192.0.2.1", 53), 4)
    assert (datagram.host, datagram.port) == ("192.0.2.1", 53)
    found = [getattr(datagram, name) for name in FIELDS]
    assert found == [1, 0xFF, 3, "192.0.2.7", LO, time_ns]
    assert (datagram.destination, datagram.timestamp_ns, datagram.truncated) == (None, None, False)
    assert repr(datagram) == "<tomada.Datagram of 4 bytes to ('192.0.2.1', 53)>"
    bare = datagram.replace(
        address=None, ttl=None, tos=None, source=None, interface=None, transmit_time_ns=None
    )
    assert [getattr(bare, name) for name in FIELDS] == [None] * len(FIELDS)
    assert (bare.data, bare.address, bare.host, bare.port) == (b"data", None, None, None)
    assert datagram.replace(data=b"").data == b""
    assert datagram.replace(ecn=0).tos == 0xFC
    with pytest.raises(ValueError, match="cannot reply: this datagram was not received"):
        datagram.reply(b"x")


WRONG = {
    "ttl of 0": ({"ttl": 0}, ValueError, "ttl must be 1 to 255, not 0"),
    "large ttl": ({"ttl": 256}, ValueError, "ttl must be 1 to 255, not 256"),
    "negative ttl": ({"ttl": -1}, ValueError, "ttl must be 1 to 255, not -1"),
    "ttl of text": ({"ttl": "64"}, TypeError, "ttl must be an int, not str"),
    "large tos": ({"tos": 256}, ValueError, "tos must be 0 to 255, not 256"),
    "large ecn": ({"ecn": 4}, ValueError, "ecn must be 0 to 3, not 4"),
    "host name": ({"source": "localhost"}, ValueError, "source must be a numeric IP address"),
    "any source": ({"source": "0.0.0.0"}, ValueError, "an address of this machine, not 0.0.0.0"),  # noqa: S104
    "group": ({"source": "ff02::1"}, ValueError, "an address of this machine, not ff02::1"),
    "source of bytes": ({"source": b"::1"}, TypeError, "source must be a str, not bytes"),
    "unknown interface": ({"interface": "nosuch"}, OSError, 'no interface "nosuch"'),
    "early": ({"transmit_time_ns": -1}, ValueError, "transmit_time_ns must be 0 to "),
    "late": ({"transmit_time_ns": 1 << 64}, ValueError, "transmit_time_ns must be 0 to "),
}


@pytest.mark.parametrize(("fields", "error", "text"), WRONG.values(), ids=WRONG)
def test_wrong_metadata_is_refused(fields, error, text):
    with pytest.raises(error, match=text):
        Datagram(b"x", **fields)
    with pytest.raises(error, match=text):
        Datagram(b"x").replace(**fields)


def failure(sock, datagram):
    """Return the errors with which both methods fail."""
    with pytest.raises(OSError, match=r"^\[Errno") as alone:
        sock.send_datagram(datagram)
    with pytest.raises(OSError, match=r"^\[Errno") as among:
        sock.send_datagrams([datagram])
    assert (among.value.index, among.value.sent) == (0, 0)
    ((index, listed),) = sock.send_datagrams([datagram], errors="continue")
    assert (index, str(listed)) == (0, str(among.value))
    assert alone.value.errno == among.value.errno
    return alone.value.errno, str(alone.value), str(among.value)


def test_source_that_is_not_local_is_named(sender, sender6, reader4, reader6):
    for sock, reader, source in ((sender, reader4, "192.0.2.1"), (sender6, reader6, "2001:db8::1")):
        number, *texts = failure(sock, Datagram(b"x", reader.address, source=source))
        # It depends on the family and the kernel.
        assert number in {errno.EINVAL, errno.ENETUNREACH, errno.EADDRNOTAVAIL}
        assert all(
            f"the source {source} must be an address of this machine" in text for text in texts
        )
        assert sock.stats().sent == 0


def test_interface_that_does_not_exist_is_named(sender, sender6, reader4, reader6):
    for sock, reader in ((sender, reader4), (sender6, reader6)):
        number, *texts = failure(sock, Datagram(b"x", reader.address, interface=NO_INTERFACE))
        assert number == errno.ENODEV
        assert all(f"this machine has no interface {NO_INTERFACE}" in text for text in texts)


def test_source_of_another_family_is_refused(sender6, reader4, reader6):
    text = "the source .* and the destination belong to different families"
    for reader, source in ((reader4, "::1"), (reader6, "127.0.0.1")):
        datagram = Datagram(b"x", (*reader.address[:2],), source=source)
        with pytest.raises(ValueError, match=text):
            sender6.send_datagram(datagram)
        with pytest.raises(ValueError, match=text) as error:
            sender6.send_datagrams([datagram])
        assert (error.value.index, error.value.sent) == (0, 0)


def test_af_unix_datagrams_have_no_metadata(unix):
    with unix.bound(socket) as sock:
        sock.send_datagram(Datagram(b"x", sock.getsockname()))
        received = sock.recv_datagram()
        assert received.data == b"x"
        assert sock.send_datagrams([received]) == 1
        with pytest.raises(OSError, match="a datagram with metadata needs a socket of AF_INET"):
            sock.send_datagram(received.replace(ttl=3))


def test_send_datagrams_refuses_other_objects(sender, reader4):
    good = Datagram(b"x", reader4.address)
    with pytest.raises(TypeError, match=r"takes Datagram objects, not bytes \(datagram 1") as error:
        sender.send_datagrams([good, b"y"])
    assert (error.value.index, error.value.sent) == (1, 1)
    assert reader4.take()[0] == b"x"
    with pytest.raises(TypeError):
        sender.send_datagram(b"x")
    with pytest.raises(ValueError, match="errors must be"):
        sender.send_datagrams([good], errors="ignore")
    assert sender.send_datagrams([]) == 0


def test_transmit_times_are_of_the_monotonic_clock(sender, reader4):
    """Without a queueing discipline for them, the kernel sends at once."""
    later = time.monotonic_ns() + 3_600_000_000_000
    sender.send_datagram(Datagram(b"x", reader4.address, transmit_time_ns=later))
    assert reader4.take()[0] == b"x"
    option = sender.getsockopt(socket.SOL_SOCKET, socket.SO_TXTIME, 8)
    assert struct.unpack("iI", option) == (time.CLOCK_MONOTONIC, 0)


def test_transmit_times_leave_the_users_clock(sender, reader4):
    option = struct.pack("iI", time.CLOCK_MONOTONIC, 2)  # SOF_TXTIME_REPORT_ERRORS
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_TXTIME, option)
    sender.send_datagrams([Datagram(b"x", reader4.address, transmit_time_ns=1)])
    assert reader4.take()[0] == b"x"
    assert sender.getsockopt(socket.SOL_SOCKET, socket.SO_TXTIME, 8) == option


@pytest.fixture
def paced():
    """Provide a network whose loopback device has fair queueing, which knows transmit times."""
    skips.program("tc")
    if reason := links.why_not():
        pytest.skip(reason)
    namespace = links.Namespace()
    try:
        if not skips.has_fair_queueing():
            pytest.skip("this kernel has no fair queueing")
        namespace.command("tc", "qdisc", "add", "dev", "lo", "root", "fq")
        yield namespace
    finally:
        namespace.close()


def test_datagram_leaves_at_its_transmit_time(paced):
    with (
        paced.bound(std, ("127.0.0.1", 0)) as receiver,
        paced.open(socket) as sock,
    ):
        to = receiver.getsockname()
        start = time.monotonic_ns()
        times = [start + after * 1_000_000 for after in (300, 100, 200)]
        datagrams = [Datagram(b"%d" % at, to, transmit_time_ns=at) for at in times]
        assert sock.send_datagrams(datagrams) == len(times)
        for at in sorted(times):
            data = receiver.recv(100)
            assert int(data) == at
            assert time.monotonic_ns() >= at


def test_pacing_limits_the_rate(paced):
    with (
        paced.bound(std, ("127.0.0.1", 0)) as receiver,
        paced.open(socket) as sock,
    ):
        sock.pacing = 200_000
        sock.connect(receiver.getsockname())
        start = time.monotonic()
        for _ in range(60):
            sock.send(bytes(1000))
        for _ in range(60):
            receiver.recv(2000)
        # 60,000 bytes; the kernel grants a socket a burst first.
        assert time.monotonic() - start > 0.1


def test_pacing_is_the_kernels_option(kind):
    with kind.open(socket) as sock:
        assert sock.pacing is None
        sock.pacing = 1_000_000
        assert sock.pacing == 1_000_000
        rate = sock.getsockopt(socket.SOL_SOCKET, socket.SO_MAX_PACING_RATE, 8)
        assert rate == struct.pack("Q", 1_000_000)
        sock.pacing = 10_000_000_000  # more than 32 bits
        assert sock.pacing == 10_000_000_000
        sock.pacing = None
        assert sock.pacing is None
        for wrong in (0, -1, 1.5, "fast", 1 << 64):
            with pytest.raises(ValueError, match="pacing must be at least 1 byte per second"):
                sock.pacing = wrong
