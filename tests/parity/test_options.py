"""Options and timeouts, valid and invalid: the same results as with the standard class."""

import array
import ctypes
import decimal
import fcntl
import fractions
import math
import socket as std
import struct

import pytest

from parity import Side, assert_same, assert_same_outcome
from tomada import socket as ours

FAMILIES = (std.AF_INET, std.AF_INET6, std.AF_UNIX)

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def shortly(value):
    return f"{type(value).__name__}-{value!s:.20}"


def option(*arguments, family=std.AF_INET):
    """Make a case that sets an option, and returns its new value."""

    def case(side):
        sock = side.open(family)
        result = sock.setsockopt(*arguments)
        return result, sock.getsockopt(*arguments[:2]), sock.getsockopt(*arguments[:2], 16)

    return case


@every_family
@pytest.mark.parametrize(
    "name",
    [
        *("SO_BROADCAST", "SO_REUSEADDR", "SO_REUSEPORT", "SO_KEEPALIVE", "SO_DONTROUTE"),
        *("SO_TYPE", "SO_ERROR", "SO_DOMAIN", "SO_PROTOCOL", "SO_ACCEPTCONN", "SO_PASSCRED"),
        *("SO_RCVLOWAT", "SO_PRIORITY", "SO_MARK", "SO_OOBINLINE", "SO_PEERCRED", "SO_LINGER"),
        *("SO_RCVTIMEO", "SO_SNDTIMEO", "SO_BINDTODEVICE", "SO_INCOMING_CPU", "SO_SNDBUF"),
    ],
)
def test_socket_options(family, name):
    number = getattr(std, name)
    for value in (
        1,
        0,
        5000,
        -1,
        True,
        b"\1\0\0\0",
        struct.pack("ii", 1, 2),
        struct.pack("qq", 1, 2),
    ):
        assert_same_outcome(option(std.SOL_SOCKET, number, value, family=family))
    for length in (0, 1, 2, 4, 12, 16, 1024):
        assert_same_outcome(
            lambda s, n=length: s.open(family).getsockopt(std.SOL_SOCKET, number, n)
        )


@pytest.mark.parametrize(
    "name",
    [
        *(
            "IP_TTL",
            "IP_TOS",
            "IP_OPTIONS",
            "IP_HDRINCL",
            "IP_RECVTOS",
            "IP_RECVOPTS",
            "IP_RETOPTS",
        ),
        *("IP_MULTICAST_TTL", "IP_MULTICAST_LOOP", "IP_MULTICAST_IF", "IP_TRANSPARENT"),
        *("IP_ADD_MEMBERSHIP", "IP_DROP_MEMBERSHIP"),
    ],
)
def test_ip_options(name):
    number = getattr(std, name)
    loopback = std.inet_aton("127.0.0.1")
    for value in (1, 0, 255, 256, -1, loopback, std.inet_aton("239.1.2.3") + loopback, b"", b"\1"):
        assert_same_outcome(option(std.IPPROTO_IP, number, value))


@pytest.mark.parametrize(
    "name",
    [
        *("IPV6_V6ONLY", "IPV6_UNICAST_HOPS", "IPV6_MULTICAST_HOPS", "IPV6_MULTICAST_LOOP"),
        *("IPV6_MULTICAST_IF", "IPV6_RECVPKTINFO", "IPV6_TCLASS", "IPV6_DONTFRAG", "IPV6_CHECKSUM"),
        *("IPV6_JOIN_GROUP", "IPV6_RECVTCLASS", "IPV6_RECVHOPLIMIT"),
    ],
)
def test_ipv6_options(name):
    number = getattr(std, name)
    group = std.inet_pton(std.AF_INET6, "ff01::77") + struct.pack("I", 1)
    for value in (1, 0, 255, 256, -1, group, b"\0\0\0\0"):
        assert_same_outcome(option(std.IPPROTO_IPV6, number, value, family=std.AF_INET6))


@pytest.mark.parametrize(
    "value",
    [
        *(2**31 - 1, -(2**31), 2**31, -(2**31) - 1, 2**64, 1.0, "1", None, [], object(), b""),
        *(bytearray(b"\1\0\0\0"), memoryview(b"\1\0\0\0"), array.array("i", [1]), b"\1" * 5000),
        memoryview(b"\1.\0.\0.\0.")[::2],
    ],
    ids=shortly,
)
def test_option_values_of_every_kind(value):
    assert_same_outcome(option(std.SOL_SOCKET, std.SO_BROADCAST, value))
    assert_same_outcome(option(std.SOL_SOCKET, std.SO_PRIORITY, value))


@pytest.mark.parametrize(
    ("value", "length"),
    [
        *((None, 0), (None, 1), (None, 4), (None, 100), (None, 2**31), (None, 2**32)),
        *((None, -1), (None, None), (None, "4"), (None, 4.0), (None, True)),
        *((1, 4), (b"\1\0\0\0", 4)),
        *((1, None), (b"\1\0\0\0", None), (b"", 0), ("x", 4)),
    ],
    ids=repr,
)
def test_setsockopt_none_with_a_length(value, length):
    for level, name in (
        (std.SOL_SOCKET, std.SO_BROADCAST),
        (std.SOL_SOCKET, std.SO_BINDTODEVICE),
        (std.IPPROTO_IP, std.IP_OPTIONS),
    ):
        assert_same_outcome(option(level, name, value, length))


@pytest.mark.parametrize(
    "length", [-1, 0, 1, 3, 4, 5, 1024, 1025, 2**31 - 1, 2**31, None, "4", 4.0]
)
def test_getsockopt_lengths_of_every_kind(length):
    for name in (std.SO_BROADCAST, std.SO_RCVBUF, std.SO_LINGER):
        assert_same_outcome(lambda side: side.open().getsockopt(std.SOL_SOCKET, name, length))  # noqa: B023


@pytest.mark.parametrize("instructions", [1, 3, 1000])
def test_getsockopt_filter_does_not_overrun_the_buffer(instructions):
    # The kernel takes the length as a number of instructions, of eight bytes each.
    accept = struct.pack("HBBI", 0x06, 0, 0, 0xFFFF) * instructions
    memory = ctypes.create_string_buffer(accept)
    program = struct.pack("HP", instructions, ctypes.addressof(memory))
    with ours.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.setsockopt(std.SOL_SOCKET, ours.SO_ATTACH_FILTER, program)
        for length in ((), (instructions,)):
            with pytest.raises(OSError, match="Invalid argument"):
                sock.getsockopt(std.SOL_SOCKET, ours.SO_ATTACH_FILTER, *length)
        if len(accept) <= 1024:  # the longest that getsockopt reads
            assert sock.getsockopt(std.SOL_SOCKET, ours.SO_ATTACH_FILTER, 1024) == accept


@pytest.mark.parametrize("level", [-1, 99, 2**31, "x", None, std.IPPROTO_TCP, std.IPPROTO_UDP])
@pytest.mark.parametrize("name", [-1, 0, 12_345, 2**31, "x", None])
def test_options_that_do_not_exist(level, name):
    assert_same_outcome(lambda side: side.open().getsockopt(level, name))
    assert_same_outcome(lambda side: side.open().getsockopt(level, name, 8))
    assert_same_outcome(lambda side: side.open().setsockopt(level, name, 1))
    assert_same_outcome(lambda side: side.open().setsockopt(level, name, b"\1\0\0\0"))
    assert_same_outcome(lambda side: side.open().setsockopt(level, name, None, 4))


@pytest.mark.parametrize("size", [0, 1, 4096, 100_000])
@pytest.mark.parametrize("name", ["SO_RCVBUF", "SO_SNDBUF"])
def test_buffer_size_within_the_limit(name, size):
    assert_same(option(std.SOL_SOCKET, getattr(std, name), size))


@pytest.mark.parametrize("name", ["SO_RCVBUF", "SO_SNDBUF"])
@pytest.mark.parametrize("size", [2**30 - 1, 2**30, 2**31 - 1])
def test_buffer_size_beyond_the_limit_warns(name, size):
    with Side(ours) as side:
        sock = side.open()
        with pytest.warns(RuntimeWarning, match=f"{name}: asked for {size} bytes, got") as caught:
            sock.setsockopt(std.SOL_SOCKET, getattr(std, name), size)
        # The warning must point at the line that set it.
        assert caught[0].filename == __file__
        given = sock.getsockopt(std.SOL_SOCKET, getattr(std, name))
    with Side(std) as side:
        sock = side.open()
        sock.setsockopt(std.SOL_SOCKET, getattr(std, name), size)
        assert sock.getsockopt(std.SOL_SOCKET, getattr(std, name)) == given


def test_negative_buffer_size():
    assert_same(option(std.SOL_SOCKET, std.SO_RCVBUF, -1))


TIMEOUTS = [
    *(None, 0, 1, True, False, 2.5, 0.1, 1 / 3, 1.424_177_793, 0.0, -0.0),
    *(1e-3, 1e-9, 1e-10, 1.5e-9, 5e-324),
    *(-1, -0.5, -1e-9, -1e-10, -5e-324, -math.inf, math.inf, math.nan, 1e300, -1e300),
    *(2_147_483, 2_147_484, 2**31, 2**32, 1e9, 1e10, 9.2e9, 9_223_372_036, 9_223_372_037, 1e11),
    *(2**63, -(2**63), 10**30, "1", "x", b"1", [], (), {}, object(), 1j),
    *(fractions.Fraction(1, 2), decimal.Decimal("0.5"), type("Seconds", (float,), {})(0.5)),
]


@pytest.mark.parametrize("timeout", TIMEOUTS, ids=shortly)
def test_timeouts_of_every_kind(timeout):
    def case(side):
        sock = side.open()
        result = sock.settimeout(timeout)
        return result, sock.gettimeout(), sock.timeout, sock.getblocking()

    def default(side):
        before = std.getdefaulttimeout()
        try:
            side.module.setdefaulttimeout(timeout)
            with side.module.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
                return sock.gettimeout(), sock.getblocking(), std.getdefaulttimeout()
        finally:
            std.setdefaulttimeout(before)

    assert_same_outcome(case)
    assert_same_outcome(default)


class Seconds:
    """An object that converts to one integer, and to another number of seconds."""

    def __index__(self):
        return 3

    def __float__(self):
        return 1.5


def test_timeout_with_an_index_method():
    assert_same_outcome(lambda side: side.open().settimeout(Seconds()))


@pytest.mark.parametrize("flag", [True, False, 0, 1, 2, -1], ids=repr)
def test_setblocking(flag):
    def case(side):
        sock = side.open()
        sock.settimeout(3)
        result = sock.setblocking(flag)
        return result, sock.gettimeout(), sock.getblocking()

    assert_same(case)


def test_invalid_timeout_leaves_the_old_one():
    def case(side):
        sock = side.open()
        sock.settimeout(3)
        for bad in (-1, "x", math.nan, 1e300):
            with pytest.raises((ValueError, TypeError, OverflowError)):
                sock.settimeout(bad)
        return sock.gettimeout(), sock.getblocking()

    assert_same(case)


@pytest.mark.parametrize("timeout", [None, 0, 5])
def test_descriptor_is_as_blocking_as_the_standard_classs(timeout):
    # Programs based on select() and dup() look at the descriptor itself.
    def case(side):
        sock = side.open()
        sock.settimeout(timeout)
        return fcntl.fcntl(sock, fcntl.F_GETFL), fcntl.fcntl(sock, fcntl.F_GETFD)

    assert_same(case)


def test_default_timeout_applies_to_new_sockets_only():
    def case(side):
        before = side.open()
        std.setdefaulttimeout(4.5)
        try:
            after = side.keep(side.module.socket(std.AF_INET, std.SOCK_DGRAM))
            return before.gettimeout(), after.gettimeout()
        finally:
            std.setdefaulttimeout(None)

    assert_same(case)
