"""Hosts by name, number and scope, parsed and formatted like the standard module."""

import errno
import socket as std
from pathlib import Path

import pytest

from tomada import socket


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        b"localhost",
        bytearray(b"127.0.0.1"),
        "127.1",
        "0x7f.1",
        "2130706433",
    ],
    ids=repr,
)
def test_every_notation_of_an_ipv4_host_reaches_it(inet, peer, host):
    other = peer(inet)
    with inet.bound(socket) as sock:
        sock.sendto(b"to you", (host, other.address[1]))
        sock.connect((host, other.address[1]))
        assert sock.getpeername() == other.address
        assert other.do("collect", count=1) == ((b"to you", sock.getsockname()),)


@pytest.mark.parametrize("host", ["::1", "0::1", "0:0:0:0:0:0:0:1", "::0.0.0.1", b"::1"], ids=repr)
def test_every_notation_of_an_ipv6_host_reaches_it(inet6, peer, host):
    other = peer(inet6)
    with inet6.bound(socket) as sock:
        sock.sendto(b"to you", (host, other.address[1]))
        sock.connect((host, *other.address[1:]))
        assert sock.getpeername() == other.address
        assert other.do("collect", count=1) == ((b"to you", sock.getsockname()),)


def test_empty_host_is_every_address(inet, peer):
    other = peer(inet)
    with inet.open(socket) as sock:
        sock.bind(("", 0))
        host, port = sock.getsockname()
        assert host == "0.0.0.0"  # noqa: S104 - this is tested
        other.do("send", datagrams=[b"x"], to=("127.0.0.9", port))
        assert sock.recvfrom(10) == (b"x", other.address)


def test_empty_ipv6_host_is_every_address(inet6, peer):
    other = peer(inet6)
    with inet6.open(socket) as sock:
        sock.bind(("", 0))
        host, port, flow, scope = sock.getsockname()
        assert (host, flow, scope) == ("::", 0, 0)
        other.do("send", datagrams=[b"x"], to=("::1", port))
        assert sock.recvfrom(10) == (b"x", other.address)


@pytest.mark.parametrize("host", ["<broadcast>", "255.255.255.255", b"<broadcast>"], ids=repr)
def test_broadcast_requires_so_broadcast(inet, host):
    with inet.open(socket) as sock:
        for send in (sock.connect, lambda to: sock.sendto(b"", to)):
            with pytest.raises(PermissionError) as caught:
                send((host, 9))
            assert caught.value.errno == errno.EACCES


def test_broadcast_address_has_a_name(inet):
    with inet.open(socket) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        try:
            sock.connect(("<broadcast>", 9))
        except OSError as error:
            # Without a route, the error shows that the name was understood.
            assert error.errno == errno.ENETUNREACH  # noqa: PT017
        else:
            assert sock.getpeername() == ("255.255.255.255", 9)


def test_dual_stack_socket_reports_ipv4_peers_as_ipv6(inet, inet6, peer):
    other = peer(inet)
    with inet6.open(socket) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", 0))
        port = sock.getsockname()[1]
        other.do("send", datagrams=[b"x"], to=("127.0.0.1", port))
        data, address = sock.recvfrom(10)
        assert (data, address) == (b"x", ("::ffff:127.0.0.1", other.address[1], 0, 0))
        sock.sendto(b"back", address)
        assert other.do("collect", count=1) == ((b"back", ("127.0.0.1", port)),)


TENTATIVE = 0x40


@pytest.fixture
def scoped(inet6):
    """Find a link-local address and the interface of its scope."""
    for line in Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines():
        digits, index, _, _, flags, interface = line.split()
        if digits.startswith("fe80") and not int(flags, 16) & TENTATIVE:
            host = socket.inet_ntop(inet6.family, bytes.fromhex(digits))
            return host, interface, int(index, 16)
    return pytest.skip("this machine has no link-local address")


@pytest.mark.parametrize(
    "spelling",
    [
        lambda host, interface, _: (f"{host}%{interface}", 0),
        lambda host, _, index: (f"{host}%{index}", 0, 0),
        lambda host, _, index: (host, 0, 0, index),
        lambda host, _, index: (f"{host}%lo", 0, 0, index),
    ],
    ids=["name", "number", "tuple", "tuple over name"],
)
def test_scope_survives_the_round_trip(inet6, scoped, spelling):
    host, _, index = scoped
    with inet6.open(socket) as sock, inet6.open(std) as other:
        sock.bind(spelling(*scoped))
        assert sock.getsockname()[2:] == (0, index)
        other.bind((host, 0, 0, index))
        other.sendto(b"x", sock.getsockname())
        assert sock.recvfrom(10) == (b"x", other.getsockname())
        sock.sendto(b"y", spelling(*scoped)[:1] + other.getsockname()[1:])
        assert other.recvfrom(10) == (b"y", sock.getsockname())


def test_loopback_interface_can_be_a_scope(inet6, peer):
    other = peer(inet6)
    with inet6.bound(socket) as sock:
        index = socket.if_nametoindex("lo")
        for to in ((f"::1%{index}", other.address[1]), (*other.address[:3], index)):
            sock.sendto(b"x", to)
            assert other.do("collect", count=1) == ((b"x", sock.getsockname()),)


def test_flow_information_is_accepted(inet6, peer):
    other = peer(inet6)
    with inet6.bound(socket) as sock:
        sock.sendto(b"x", ("::1", other.address[1], 0, 0))
        sock.sendto(b"y", ("::1", other.address[1], 0))
        me = sock.getsockname()
        assert other.do("collect", count=2) == ((b"x", me), (b"y", me))


def test_empty_unix_name_is_chosen_by_the_kernel(unix, peer):
    other = peer(unix)
    with unix.open(socket) as sock:
        sock.bind("")
        name = sock.getsockname()
        # unix(7), "autobind": five hexadecimal digits in the abstract namespace.
        assert (len(name), name[:1]) == (6, b"\0")
        other.do("send", datagrams=[b"x"], to=name)
        assert sock.recvfrom(10) == (b"x", other.address)


@pytest.mark.parametrize(
    "name",
    ["a.sock", "ã.sock", "\udcff\udcfe", b"bytes.sock", bytearray(b"array.sock")],
    ids=ascii,
)
def test_unix_path_may_be_str_or_any_bytes_like_object(unix, tmp_path, monkeypatch, name):
    # Relative, so that the length of the folder's name does not matter.
    monkeypatch.chdir(tmp_path)
    with unix.open(socket) as sock, unix.bound(std) as other:
        sock.bind(name)
        other.sendto(b"x", sock.getsockname())
        assert sock.recvfrom(10) == (b"x", other.getsockname())
        with unix.open(std) as same:
            same.bind(
                b"other " + bytes(name) if isinstance(name, bytes | bytearray) else "o" + name
            )
            expected = same.getsockname()
        assert type(sock.getsockname()) is type(expected)


def test_abstract_name_may_contain_any_byte(unix):
    with unix.open(socket) as sock, unix.open(socket) as other:
        name = b"\0tomada \0\xff" + sock.fileno().to_bytes(4, "big")
        sock.bind(name)
        assert sock.getsockname() == name
        other.bind(bytearray(name + b"2"))
        other.sendto(b"x", memoryview(name))
        assert sock.recvfrom(10) == (b"x", name + b"2")
