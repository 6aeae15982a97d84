"""Arguments of endpoints: the same results and errors as with the standard loop."""

import asyncio
import contextlib
import errno
import gc
import inspect
import os
import resource
import socket as std

import pytest

import tomada.asyncio
from skips import NO_IPV6
from support import open_descriptors
from tomada import socket
from tomada.asyncio import _EndpointOptions, _Options
from transports import LOOPS, Recorder, given, hear, open_first, recorder, turns


def test_the_loops_method_names_all_options_of_the_function():
    parameters = inspect.signature(tomada.asyncio.create_datagram_endpoint).parameters.values()
    own = {each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}
    standard = _Options.__annotations__
    assert own | {*standard} == {*_EndpointOptions.__annotations__}


def outcome(new_loop, case):
    """Run a case on a loop, and describe what it returns or raises."""

    async def main():
        loop = asyncio.get_running_loop()
        transports = []

        async def open_one(factory=asyncio.DatagramProtocol, /, **arguments):
            transport, _ = await loop.create_datagram_endpoint(factory, **arguments)
            transports.append(transport)
            return transport

        try:
            return "returns", await case(open_one)
        except Exception as error:  # noqa: BLE001 - any exception must be the same
            return "raises", type(error), str(error)
        finally:
            for transport in transports:
                transport.abort()
            await turns(2)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main())


@pytest.fixture(params=LOOPS)
def assert_same(request):
    """Check that a case has the same outcome as on the standard loop, and raises as expected."""

    def check(case, raises=None):
        expected = outcome(asyncio.SelectorEventLoop, case)
        assert expected[0] == ("returns" if raises is None else "raises"), expected
        assert raises is None or issubclass(expected[1], raises), expected
        assert outcome(LOOPS[request.param], case) == expected

    return check


OPTIONS = (
    std.SO_BROADCAST,
    std.SO_REUSEADDR,
    std.SO_REUSEPORT,
    std.SO_TYPE,
    std.SO_PROTOCOL,
    std.SO_DOMAIN,
    std.SO_RCVBUF,
    std.SO_SNDBUF,
)


def described(transport):
    """Describe a transport's socket, without the parts that differ between any two sockets."""
    sock = transport.get_extra_info("socket")
    return (
        sock.family,
        sock.type,
        sock.proto,
        sock.gettimeout(),
        sock.get_inheritable(),
        [sock.getsockopt(std.SOL_SOCKET, option) for option in OPTIONS],
        transport.get_extra_info("sockname")[:1],
        transport.get_extra_info("peername"),
    )


ACCEPTED = {
    "a local address": {"local_addr": ("127.0.0.1", 0)},
    "every local address": {"local_addr": ("0.0.0.0", 0)},  # noqa: S104
    "a name": {"local_addr": ("localhost", 0)},
    "a name and a family": {"local_addr": ("localhost", 0), "family": std.AF_INET},
    "a remote address": {"remote_addr": ("127.0.0.1", 9)},
    "a port by name": {"remote_addr": ("127.0.0.1", "domain")},
    "both": {"local_addr": ("127.0.0.1", 0), "remote_addr": ("127.0.0.2", 9)},
    "IPv6": {"local_addr": ("::1", 0), "remote_addr": ("::1", 9)},
    "a family alone": {"family": std.AF_INET},
    "a family and a protocol": {"family": std.AF_INET6, "proto": std.IPPROTO_UDP},
    "options that are off": {
        "local_addr": ("127.0.0.1", 0),
        **dict.fromkeys(("family", "proto", "flags"), 0),
        **dict.fromkeys(("reuse_port", "allow_broadcast", "remote_addr", "sock")),
    },
    "no name": {"family": std.AF_UNIX},
    "a protocol": {"local_addr": ("127.0.0.1", 0), "proto": std.IPPROTO_UDP},
    "flags": {"local_addr": ("127.0.0.1", 0), "flags": std.AI_NUMERICHOST},
    "reuse_port": {"local_addr": ("127.0.0.1", 0), "reuse_port": True},
    "allow_broadcast": {"local_addr": ("127.0.0.1", 0), "allow_broadcast": True},
    "a remote address and allow_broadcast": {
        "remote_addr": ("127.0.0.1", 9),
        "allow_broadcast": True,
    },
}


@pytest.mark.parametrize("arguments", ACCEPTED.values(), ids=ACCEPTED)
def test_valid_arguments_make_the_same_socket(assert_same, arguments, speaks_ipv6):
    is_ipv6 = arguments.get("family") == std.AF_INET6 or arguments.get("local_addr") == ("::1", 0)
    if is_ipv6 and not speaks_ipv6:
        pytest.skip(NO_IPV6)

    async def case(open_one):
        return described(await open_one(**arguments))

    assert_same(case)


REFUSED = {
    "nothing": ({}, ValueError),
    "a family without a value": ({"local_addr": ("127.0.0.1", 0), "family": None}, TypeError),
    "False instead of a socket": ({"family": std.AF_INET, "sock": False}, AttributeError),
    "a protocol of another kind": ({"family": std.AF_INET, "proto": std.IPPROTO_TCP}, OSError),
    "an address that is not a pair": ({"local_addr": "127.0.0.1"}, TypeError),
    "a pair too long": ({"local_addr": ("127.0.0.1", 0, 0)}, TypeError),
    "a port that is too high": ({"local_addr": ("127.0.0.1", 65536)}, Exception),
    "a foreign address": ({"local_addr": ("192.0.2.1", 0)}, OSError),
    "an unknown name": ({"local_addr": ("no.such.host.invalid", 0)}, OSError),
    "a name instead of a number": (
        {"local_addr": ("localhost", 0), "flags": std.AI_NUMERICHOST},
        OSError,
    ),
    "addresses of two families": (
        {"local_addr": ("127.0.0.1", 0), "remote_addr": ("::1", 9)},
        ValueError,
    ),
    "another family's address": (
        {"local_addr": ("127.0.0.1", 0), "family": std.AF_INET6},
        OSError,
    ),
    "a broadcast address": ({"remote_addr": ("127.255.255.255", 9)}, PermissionError),
    "a path as bytes": ({"local_addr": b"/x", "family": std.AF_UNIX}, TypeError),
    "a path in a missing folder": (
        {"local_addr": "/no/such/folder", "family": std.AF_UNIX},
        OSError,
    ),
    "a peer at a missing path": ({"remote_addr": "/no/such/path", "family": std.AF_UNIX}, OSError),
}


@pytest.mark.parametrize(("arguments", "raises"), REFUSED.values(), ids=REFUSED)
def test_invalid_arguments_are_rejected(assert_same, arguments, raises):
    before = open_descriptors()

    async def case(open_one):
        await open_one(**arguments)

    assert_same(case, raises=raises)
    assert open_descriptors() == before


def test_port_that_is_taken(assert_same, inet):
    with inet.bound(std) as other:

        async def case(open_one):
            await open_one(local_addr=other.getsockname())

        assert_same(case, raises=OSError)


@pytest.mark.parametrize(
    "arguments",
    [
        {"local_addr": ("127.0.0.1", 0)},
        {"remote_addr": ("127.0.0.1", 9)},
        {"family": std.AF_INET, "proto": 17, "flags": 1},
        {"reuse_port": True, "allow_broadcast": True},
    ],
)
def test_given_socket_with_conflicting_arguments(assert_same, arguments):
    async def case(open_one):
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
            await open_one(sock=sock, **arguments)

    assert_same(case, raises=ValueError)


@pytest.mark.parametrize("pair", [std.socketpair, std.socket])
def test_given_stream_socket(assert_same, pair):
    async def case(open_one):
        made = pair()
        socks = made if isinstance(made, tuple) else (made,)
        try:
            await open_one(sock=socks[0])
        except ValueError as error:
            return str(error).partition("got")[0]
        finally:
            for sock in socks:
                sock.close()

    assert_same(case)


def test_path_left_by_an_earlier_socket_is_replaced(assert_same, tmp_path):
    path = str(tmp_path / "socket")

    async def case(open_one):
        with std.socket(std.AF_UNIX, std.SOCK_DGRAM) as earlier:
            earlier.bind(path)
        transport = await open_one(local_addr=path, family=std.AF_UNIX)
        found = described(transport)
        os.unlink(path)  # noqa: PTH108 - as in a user's program
        return found

    assert_same(case)


def test_regular_file_at_the_path_is_left_alone(assert_same, tmp_path):
    path = tmp_path / "file"
    path.write_text("text")

    async def case(open_one):
        await open_one(local_addr=str(path), family=std.AF_UNIX)

    assert_same(case, raises=OSError)
    assert path.read_text() == "text"


async def test_create_datagram_endpoint_function_for_any_loop(runner, inet):
    loop = runner.get_loop()
    with inet.bound(std) as other:
        transport, protocol = await tomada.asyncio.create_datagram_endpoint(
            loop, Recorder, None, other.getsockname()
        )
        transport.sendto(b"x")
        assert await hear(other) == [b"x"]
        transport.close()
        await protocol.lost()


def test_parameters_are_the_standard_ones():
    ours = inspect.signature(tomada.asyncio.create_datagram_endpoint).parameters
    standard = inspect.signature(asyncio.SelectorEventLoop.create_datagram_endpoint).parameters
    names = list(standard)
    assert list(ours)[: names.index("family")] == ["loop", *names[1 : names.index("family")]]


async def test_factory_that_raises_leaks_no_socket(endpoint, inet, recwarn):
    def factory():
        raise LookupError("no protocol today")

    before = open_descriptors()
    for arguments in ({"local_addr": ("127.0.0.1", 0)}, {"remote_addr": ("127.0.0.1", 9)}):
        with pytest.raises(LookupError, match=r"^no protocol today$"):
            await endpoint(factory, **arguments)
        assert open_descriptors() == before
    for module in (std, socket):
        with inet.bound(module) as sock:
            with pytest.raises(LookupError):
                await endpoint(factory, sock=sock)
            # A given socket stays open; it belongs to the caller.
            sock.sendto(b"x", sock.getsockname())
            assert sock.recv(10) == b"x"
    assert not recwarn.list


@pytest.mark.parametrize("factory", [lambda: None, object, 7])
async def test_factory_that_returns_no_protocol(endpoint, factory):
    before = open_descriptors()
    with pytest.raises((AttributeError, TypeError)):
        await endpoint(factory)
    gc.collect()
    assert open_descriptors() == before


async def test_protocol_whose_connection_made_raises(endpoint, problems, inet):
    def connection_made(self, transport):
        Recorder.connection_made(self, transport)
        raise LookupError("not you")

    transport, protocol = await endpoint(recorder(connection_made=connection_made))
    assert [str(problem["exception"]) for problem in problems] == ["not you"]
    problems.clear()
    # As on the standard loop, the transport works anyway.
    with inet.bound(std) as other:
        other.sendto(b"x", transport.get_extra_info("sockname"))
        assert await protocol.received(1) == [b"x"]


async def test_endpoint_without_free_descriptors(endpoint, inet):
    sock = inet.bound(std)
    transport, protocol = await endpoint()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_descriptors() + 20, before[1]))
        with contextlib.suppress(OSError):
            while True:
                stack.callback(os.close, os.dup(0))
        for arguments in ({"local_addr": ("127.0.0.1", 0)}, {"sock": sock}):
            with pytest.raises(OSError, match="Too many open files") as info:
                await endpoint(**arguments)
            assert info.value.errno == errno.EMFILE
        # Those that exist continue to work.
        transport.sendto(b"x", transport.get_extra_info("sockname"))
        assert await protocol.received(1) == [b"x"]
    other, _ = await endpoint(sock=sock)
    assert other.get_extra_info("sockname") == sock.getsockname()


async def test_endpoint_cancelled_before_connection_made(endpoint):
    await open_first(endpoint)
    before = open_descriptors()
    for count in range(1, 4):
        task = asyncio.ensure_future(endpoint())
        await turns(count)
        task.cancel()
        try:
            transport, _ = await task
        except asyncio.CancelledError:
            pass
        else:
            transport.abort()
        await turns(3)
        assert open_descriptors() == before


async def test_hundred_endpoints_at_once(endpoint):
    made = await asyncio.gather(*(endpoint(local_addr=("localhost", 0)) for _ in range(100)))
    names = {transport.get_extra_info("sockname") for transport, _ in made}
    assert len(names) == 100
    (first, _), *others = made
    for transport, _ in others:
        transport.sendto(b"x", given(first.get_extra_info("sockname")))
    await made[0][1].received(99)


def test_given_test_double_of_a_socket_gets_a_standard_transport(inet):
    # Programs test themselves with such doubles, which have only methods.
    class Double:
        family, type, proto = std.AF_INET, std.SOCK_DGRAM, 0

        def __init__(self, sock):
            self.sock = sock
            self.sent = []

        def __getattr__(self, name):
            return getattr(self.sock, name)

        def sendto(self, data, address):
            self.sent.append((data, address))

    async def main(sock):
        double = Double(sock)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Recorder, sock=double)
        transport.sendto(b"x", ("127.0.0.1", 9))
        transport.abort()
        await turns(2)
        return double.sent

    with inet.bound(std) as sock:
        assert tomada.asyncio.run(main(sock)) == [(b"x", ("127.0.0.1", 9))]
