"""Limits of guards: rates, a ceiling, and the amplification limit."""

import time

import pytest

import tomada
from guards import FAR, NEAR, guarded
from support import eventually
from tomada import socket
from traffic import payloads

# So low that no token is added while a test runs.
HARDLY = 0.001


def test_rate_each_source_has_its_own_burst():
    guard = tomada.Guard(rate=HARDLY, burst=3)
    with guarded(guard) as (sock, send):
        for _ in range(5):
            send(b"near", NEAR)
            send(b"far", FAR)
        assert payloads(sock) == [b"near", b"far"] * 3
        assert (guard.stats().over_rate, guard.stats().refused) == (4, 4)
        assert guard.stats().admitted == 6


def test_rate_adds_tokens_over_time():
    with guarded(tomada.Guard(rate=200, burst=1)) as (sock, send):
        send(b"x", NEAR)
        assert sock.recv(1) == b"x"
        sock.setblocking(False)

        def again():
            send(b"y", NEAR)
            return payloads(sock)

        assert eventually(again) == [b"y"]


def test_rate_limits_datagrams_over_time():
    guard = tomada.Guard(rate=1000, burst=10)
    with guarded(guard) as (sock, send):
        started = time.monotonic()
        for _ in range(300):
            send(b"x", NEAR)
            payloads(sock)
        elapsed = time.monotonic() - started
        assert 10 <= guard.stats().admitted <= 10 + 1000 * elapsed + 1


@pytest.mark.parametrize("prefixes", [(24, 64), (8, 0)])
def test_rate_source_may_be_a_network(prefixes):
    with guarded(tomada.Guard(rate=HARDLY, burst=1, prefixes=prefixes)) as (sock, send):
        for host in ("127.0.0.1", "127.0.0.2", "127.0.1.1", "127.0.1.255"):
            send(host.encode(), host)
        expected = [b"127.0.0.1", b"127.0.1.1"] if prefixes[0] == 24 else [b"127.0.0.1"]
        assert payloads(sock) == expected


def test_ceiling_reserves_half_of_its_burst_for_known_peers():
    guard = tomada.Guard(ceiling=HARDLY)
    with guarded(guard) as (sock, send):
        for number in range(40):
            send(b"x", f"127.0.1.{number}")
        assert len(payloads(sock)) == 32
        guard.validate("127.0.1.39")
        for _ in range(40):
            send(b"known", "127.0.1.39")
        assert payloads(sock) == [b"known"] * 32
        assert guard.stats().over_ceiling == 16


@pytest.fixture
def asked():
    """Provide a guarded socket, and the address of a plain one that has sent it 100 bytes."""
    guard = tomada.Guard(amplification=3)
    with guarded(guard) as (sock, _), guarded() as (peer, _):
        peer.sendto(bytes(100), sock.getsockname())
        assert sock.recv(100) == bytes(100)
        yield sock, peer, guard


SEND = {
    "sendto": lambda sock, data, to: sock.sendto(data, to),
    "sendmsg": lambda sock, data, to: sock.sendmsg([data], [], 0, to),
    "send_many": lambda sock, data, to: sock.send_many([data], to),
}


@pytest.mark.parametrize("send", SEND.values(), ids=SEND)
def test_amplification_limits_bytes_sent_to_a_peer(asked, send):
    sock, peer, guard = asked
    send(sock, bytes(200), peer.getsockname())
    with pytest.raises(PermissionError, match="amplification limit") as caught:
        send(sock, bytes(101), peer.getsockname())
    assert caught.value.errno == 1
    send(sock, bytes(100), peer.getsockname())
    send(sock, b"", peer.getsockname())
    assert [len(data) for data in payloads(peer)] == [200, 100, 0]
    assert guard.stats().over_amplification == 1
    assert guard.stats().refused == 0
    assert sock.stats().sent == 3


def test_amplification_sends_nothing_to_unknown_peers(asked):
    sock, _, guard = asked
    with guarded() as (stranger, _), pytest.raises(PermissionError):
        sock.sendto(b"x", (FAR, stranger.getsockname()[1]))
    guard.validate(FAR)
    sock.sendto(b"x", (FAR, 9))


@pytest.mark.parametrize("as_tuple", [True, False])
def test_validate_allows_sending_anything_to_a_peer(asked, as_tuple):
    sock, peer, guard = asked
    guard.validate(peer.getsockname() if as_tuple else NEAR)
    for _ in range(10):
        sock.sendto(bytes(1000), peer.getsockname())
    assert len(payloads(peer)) == 10


def test_validate_rejects_host_names():
    with pytest.raises(ValueError, match="must be numeric"):
        tomada.Guard(amplification=3).validate("localhost")


def test_amplification_send_many_sends_the_datagrams_within_the_limit(asked):
    sock, peer, guard = asked
    items = [bytes(100), bytes(150), bytes(100), bytes(50)]
    with pytest.raises(PermissionError, match=r"datagram 2 to .*; 2 sent before it") as caught:
        sock.send_many(items, peer.getsockname())
    assert (caught.value.index, caught.value.sent) == (2, 2)
    assert [len(data) for data in payloads(peer)] == [100, 150]
    failures = sock.send_many(items, peer.getsockname(), errors="continue")
    assert [(index, type(error)) for index, error in failures] == [
        (0, PermissionError),
        (1, PermissionError),
        (2, PermissionError),
    ]
    assert [len(data) for data in payloads(peer)] == [50]
    assert guard.stats().over_amplification == 4


def test_amplification_unsent_datagrams_do_not_use_the_budget(asked):
    sock, peer, _ = asked
    to = peer.getsockname()
    with pytest.raises(OSError, match="Invalid argument"):
        sock.sendmsg([bytes(300)], [(socket.SOL_UDP, socket.UDP_SEGMENT, b"bad")], 0, to)
    assert sock.sendto(bytes(300), to) == 300


def test_amplification_does_not_limit_a_connected_peer():
    with guarded(tomada.Guard(amplification=3)) as (sock, _), guarded() as (peer, _):
        sock.connect(peer.getsockname())
        assert sock.send(bytes(1000)) == 1000
        assert sock.send_many([b"x"] * 5) == 5


def test_amplification_counts_replies(asked):
    sock, peer, _ = asked
    peer.sendto(bytes(10), sock.getsockname())
    datagram = sock.recv_datagram()
    with pytest.raises(PermissionError):
        datagram.reply(bytes(331))
    assert datagram.reply(bytes(330)) == 330


def test_guard_repr_has_its_counters():
    guard = tomada.Guard(max_size=1)
    with guarded(guard) as (sock, send):
        send(b"x", NEAR)
        send(b"xx", NEAR)
        assert payloads(sock) == [b"x"]
    assert repr(guard) == "<tomada.Guard: 1 admitted, 1 refused>"
    expected = (
        "GuardStats(admitted=1, refused=1, denied=0, oversized=1, over_rate=0, over_ceiling=0, "
        "over_amplification=0)"
    )
    assert repr(guard.stats()) == expected
