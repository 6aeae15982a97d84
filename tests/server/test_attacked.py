"""Servers under attack: nothing from outside ends a server or makes it unavailable to others."""

import contextlib
import itertools
import select
import socket as std

import pytest

import tomada
from attacks import ICMP_ERRORS, PAYLOADS, needs_root, send_from_port_0, send_icmp_errors
from families import length
from serving import ask, client, server
from support import eventually

pytestmark = pytest.mark.thread_unsafe(reason="it forks")

workers = pytest.mark.parametrize("workers", [1, 2])
takes = pytest.mark.parametrize("takes", ["data", "datagram", "batch"])

# More errors than a loop might tolerate before it blames itself.
MANY = length(300)
# A number of datagrams that fits into a receive buffer of the default size.
SOME = 100

HANDLERS = {
    "data": lambda data, _: data,
    "datagram": lambda datagram: datagram.data,
    "batch": lambda batch: [data for data, _ in batch],
}


def hear_errors(sock):
    """Make the kernel report failed datagrams of a socket (``IP_RECVERR``)."""
    if sock.family == std.AF_INET6:
        sock.setsockopt(std.IPPROTO_IPV6, 25, 1)
    else:
        sock.setsockopt(std.IPPROTO_IP, 11, 1)


@contextlib.contextmanager
def unreachable(kind, other):
    """Open a socket that receives only from ``other``; other senders get an ICMP error."""
    with kind.bound(std) as sock:
        sock.connect(other.getsockname())
        yield sock


@pytest.fixture(params=["inet", "inet6"])
def ip(request):
    return request.getfixturevalue(request.param)


def echo(data, _):
    return data


@workers
def test_peers_that_vanish_do_not_end_a_server(ip, workers, caplog):
    with ip.bound(std) as sock, ip.bound(std) as other, unreachable(ip, other) as peer:
        gone = peer.getsockname()
        hear_errors(sock)
        with server(echo, None, sock=sock, workers=workers) as serving:
            errors = 0
            for _ in range(MANY):
                with contextlib.suppress(ConnectionRefusedError):
                    sock.sendto(b"subscribed?", gone)
                # The next send would raise the error, because they share the socket.
                eventually(lambda: serving.stats().receive_errors > errors)  # noqa: B023
                errors = serving.stats().receive_errors
            assert ask(serving.address) == b"ping"
            assert errors >= MANY
            assert serving.stats().restarts == 0
    if workers == 1:
        host = f"[{gone[0]}]" if ":" in gone[0] else gone[0]
        assert f"a datagram sent to {host}:{gone[1]} did not arrive" in caplog.text


@workers
def test_errors_do_not_end_a_server_with_one_peer(inet, workers):
    with inet.bound(std) as sock, inet.bound(std) as other, unreachable(inet, other) as peer:
        sock.connect(peer.getsockname())
        with server(echo, None, sock=sock, workers=workers) as serving:
            errors = 0
            for _ in range(MANY):
                with contextlib.suppress(ConnectionRefusedError):
                    sock.send(b"there?")
                eventually(lambda: serving.stats().receive_errors > errors)  # noqa: B023
                errors = serving.stats().receive_errors
            peer.connect(sock.getsockname())
            peer.send(b"back again")
            assert peer.recv(100) == b"back again"
            assert serving.stats().restarts == 0


@needs_root
@workers
@pytest.mark.parametrize("is_connected", [False, True], ids=["any peer", "one peer"])
def test_flood_of_icmp_errors_of_every_kind_does_not_end_a_server(ip, workers, is_connected):
    with ip.bound(std) as peer, ip.bound(std) as sock:
        hear_errors(sock)
        if is_connected:
            sock.connect(peer.getsockname())
        with server(echo, None, sock=sock, workers=workers, gro=False) as serving:
            for _ in range(10):
                send_icmp_errors(serving.address, peer.getsockname(), MANY)
                peer.sendto(b"ping", serving.address)
                assert peer.recv(100) == b"ping"
            eventually(lambda: serving.stats().sent == 10)
            stats = serving.stats()
            assert (stats.received, stats.send_errors, stats.restarts) == (10, 0, 0)
            assert stats.receive_errors > 0
            # A full error queue would take memory from datagrams.
            eventually(lambda: not has_errors(sock))


@needs_root
@workers
def test_icmp_error_about_one_peer_does_not_cost_another_its_reply(ip, workers):
    def handle(data, address):
        send_icmp_errors(sock.getsockname(), address, 1, first=next(numbers))
        return data

    numbers = itertools.count()
    with ip.bound(std) as sock:
        hear_errors(sock)
        with server(handle, None, sock=sock, workers=workers) as serving:
            for _ in range(2 * len(ICMP_ERRORS[ip.family])):
                assert ask(serving.address) == b"ping"
            assert serving.stats().send_errors == 0


def has_errors(sock):
    """Return whether the error queue has entries."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


@takes
@workers
def test_server_replies_despite_payloads_of_any_kind(takes, workers):
    with server(HANDLERS[takes], takes=takes, workers=workers) as serving:
        for data in PAYLOADS:
            assert ask(serving.address, data) == data
        eventually(lambda: serving.stats().sent == len(PAYLOADS))
        assert serving.stats().received == len(PAYLOADS)


@needs_root
@takes
@workers
def test_server_replies_despite_senders_that_cannot_be_replied_to(takes, workers):
    with server(HANDLERS[takes], takes=takes, workers=workers, gro=False) as serving:
        for _ in range(20):
            send_from_port_0(serving.address, *PAYLOADS)
            assert ask(serving.address) == b"ping"
        sent = 20 * (len(PAYLOADS) + 1)

        def is_settled():
            stats = serving.stats()
            return (
                stats.received + stats.kernel_drops == sent
                and stats.sent + stats.send_errors == stats.received
            )

        eventually(is_settled)
        stats = serving.stats()
        assert (stats.sent, stats.handler_errors, stats.restarts) == (20, 0, 0)
        assert stats.send_errors > 0


@workers
def test_replies_that_are_too_long_affect_no_other_reply(workers):
    def handle(data, _):
        return bytes(65_508) if data == b"long" else data

    with server(handle, workers=workers) as serving, client(serving.address) as attacker:
        for _ in range(SOME):
            attacker.send(b"long")
        assert ask(serving.address) == b"ping"
        eventually(lambda: serving.stats().handler_errors == SOME)
        eventually(lambda: serving.stats().sent == 1)


@workers
def test_replies_that_the_guard_refuses_affect_no_other_reply(workers):
    guard = tomada.Guard(amplification=2)

    def handle(data, _):
        return data * 10 if data == b"more" else data

    with (
        server(handle, workers=workers, guard=guard) as serving,
        client(serving.address, local=("127.0.0.9", 0)) as attacker,
    ):
        for _ in range(SOME):
            attacker.send(b"more")
        assert ask(serving.address) == b"ping"
        stats = eventually(
            lambda: (
                (s := serving.stats()).received == SOME + 1
                and s.sent + s.send_errors == SOME + 1
                and s
            )
        )
        counts = eventually(
            lambda: (g := guard.stats()).over_amplification == stats.send_errors > 0 and g
        )
        assert (counts.admitted, counts.refused) == (stats.received, 0)


@workers
def test_replies_that_the_kernel_refuses_affect_no_other_reply(network, workers):
    namespace = network.namespace()
    rules = (
        "add table inet t",
        "add chain inet t out { type filter hook output priority 0; }",
        "add rule inet t out udp dport 7777 drop",
    )
    for rule in rules:
        namespace.command("nft", *rule.split())
    serving = server(echo, workers=workers)
    namespace.run(serving.start)
    try:
        with (
            namespace.bound(std, ("127.0.0.1", 7777)) as deaf,
            namespace.open(std) as honest,
        ):
            for _ in range(SOME):
                deaf.sendto(b"x", serving.address)
            honest.sendto(b"ping", serving.address)
            assert honest.recv(100) == b"ping"
            eventually(lambda: serving.stats().sent + serving.stats().send_errors == SOME + 1)
            assert (serving.stats().received, serving.stats().sent) == (SOME + 1, 1)
    finally:
        serving.stop()


@takes
def test_handler_that_returns_coroutines_is_reported_without_warnings(takes, caplog):
    async def answer(*_):
        return b"late"

    def handle(*given):  # a plain function: an async handler may be rejected immediately
        return answer(*given)

    with server(handle, takes=takes, gro=False) as serving, client(serving.address) as sock:
        for _ in range(3):
            sock.send(b"x")
        eventually(lambda: serving.stats().received == 3)
        eventually(lambda: serving.stats().handler_errors > 0)
    (error, *_) = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert isinstance(error, TypeError)
    assert "the handler returned a coroutine: write the handler with async def" in str(error)


@pytest.mark.parametrize("takes", ["data", "batch"])
def test_handler_that_returns_other_awaitables_is_reported_too(takes, caplog, monkeypatch):
    monkeypatch.setattr("tomada._reports.SECONDS_BETWEEN", 0.0)

    class Awaitable:
        def __await__(self):
            yield

    async def generate():
        yield b""

    results = iter([Awaitable(), generate()])
    with server(lambda *_: next(results), takes=takes) as serving, client(serving.address) as sock:
        for number in (1, 2):
            sock.send(b"x")
            eventually(lambda: serving.stats().handler_errors == number)  # noqa: B023
    assert "the handler returned an awaitable: return the reply itself" in caplog.text
    assert "the handler returned an asynchronous iterator: return the reply" in caplog.text
