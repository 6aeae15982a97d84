"""Queues, devices, routes and addresses that disappear and return."""

import asyncio
import contextlib
import errno
import functools
import logging
import socket as std

import pytest

import tomada
import tomada.asyncio
from links import Network
from skips import program
from support import DEADLINE, Call, eventually
from tomada import _reports, socket
from traffic import numbered, receive

LEFT = ["10.77.0.1/24", "fd77::1/64", "fe80::1/64"]
RIGHT = ["10.77.0.2/24", "10.77.0.22/24", "fd77::2/64", "fd77::22/64", "fe80::2/64"]

UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL}


def change_address(namespace, change, address, device):
    options = ["nodad"] if ":" in address and change != "del" else []
    namespace.command("ip", "address", change, address, "dev", device, *options)
    if change != "del":
        eventually(lambda: namespace.is_ready(device, [address]))  # earlier requests are refused


@pytest.fixture(scope="module")
def both(namespaces):  # noqa: ARG001 - skips the tests without them
    """Connect two namespaces for all tests, because making them takes the kernel a while."""
    with contextlib.ExitStack() as stack:
        yield Network(stack).link()


@pytest.fixture
def link(both):
    """Provide two connected namespaces, and restore the connection after the test."""
    yield both
    for namespace, device, addresses in zip(both, ("left", "right"), (LEFT, RIGHT), strict=True):
        restore(namespace, device, addresses)


def restore(namespace, device, addresses):
    """Set a device up, with these addresses."""
    commands = [f"ip link set {device} up", f"ip -4 address flush dev {device}"]
    for address in addresses:
        nodad = "nodad" if ":" in address else ""
        commands.append(f"ip address replace {address} dev {device} {nodad}")
    namespace.command("sh", "-ec", "\n".join(commands))
    eventually(functools.partial(namespace.is_ready, device, addresses))


@pytest.fixture(autouse=True)
def every_line(monkeypatch, caplog):
    """Disable the limits on log messages."""
    monkeypatch.setattr(_reports, "SECONDS_BETWEEN", 0.0)
    caplog.set_level(logging.INFO, "tomada")


def echo(data, _):
    return data


@contextlib.contextmanager
def serving(namespace, address=("0.0.0.0", 0), **options):  # noqa: S104
    """Run a server in a namespace."""
    server = tomada.Server(address, options.pop("handler", echo), **options)
    namespace.run(server.start)
    try:
        yield server
    finally:
        server.stop()


def attempt(call, *arguments):
    """Return the error of a call."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the caller checks the error
        call(*arguments)
    return caught.value


def answered(sock, data=b"ping"):
    """Return whether a request from a plain connected socket is soon answered."""
    sock.settimeout(0.05)
    try:
        sock.send(data)
        return sock.recv(100) == data
    except OSError:
        return False


class Slow:
    """A device whose queue accepts some datagrams at once, and then hardly any."""

    def __init__(self, namespace, device):
        program("tc")
        self._command = ["tc", "qdisc", "replace", "dev", device, "root"]
        self._namespace = namespace
        # A bucket of 1,600 bytes, and a queue of the same size.
        rule = ["tbf", "rate", "80bit", "burst", "1600", "limit", "1600"]
        namespace.command(*self._command, *rule)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._namespace.command(*self._command, "noqueue")


# Each is longer than the one before, so that they are not sent as a run: the kernel does not report
# what happens to the parts of a run.
LONGER = [bytes(1000 + number) for number in range(20)]


def told(sock):
    """Make a socket report datagrams that the kernel drops."""
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVERR, 1)
    return sock


def test_errors_reports_a_full_device_if_enabled(link):
    left, right = link
    with right.bound(std, ("10.77.0.2", 0)) as peer, left.open(socket) as sock:
        to = peer.getsockname()
        with Slow(left, "left"):
            # Without the option the kernel reports nothing.
            assert sock.send_many(LONGER, to) == 20
            told(sock)
            assert attempt(sock.sendto, LONGER[0], to).errno == errno.ENOBUFS
            error = attempt(sock.send_many, LONGER, to)
            assert (error.errno, error.index, error.sent) == (errno.ENOBUFS, 0, 0)
            assert "full: retry later" in str(error)
            for data in (LONGER, numbered(20, 1000)):
                failed = sock.send_many(data, to, errors="continue")
                assert [(index, error.errno) for index, error in failed] == [
                    (index, errno.ENOBUFS) for index in range(20)
                ]
            assert sock.stats().sent == 20
        assert sock.sendto(b"after", to) == 5
        eventually(lambda: peer.recv(2000) == b"after")


def test_full_device_costs_a_server_only_replies(link, caplog):
    left, right = link
    listening = told(right.bound(socket, ("10.77.0.2", 0)))
    with (
        listening,
        serving(right, None, sock=listening) as server,
        left.bound(std, ("10.77.0.1", 0)) as peer,
    ):
        peer.connect(listening.getsockname())
        with Slow(right, "right"):
            for data in LONGER:
                peer.send(data)
            stats = eventually(
                lambda: (found := server.stats()).sent + found.send_errors == 20 and found
            )
            assert stats.send_errors >= 15
            eventually(lambda: "not sent to 10.77.0.1:" in caplog.text)
            assert "No buffer space available" in caplog.text
        eventually(lambda: answered(peer))


@pytest.fixture
def runner(problems):
    """One kind of loop, because the behaviour is the same on each."""
    with asyncio.Runner(loop_factory=tomada.asyncio.EventLoop) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: problems.append(context))
        yield runner


async def test_protocol_is_told_of_a_full_device(link, endpoint):
    left, right = link
    with right.bound(std, ("10.77.0.2", 0)) as peer:
        sock = told(left.bound(socket, ("10.77.0.1", 0)))
        transport, protocol = await endpoint(sock=sock)
        to = peer.getsockname()
        with Slow(left, "left"):
            transport.sendto_many(LONGER, to)
            stats = transport.get_extra_info("stats")
            assert {error.errno for error in protocol.errors} == {errno.ENOBUFS}
            assert len(protocol.errors) + stats.sent == 20
        transport.sendto(b"after", to)
        eventually(lambda: peer.recv(2000) == b"after")
    assert not transport.is_closing()


async def test_endpoint_raises_for_a_full_device(runner, link):  # noqa: ARG001
    left, right = link
    with right.bound(std, ("10.77.0.2", 0)) as peer:
        sock = told(left.bound(socket, ("10.77.0.1", 0)))
        sock.connect(peer.getsockname())
        async with tomada.asyncio.open_endpoint(sock=sock) as endpoint:
            with Slow(left, "left"):
                error = attempt(endpoint.send_many, LONGER)
                assert error.errno == errno.ENOBUFS
            with contextlib.suppress(OSError):  # errors of the other datagrams
                while True:
                    await asyncio.wait_for(endpoint.recv(), 0.01)
            endpoint.send(b"after")
            eventually(lambda: peer.recv(2000) == b"after")


class Down:
    """Set a device down for a while."""

    def __init__(self, namespace, device, addresses):
        self._namespace, self._device, self._addresses = namespace, device, addresses

    def __enter__(self):
        self._namespace.command("ip", "link", "set", self._device, "down")

    def __exit__(self, *_):
        # Its IPv6 addresses have been removed.
        restore(self._namespace, self._device, self._addresses)


both_families = pytest.mark.parametrize(
    ("any_address", "peer"),
    [("0.0.0.0", "10.77.0.2"), ("::", "fd77::2")],  # noqa: S104
)


@both_families
def test_send_on_a_device_that_is_down_raises_until_it_is_up(link, any_address, peer):
    left, right = link
    with right.bound(std, (peer, 0)) as plain, left.bound(socket, (any_address, 0)) as sock:
        to = plain.getsockname()
        sock.sendto(b"before", to)
        with Down(left, "left", LEFT):
            assert attempt(sock.sendto, b"x", to).errno == errno.ENETUNREACH
            error = attempt(sock.send_many, [b"x"] * 5, to)
            assert (error.errno, error.index) == (errno.ENETUNREACH, 0)
            assert "there is no route to this address" in str(error)
            failed = sock.send_many([b"x"] * 5, to, errors="continue")
            assert [index for index, _ in failed] == list(range(5))
            batch = tomada.Batch()
            batch.append(b"x", to)
            assert attempt(sock.send_batch, batch).errno == errno.ENETUNREACH
            assert sock.stats().sent == 1
        assert sock.send_many(numbered(5), to) == 5
        assert [data for data, _ in receive(plain, 6)] == [b"before", *numbered(5)]


@both_families
def test_recv_does_not_notice_that_the_device_was_down(link, any_address, peer):
    left, right = link
    with (
        right.bound(socket, (any_address, 0)) as sock,
        left.open(std, std.AF_INET6 if ":" in peer else std.AF_INET) as plain,
    ):
        call = Call(sock.recv_many).until_it_waits()
        with Down(right, "right", RIGHT):
            pass
        plain.sendto(b"x", (peer, sock.getsockname()[1]))
        assert [data for data, _ in call.result()] == [b"x"]


@both_families
@pytest.mark.parametrize("workers", [1, 2])
def test_server_continues_after_its_device_was_down(link, any_address, peer, workers):
    left, right = link
    family = std.AF_INET6 if ":" in peer else std.AF_INET
    with (
        serving(right, (any_address, 0), workers=workers) as server,
        left.open(std, family) as plain,
    ):
        plain.connect((peer, server.address[1]))
        eventually(lambda: answered(plain, b"before"))
        with Down(right, "right", RIGHT):
            assert not answered(plain)
            own = plain.getsockname()
            assert attempt(server.sendto, b"unasked", own).errno in UNREACHABLE
        eventually(lambda: answered(plain, b"after"))
        eventually(lambda: is_even(server.stats(), unasked=1))
        if workers == 1:  # the parent does not know which address to use
            plain.settimeout(DEADLINE)
            server.sendto(b"unasked", own)
            eventually(lambda: plain.recv(100) == b"unasked")
            eventually(lambda: is_even(server.stats(), unasked=2))
        assert server.stats().handler_errors == 0


def is_even(stats, unasked):
    """Return whether all received datagrams, and some more, are accounted for."""
    return stats.sent + stats.send_errors == stats.received + unasked


async def test_transport_continues_after_its_device_was_down(link, endpoint):
    left, right = link
    with right.bound(std, ("10.77.0.2", 0)) as plain:
        transport, protocol = await endpoint(sock=left.bound(socket, ("0.0.0.0", 0)))  # noqa: S104
        to = plain.getsockname()
        with Down(left, "left", LEFT):
            transport.sendto_many([b"x"] * 3, to)
            assert [error.errno for error in protocol.errors] == [errno.ENETUNREACH] * 3
        transport.sendto(b"after", to)
        assert plain.recvfrom(100)[0] == b"after"
        plain.sendto(b"answer", ("10.77.0.1", transport.get_extra_info("sockname")[1]))
        assert await protocol.received(1) == [b"answer"]


# The requested address, the one that remains without it, and the peer.
VANISHING = {
    "IPv4": ("10.77.0.22", "10.77.0.2", "10.77.0.1", "24"),
    "IPv6": ("fd77::22", "fd77::2", "fd77::1", "64"),
    "IPv4 on IPv6": ("10.77.0.22", "10.77.0.2", "10.77.0.1", "24"),
}


@pytest.fixture(params=VANISHING)
def vanishing(request):
    asked, other, own, length = VANISHING[request.param]
    anything = "::" if "IPv6" in request.param else "0.0.0.0"  # noqa: S104
    return anything, asked, other, own, f"{asked}/{length}"


@pytest.mark.parametrize("workers", [1, 2])
def test_server_replies_from_another_address_if_the_reply_source_is_gone(link, vanishing, workers):
    left, right = link
    anything, asked, other, own, address = vanishing
    with (
        serving(right, (anything, 0), workers=workers) as server,
        left.bound(std, (own, 0)) as plain,
    ):
        port = server.address[1]
        # The parent of workers remembers no peers, and sends from the address that the routes
        # select.
        for _ in range(3):
            plain.sendto(b"ping", (asked, port))
            assert plain.recvfrom(100)[1][:2] == (asked, port)
        peer = plain.getsockname()
        change_address(right, "del", address, "right")
        for data in (b"unasked", b"again"):
            server.sendto(data, (f"::ffff:{peer[0]}", *peer[1:]) if is_mapped(vanishing) else peer)
            assert plain.recvfrom(100)[0] == data
        plain.sendto(b"ping", (other, port))
        assert plain.recvfrom(100)[1][:2] == (other, port)
        change_address(right, "add", address, "right")
        plain.sendto(b"ping", (asked, port))
        assert plain.recvfrom(100)[1][:2] == (asked, port)
        assert server.stats().send_errors == 0


def is_mapped(vanishing):
    anything, asked, *_ = vanishing
    return ":" in anything and ":" not in asked


async def test_transport_replies_from_another_address_if_the_reply_source_is_gone(
    link, vanishing, endpoint
):
    left, right = link
    anything, asked, other, own, address = vanishing
    transport, protocol = await endpoint(sock=right.bound(socket, (anything, 0)))
    port = transport.get_extra_info("sockname")[1]
    with left.bound(std, (own, 0)) as plain:
        plain.sendto(b"ping", (asked, port))
        await protocol.received(1)
        peer = protocol.datagrams[0][1]
        transport.sendto(b"pong", peer)
        assert plain.recvfrom(100)[1][:2] == (asked, port)
        change_address(right, "del", address, "right")
        transport.sendto_many([b"one", b"two"], peer)
        assert [plain.recvfrom(100) for _ in range(2)] == [
            (data, plain_name(other, port)) for data in (b"one", b"two")
        ]
        assert protocol.errors == []
        change_address(right, "add", address, "right")
        plain.sendto(b"ping", (asked, port))
        await protocol.received(2)
        transport.sendto(b"pong", peer)
        assert plain.recvfrom(100)[1][:2] == (asked, port)


def plain_name(host, port):
    return (host, port, 0, 0) if ":" in host else (host, port)


def test_reply_source_is_not_forgotten_without_a_route_to_the_peer(link):
    left, right = link
    with serving(right) as server, left.bound(std, ("10.77.0.1", 0)) as plain:
        port = server.address[1]
        plain.sendto(b"ping", ("10.77.0.22", port))
        assert plain.recvfrom(100)[1] == ("10.77.0.22", port)
        with Down(right, "right", RIGHT):
            for _ in range(2):
                assert attempt(server.sendto, b"x", plain.getsockname()).errno in UNREACHABLE
        server.sendto(b"unasked", plain.getsockname())
        assert plain.recvfrom(100) == (b"unasked", ("10.77.0.22", port))


def test_reply_from_an_address_that_is_gone_raises(link, vanishing):
    left, right = link
    anything, asked, _, own, address = vanishing
    with right.bound(socket, (anything, 0)) as sock, left.bound(std, (own, 0)) as plain:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv_datagrams()
        sock.settimeout(DEADLINE)
        plain.sendto(b"ping", (asked, sock.getsockname()[1]))
        datagram = sock.recv_datagram()
        change_address(right, "del", address, "right")
        error = attempt(datagram.reply, b"pong")
        assert error.errno in UNREACHABLE
        assert f"from {asked}, the address it sent to" in str(error)
        assert "os error" not in str(error)
        change_address(right, "add", address, "right")
        assert datagram.reply(b"pong") == 4
        assert plain.recv(100) == b"pong"


def test_server_on_a_removed_address_serves_again_when_it_is_back(link):
    left, right = link
    with (
        serving(right, ("10.77.0.22", 0)) as server,
        left.bound(std, ("10.77.0.1", 0)) as plain,
    ):
        plain.connect(server.address)
        eventually(lambda: answered(plain))
        change_address(right, "del", "10.77.0.22/24", "right")
        assert not answered(plain)
        error = attempt(server.sendto, b"unasked", plain.getsockname())
        assert error.errno in UNREACHABLE
        change_address(right, "add", "10.77.0.22/24", "right")
        eventually(lambda: answered(plain))


CLIENTS = {
    "request": lambda client: [client.request(b"ping")],
    "request_many": lambda client: client.request_many([b"ping"] * 5),
}


@pytest.mark.parametrize("ask", CLIENTS.values(), ids=CLIENTS)
@pytest.mark.parametrize("match", [None, lambda request, reply: request == reply])
def test_client_continues_from_a_new_address(link, ask, match):
    left, right = link
    heard = []
    with serving(right, handler=lambda data, peer: heard.append(peer[0]) or data) as server:
        address = ("10.77.0.2", server.address[1])
        with tomada.Client(address, timeout=DEADLINE, match=match) as client:
            assert set(left.run(ask, client)) == {b"ping"}
            change_address(left, "del", "10.77.0.1/24", "left")
            change_address(left, "add", "10.77.0.5/24", "left")
            assert set(left.run(ask, client)) == {b"ping"}
            assert set(heard) == {"10.77.0.1", "10.77.0.5"}


@pytest.mark.parametrize("ask", CLIENTS.values(), ids=CLIENTS)
@pytest.mark.parametrize("match", [None, lambda request, reply: request == reply])
def test_client_raises_without_a_route_and_continues_when_there_is_one(link, ask, match):
    left, right = link
    with serving(right) as server:
        address = ("10.77.0.2", server.address[1])
        with tomada.Client(address, timeout=DEADLINE, match=match) as client:
            assert set(left.run(ask, client)) == {b"ping"}
            route = ["10.77.0.0/24", "dev", "left"]
            left.command("ip", "route", "del", *route)
            for _ in range(3):
                error = attempt(left.run, ask, client)
                assert error.errno == errno.ENETUNREACH
                assert f"10.77.0.2:{address[1]} (there is no route to this address" in str(error)
            left.command("ip", "route", "add", *route)
            assert set(left.run(ask, client)) == {b"ping"}


@pytest.mark.parametrize(
    ("kind", "number"), [("unreachable", errno.EHOSTUNREACH), ("prohibit", errno.EACCES)]
)
def test_send_over_a_refusing_route_raises_its_errno(link, kind, number):
    left, right = link
    with right.bound(std, ("10.77.0.2", 0)) as plain, left.open(socket) as sock:
        left.command("ip", "route", "add", kind, "10.77.0.2")
        assert attempt(sock.sendto, b"x", plain.getsockname()).errno == number
        assert attempt(sock.send_many, [b"x"], plain.getsockname()).errno == number
        left.command("ip", "route", "del", kind, "10.77.0.2")
        assert sock.send_many([b"x"], plain.getsockname()) == 1
        assert plain.recv(10) == b"x"


def test_removed_device_affects_only_its_own_link(network):
    left, _ = network.link()
    index = left.index("left")
    with left.open(socket, socket.AF_INET6) as sock:
        sock.sendto(b"x", ("fe80::2", 9, 0, index))
        left.command("ip", "link", "del", "left")
        error = attempt(sock.sendto, b"x", ("fe80::2", 9, 0, index))
        assert error.errno in {errno.ENODEV, *UNREACHABLE}
        sock.sendto(b"own", ("::1", sock.getsockname()[1]))
        assert sock.recv(10) == b"own"
