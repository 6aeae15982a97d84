"""join_group and leave_group: any source and one, by name, index and address, in both families."""

import errno
import socket as std
from pathlib import Path

import pytest

from support import CLOSED, DEADLINE
from tomada import socket
from traffic import LO

GROUP, OTHER = "239.77.0.1", "239.77.0.2"
GROUP6 = "ff15::77"


@pytest.fixture
def member(inet):
    """Provide a socket bound to a port on every address, and the port."""
    with inet.open(socket) as sock:
        sock.bind(("0.0.0.0", 0))  # noqa: S104 - groups are addresses too
        yield sock, sock.getsockname()[1]


@pytest.fixture
def speaker(inet):
    """Provide a plain socket that sends to groups over the loopback device."""
    with inet.bound(std) as sock:
        interface = std.inet_aton("127.0.0.1")
        sock.setsockopt(std.IPPROTO_IP, std.IP_MULTICAST_IF, interface)
        yield sock


def heard(sock):
    """Return the datagrams that a socket received: loopback delivers before a send returns."""
    sock.setblocking(False)
    try:
        return [data for data, _ in sock.recv_many()]
    except BlockingIOError:
        return []
    finally:
        sock.settimeout(DEADLINE)


INTERFACES = ["lo", LO, "127.0.0.1"]


@pytest.mark.parametrize("interface", INTERFACES, ids=["name", "index", "address"])
def test_join_group_receives_the_group(member, speaker, interface):
    sock, port = member
    sock.join_group(GROUP, interface)
    speaker.sendto(b"to the group", (GROUP, port))
    speaker.sendto(b"to another", (OTHER, port))
    assert heard(sock) == [b"to the group"]


@pytest.mark.parametrize("interface", INTERFACES, ids=["name", "index", "address"])
def test_leave_group_receives_nothing_more(member, speaker, interface):
    sock, port = member
    sock.join_group(GROUP, interface)
    sock.leave_group(GROUP, interface)
    speaker.sendto(b"x", (GROUP, port))
    assert heard(sock) == []
    sock.join_group(GROUP, interface=interface)
    speaker.sendto(b"y", (GROUP, port))
    assert heard(sock) == [b"y"]


def test_groups_joined_by_other_sockets_are_not_received(member, speaker, inet):
    sock, port = member
    with inet.open(std) as other:
        membership = std.inet_aton(OTHER) + std.inet_aton("127.0.0.1")
        other.setsockopt(std.IPPROTO_IP, std.IP_ADD_MEMBERSHIP, membership)
        speaker.sendto(b"before", (OTHER, port))
        assert heard(sock) == [b"before"]
        sock.join_group(GROUP, "lo")
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_ALL) == 0
        speaker.sendto(b"after", (OTHER, port))
        assert heard(sock) == []


@pytest.mark.parametrize("value", [0, 1])
def test_option_that_was_set_before_is_unchanged(member, value):
    sock, _ = member
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_ALL, value)
    sock.join_group(GROUP, "lo")
    assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_ALL) == value


def test_join_group_with_a_source_receives_only_from_it(member, speaker, inet):
    sock, port = member
    sock.join_group("232.77.0.1", "lo", source=speaker.getsockname()[0])
    with inet.open(std) as stranger:
        stranger.bind(("127.0.0.2", 0))
        interface = std.inet_aton("127.0.0.1")
        stranger.setsockopt(std.IPPROTO_IP, std.IP_MULTICAST_IF, interface)
        stranger.sendto(b"stranger", ("232.77.0.1", port))
        speaker.sendto(b"source", ("232.77.0.1", port))
        assert heard(sock) == [b"source"]
        sock.join_group("232.77.0.1", "lo", source="127.0.0.2")
        stranger.sendto(b"stranger", ("232.77.0.1", port))
        assert heard(sock) == [b"stranger"]
        sock.leave_group("232.77.0.1", "lo", source="127.0.0.1")
        speaker.sendto(b"source", ("232.77.0.1", port))
        assert heard(sock) == []


def test_datagram_to_a_group_has_it_as_destination_and_is_answered_from_the_interface(
    member, speaker
):
    sock, port = member
    sock.join_group(GROUP, "lo")
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv_datagrams()
    sock.settimeout(DEADLINE)
    speaker.sendto(b"question", (GROUP, port))
    datagram = sock.recv_datagram()
    assert (datagram.destination, datagram.interface) == (GROUP, LO)
    datagram.reply(b"answer")
    assert speaker.recvfrom(100) == (b"answer", ("127.0.0.1", port))


def test_send_many_to_a_group(member, inet):
    sock, port = member
    sock.join_group(GROUP, "127.0.0.1")
    with inet.bound(socket) as sender:
        interface = std.inet_aton("127.0.0.1")
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
        sender.send_many([b"same"] * 20, (GROUP, port))
        assert heard(sock) == [b"same"] * 20
        # Without a copy to this machine's own sockets.
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
        assert sender.send_many([b"same"] * 20, (GROUP, port)) == 20


def test_join_group_receives_an_ipv6_group(network):
    left, right = network.link()
    for interface in ("left", left.index("left")):
        with left.bound(socket, ("::", 0)) as sock, right.bound(std, ("fd77::2", 0)) as speaker:
            port = sock.getsockname()[1]
            speaker.setsockopt(std.IPPROTO_IPV6, std.IPV6_MULTICAST_IF, right.index("right"))
            left.run(sock.join_group, GROUP6, interface)
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_ALL) == 0
            speaker.sendto(b"to another", ("ff15::78", port))
            speaker.sendto(b"to the group", (GROUP6, port))
            datagram = sock.recv_datagram()
            assert (datagram.data, datagram.host) == (b"to the group", "fd77::2")
            left.run(sock.leave_group, GROUP6, interface)
            speaker.sendto(b"left", (GROUP6, port))
            speaker.sendto(b"behind", ("fd77::1", port))
            assert sock.recv(100) == b"behind"


def test_join_group_with_a_source_over_ipv6_receives_only_from_it(network):
    left, right = network.link()
    with (
        left.bound(socket, ("::", 0)) as sock,
        right.bound(std, ("fd77::2", 0)) as source,
        right.bound(std, ("fd77::22", 0)) as stranger,
    ):
        port = sock.getsockname()[1]
        left.run(sock.join_group, "ff35::77", "fd77::1", "fd77::2")
        for speaker in (stranger, source):
            speaker.setsockopt(std.IPPROTO_IPV6, std.IPV6_MULTICAST_IF, right.index("right"))
            speaker.sendto(speaker.getsockname()[0].encode(), ("ff35::77", port))
        assert sock.recv(100) == b"fd77::2"
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(100)


@pytest.mark.parametrize("way", ["name", "address", "routes"])
def test_join_group_is_per_interface(network, way):
    left, right = network.link()
    with left.bound(socket, ("0.0.0.0", 0)) as sock:  # noqa: S104 - groups are addresses too
        port = sock.getsockname()[1]
        if way == "routes":
            left.command("ip", "route", "add", "239.0.0.0/8", "dev", "left")
        left.run(sock.join_group, GROUP, {"name": "left", "address": "10.77.0.1"}.get(way))
        with left.bound(std, ("127.0.0.1", 0)) as own, right.bound(std, ("10.77.0.2", 0)) as other:
            interface = std.inet_aton("127.0.0.1")
            own.setsockopt(std.IPPROTO_IP, std.IP_MULTICAST_IF, interface)
            other.setsockopt(std.IPPROTO_IP, std.IP_MULTICAST_IF, std.inet_aton("10.77.0.2"))
            own.sendto(b"on another interface", (GROUP, port))
            other.sendto(b"on this one", (GROUP, port))
            assert sock.recv_many() == [(b"on this one", other.getsockname())]


def test_join_group_error_explains_the_limit(member):
    sock, _ = member
    most = int(Path("/proc/sys/net/ipv4/igmp_max_memberships").read_text())
    if most > 1000:
        pytest.skip("there is hardly a limit here")
    for number in range(most):
        sock.join_group(f"239.78.{number // 250}.{number % 250}", "lo")
    with pytest.raises(OSError, match=r"igmp_max_memberships") as caught:
        sock.join_group("239.79.0.1", "lo")
    assert caught.value.errno == errno.ENOBUFS
    assert "cannot join 239.79.0.1" in str(caught.value)
    sock.leave_group("239.78.0.0", "lo")
    sock.join_group("239.79.0.1", "lo")


@pytest.mark.parametrize(
    ("arguments", "number", "hint"),
    [
        (("239.77.0.1", "nosuch"), errno.ENODEV, 'no interface "nosuch"'),
        (("239.77.0.1", ""), errno.ENODEV, 'no interface ""'),
        (("239.77.0.1", "a\0b"), errno.ENODEV, "no interface"),
        (("239.77.0.1", "192.0.2.77"), errno.EADDRNOTAVAIL, 'no interface "192.0.2.77"'),
        (("239.77.0.1", 2**31 - 1), errno.ENODEV, "there is no such interface"),
        (("ff15::77", "lo"), errno.ENOPROTOOPT, "different address families"),
    ],
)
def test_join_group_error_explains_the_reason(member, arguments, number, hint):
    sock, _ = member
    with pytest.raises(OSError, match=hint) as caught:
        sock.join_group(*arguments)
    assert caught.value.errno == number


def test_join_group_twice_and_leave_group_twice_explain_the_error(member):
    sock, _ = member
    sock.join_group(GROUP, "lo")
    with pytest.raises(OSError, match="is already in the group") as caught:
        sock.join_group(GROUP, "lo")
    assert caught.value.errno == errno.EADDRINUSE
    sock.leave_group(GROUP, "lo")
    with pytest.raises(OSError, match="not in the group") as caught:
        sock.leave_group(GROUP, "lo")
    assert caught.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("127.0.0.1",), "127.0.0.1 is not a multicast group"),
        (("::1",), "::1 is not a multicast group"),
        (("group.example",), "group must be a numeric IP address"),
        (("",), "group must be a numeric IP address"),
        ((GROUP, "lo", "somebody"), "source must be a numeric IP address"),
        ((GROUP, "lo", "::1"), "different address families"),
    ],
)
def test_join_group_rejects_addresses_that_are_not_a_group(member, arguments, hint):
    sock, _ = member
    for change in (sock.join_group, sock.leave_group):
        with pytest.raises(ValueError, match=hint):
            change(*arguments)


@pytest.mark.parametrize("interface", [1.5, b"lo", ("lo",)])
def test_join_group_rejects_invalid_interfaces(member, interface):
    sock, _ = member
    with pytest.raises(TypeError, match="interface must be"):
        sock.join_group(GROUP, interface)


@pytest.mark.parametrize("interface", [-1, 2**32, 2**70])
def test_join_group_rejects_an_index_out_of_range(member, interface):
    sock, _ = member
    with pytest.raises((ValueError, OverflowError)):
        sock.join_group(GROUP, interface)


def test_join_group_on_a_closed_socket(inet):
    sock = inet.bound(socket)
    sock.close()
    for change in (sock.join_group, sock.leave_group):
        with pytest.raises(OSError, match=CLOSED):
            change(GROUP, "lo")
