"""Invalid, foreign and unusual addresses: the same results as with the standard class."""

import ctypes
import socket as std
from pathlib import Path

import pytest

from parity import assert_same, outcome
from tomada import socket as ours

CALLS = {
    "bind": lambda sock, address: sock.bind(address),
    "connect": lambda sock, address: sock.connect(address),
    "connect_ex": lambda sock, address: sock.connect_ex(address),
    "sendto": lambda sock, address: sock.sendto(b"data", address),
    "sendto with flags": lambda sock, address: sock.sendto(b"data", 0, address),
    "sendmsg": lambda sock, address: sock.sendmsg([b"data"], [], 0, address),
}

every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


gai_strerror = ctypes.CDLL(None).gai_strerror
gai_strerror.restype = ctypes.c_char_p


class Index:
    def __init__(self, number):
        self._number = number

    def __index__(self):
        return self._number

    def __repr__(self):
        return f"Index({self._number})"


class Text(str):
    __slots__ = ()


class Pair(tuple):
    __slots__ = ()


# Objects that are not an address of any family.
NONSENSE = [None, 5, 1.5, [], {}, (), (None,), ("",), object, ("127.0.0.1",), ["127.0.0.1", 9]]

INET = [
    ("127.0.0.1", 9, 0),
    ("127.0.0.1", 9, 0, 0),
    Pair(("127.0.0.1", 9)),
    (Text("127.0.0.1"), 9),
    "127.0.0.1",
    "/a/path",
    b"\0name",
]

INET6 = [
    ("::1", 9, 0, 0, 0),
    ("::1", 9, 1),
    ("::1", 9, 0xFFFFF),
    ("::1", 9, 0x100000),
    ("::1", 9, -1),
    ("::1", 9, 2**32),
    ("::1", 9, 2**32 + 1),
    ("::1", 9, 2**64),
    ("::1", Index(9), Index(1), Index(0)),
    ("::1", 9, Index(-1)),
    ("::1", 9, None),
    ("::1", 9, "0"),
    ("::1", 9, 0.0),
    ("::1", 9, True),
    ("::1", 9, 0, -1),
    ("::1", 9, 0, 1),
    ("::1", 9, 0, 2**31),
    ("::1", 9, 0, 2**32),
    ("::1", 9, 0, 2**32 + 1),
    ("::1", 9, 0, 2**64 + 1),
    ("::1", 9, 0, None),
    ("::1", 9, 0, "lo"),
    ("::1", 9, 0, 0.0),
    ("::ffff:127.0.0.1", 9),
    ("::127.0.0.1", 9),
]

SCOPES = ["1", "0", "01", "+1", " 1", "-1", "0x1", "999999", "lo", "LO", "lo%lo", "nowhere"]
SCOPES += ["", "%"]

PORTS = [-1, 65_535, 65_536, 2**31, -(2**31) - 1, 2**40, 2**64, -(2**64)]
PORTS += ["http", "9", b"9", 1.5, 9.0, None, True, [], object, 1j]

# Hosts that need no name server.
HOSTS = [
    *("nulls\0in.it", b"nulls\0in.it", "\0", b"\0", bytearray(b"\0"), "127.0.0.1\0"),
    *("ä" * 64, "a" * 64 + ".ä", "a..ä", "\udcff", "\ud800", b"\xff\xfe." + b"a" * 64),
    *("..", " ", "-", "*", "%", "a" * 64, "a" * 300 + ".invalid", "a\tb"),
    *(None, 5, 1.5, True, memoryview(b"127.0.0.1"), ["127.0.0.1"], ("127.0.0.1",), object),
    *("127.1", "127.0.1", "0x7f000001", "0177.0.0.1", "2130706433", b"127.1", "0"),
    *(" 127.0.0.1", "127.0.0.1\n", "+127.0.0.1", "-1", "127.0.0.1%lo"),
    *("<broadcast>", "<BROADCAST>", "<broadcast", "<any>", b"<broadcast>", "255.255.255.255"),
    *("::1", "::", "::ffff:127.0.0.1", "/a/path", "", b"", bytearray()),
]

# Hosts that need no name server only with AF_INET.
INET_HOSTS = ["localhost", "LOCALHOST", "\uff4cocalhost", b"localhost", bytearray(b"localhost")]
INET_HOSTS += ["127.0.0.1", "1.2.3.4.5", "1.2.3.256", "256.1", "4294967296"]

NOBODY = ["nosuchhost.invalid", b"nosuchhost.invalid", bytearray(b"nosuchhost.invalid")]
NOBODY += ["hóst.invalid", "127.0.0.1x.invalid", "١٢٧.0.0.1.invalid"]


def reported(call, sock, address):
    """Make the call, and return the address that the kernel then reports."""
    result = call(sock, address)
    try:
        peer = sock.getpeername()
    except OSError as error:
        peer = error.errno
    host, *_ = sock.getsockname()
    return result, host, peer


def outcomes(module, family, call, addresses):
    return {
        repr(address): outcome(
            module, lambda side, address=address: reported(call, side.open(family), address)
        )
        for address in addresses
    }


def assert_same_outcomes(family, call, addresses):
    assert outcomes(ours, family, call, addresses) == outcomes(std, family, call, addresses)


@pytest.mark.thread_unsafe(reason="its threads would bind the same address")
@every_call
@pytest.mark.parametrize("family", [std.AF_INET, std.AF_INET6], ids=lambda family: family.name)
def test_addresses_that_are_not_a_host_and_port(family, call):
    assert_same_outcomes(family, call, NONSENSE + INET)


@pytest.mark.thread_unsafe(reason="its threads would bind the same address")
@every_call
def test_unusual_ipv6_addresses(call):
    assert_same_outcomes(std.AF_INET6, call, INET6)


@pytest.mark.thread_unsafe(reason="its threads would bind the same address")
@pytest.mark.parametrize("scope", SCOPES)
def test_scope_on_a_host_without_scopes(scope):
    host = f"::1%{scope}"
    for call in CALLS.values():
        assert_same_outcomes(std.AF_INET6, call, [(host, 9), (host, 9, 0, 0), (host, 9, 0, 1)])


@pytest.mark.thread_unsafe(reason="its threads would bind the same address")
@every_call
@pytest.mark.parametrize("family", [std.AF_INET, std.AF_INET6], ids=lambda family: family.name)
def test_invalid_ports(family, call):
    host = "127.0.0.1" if family == std.AF_INET else "::1"
    assert_same_outcomes(family, call, [(host, port) for port in PORTS])


@pytest.mark.thread_unsafe(reason="its threads would bind the same address")
@every_call
def test_unusual_hosts(call):
    assert_same_outcomes(std.AF_INET, call, [(host, 9) for host in HOSTS + INET_HOSTS])


@pytest.mark.thread_unsafe(reason="its threads would bind the same address")
@every_call
def test_unusual_ipv6_hosts(call):
    assert_same_outcomes(std.AF_INET6, call, [(host, 9) for host in HOSTS])


@pytest.mark.parametrize("host", NOBODY, ids=ascii)
@pytest.mark.parametrize("family", [std.AF_INET, std.AF_INET6], ids=lambda family: family.name)
def test_unknown_host_name(family, host):
    # The resolver's error may differ from one query to the next.
    with ours.socket(family, std.SOCK_DGRAM) as sock, pytest.raises(std.gaierror) as caught:
        sock.connect((host, 9))
    code = caught.value.errno
    assert code in {std.EAI_NONAME, std.EAI_NODATA, std.EAI_AGAIN}
    assert caught.value.strerror == gai_strerror(code).decode()


UNIX = [
    *("p" * 107, "p" * 108, "p" * 109, b"p" * 107, b"p" * 108, b"p" * 109, "ü" * 53, "ü" * 54),
    *(b"\0" + b"p" * 107, b"\0" + b"p" * 108, b"\0" + b"p" * 200),
    *("\0" + "p" * 107, "\0" + "p" * 108),
    *("nulls\0in it", b"nulls\0in it", "nulls at the end\0", b"\0", "\0", "\0\0", b"\0\xff\0"),
    *("", b"", bytearray(), memoryview(b""), "/", ".", "/no/such/folder/sock", "/dev/null"),
    *("\udcff", "\ud800", bytearray(b"array"), memoryview(b"memory"), memoryview(b"a b c")[::2]),
    *(None, 5, 1.5, ("127.0.0.1", 9), ["path"], ("path",), Path("path"), object, Text("text")),
]


@every_call
def test_unusual_unix_addresses(tmp_path, monkeypatch, call):
    def outcomes(module):
        # Binding leaves a file behind.
        folder = tmp_path / module.__name__
        folder.mkdir()
        monkeypatch.chdir(folder)
        answers = {}
        for address in UNIX:
            answers[repr(address)] = outcome(module, lambda side: unix_reported(side, address))  # noqa: B023
        return answers

    def unix_reported(side, address):
        sock = side.open(std.AF_UNIX)
        result = call(sock, address)
        # The kernel's own choice differs each time.
        return result, address if not address else sock.getsockname()

    assert outcomes(ours) == outcomes(std)


def test_invalid_host_is_reported_before_an_invalid_port():
    assert_same(lambda side: side.open().connect(("\0", 99_999)), TypeError)
    assert_same(lambda side: side.open().connect(("a" * 64, 99_999)), std.gaierror)
    assert_same(lambda side: side.open().connect(("a" * 64, "http")), TypeError)


def test_invalid_address_is_reported_before_a_closed_socket():
    def case(side):
        sock = side.open()
        sock.close()
        sock.sendto(b"", ("127.0.0.1", 99_999))

    assert_same(case, OverflowError)


def test_bind_to_an_existing_path(tmp_path):
    path = str(tmp_path / "sock")
    (tmp_path / "sock").touch()
    assert_same(lambda side: side.open(std.AF_UNIX).bind(path), OSError)
    assert_same(lambda side: side.open(std.AF_UNIX).connect(path), ConnectionRefusedError)


def test_bind_twice():
    assert_same(lambda side: side.bound().bind(("127.0.0.1", 0)), OSError)


def test_bind_to_an_address_in_use():
    def case(side):
        side.open().bind(side.bound().getsockname())

    assert_same(case, OSError)


def test_bind_to_an_address_of_another_machine():
    assert_same(lambda side: side.open().bind(("192.0.2.77", 0)), OSError)
    assert_same(lambda side: side.open(std.AF_INET6).bind(("2001:db8::77", 0)), OSError)
