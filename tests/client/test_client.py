"""The client, against plain ``socket`` servers that lose, delay, repeat and refuse."""

import errno
import queue
import socket as std
import time
from pathlib import Path

import pytest

import tomada
from answering import LONG, Lossy, Server, Slow, echo, same, silence
from support import DEADLINE, Call, RefusalError, eventually
from tomada._client import pool
from tomada._client.pool import LEAST_IDLE, MOST_IDLE

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")


def test_request_returns_the_reply(kind, match):
    with (
        Server(kind, lambda data: [data]) as server,
        tomada.Client(server.address, LONG, match=match) as client,
    ):
        for size in (0, 1, 1000, 9000, 60_000):
            assert client.request(b"x" * size) == b"x" * size


def test_request_accepts_any_bytes_like_object(inet):
    with Server(inet, echo) as server, tomada.Client(server.address, LONG) as client:
        assert client.request(bytearray(b"abc")) == b"abc"
        assert client.request(memoryview(b"abcdef")[::1][2:4]) == b"cd"


def test_request_to_another_process(peer, kind):
    server = peer(kind)
    server.ask("echo", count=3)
    with tomada.Client(server.address, LONG) as client:
        assert [client.request(b"%d" % number) for number in range(3)] == [b"0", b"1", b"2"]
    assert server.answer() is None


def test_request_is_retransmitted_if_lost(kind, match):
    with (
        Server(kind, Lossy(lambda number: number % 3 != 2)) as server,
        tomada.Client(server.address, LONG, retries=12, match=match) as client,
    ):
        for number in range(3):
            assert client.request(b"%d" % number) == b"%d" % number
    assert [data for data, _ in server.asked] == [b"0"] * 3 + [b"1"] * 3 + [b"2"] * 3


def test_request_without_reply_times_out_and_reports_the_attempts(inet, match):
    with (
        Server(inet, silence) as server,
        tomada.Client(server.address, 1.0, retries=3, match=match) as client,
    ):
        started = time.monotonic()
        host, port = server.address
        no_reply = rf"^no reply from {host}:{port}: 4 attempts in \d\.\d\d\d s$"
        with pytest.raises(TimeoutError, match=no_reply):
            client.request(b"hello?")
        assert time.monotonic() - started >= 1.0
        eventually(lambda: len(server.asked) == 4)
    assert {data for data, _ in server.asked} == {b"hello?"}


def test_request_without_retries_is_sent_once(inet):
    with Server(inet, silence) as server, tomada.Client(server.address, 0.02, 0) as client:
        for _ in range(2):
            with pytest.raises(TimeoutError, match="1 attempt in"):
                client.request(b"hello?")
        eventually(lambda: len(server.asked) == 2)


@pytest.mark.parametrize("is_many", [False, True])
def test_late_reply_is_not_returned_for_the_next_request(inet, is_many):
    late = queue.SimpleQueue()

    def answer(data):
        if data == b"first":
            late.put(data)
            return []
        # The late reply arrives just before the right one.
        return [] if data == b"last" else [data]

    with Server(inet, answer) as server, tomada.Client(server.address, 0.05, 1) as client:
        with pytest.raises(TimeoutError):
            client.request(b"first")
        for _, sender in list(server.asked):
            server.sock.sendto(b"late", sender)
        if is_many:
            assert client.request_many([b"second"] * 5, 2) == [b"second"] * 5
        else:
            assert client.request(b"second") == b"second"
        # Two attempts from one port, to which no further request is sent.
        ports = [sender for _, sender in server.asked]
        assert ports[0] == ports[1]
        assert ports[0] not in ports[2:]


def test_request_with_match_skips_a_late_reply(inet):
    def answer(data):
        return [b"reply to " + data[:-1] + b"%d" % (int(data[-1:]) - 1), b"reply to " + data]

    def matches(request, reply):
        return reply == b"reply to " + request

    with (
        Server(inet, answer) as server,
        tomada.Client(server.address, LONG, match=matches) as client,
    ):
        for number in range(1, 9):
            assert client.request(b"%d" % number) == b"reply to %d" % number
    # It could use one socket for all requests.
    assert len({sender for _, sender in server.asked}) == 1


@pytest.mark.parametrize("is_many", [False, True])
def test_second_reply_in_the_queue_is_discarded(inet, is_many):
    with (
        Server(inet, lambda data: [data, b"again " + data]) as server,
        tomada.Client(server.address, LONG) as client,
    ):
        ask = (lambda data: client.request_many([data])[0]) if is_many else client.request
        for number in range(20):
            assert ask(b"%d" % number) == b"%d" % number
            with std.socket(std.AF_INET, std.SOCK_DGRAM) as other:
                other.connect(server.address)
                other.settimeout(DEADLINE)
                other.send(b"x")
                other.recv(10)  # by now the second reply has been sent, too


def test_request_ignores_other_senders(inet, match):
    with (
        Server(inet, silence) as server,
        tomada.Client(server.address, LONG, match=match) as client,
        std.socket(std.AF_INET, std.SOCK_DGRAM) as stranger,
    ):
        call = Call(client.request, b"question")
        eventually(lambda: server.asked)
        _, sender = server.asked[0]
        stranger.sendto(b"question", sender)
        server.sock.sendto(b"question", sender)
        assert call.result() == b"question"


def test_request_ignores_datagrams_from_before_connect(inet, monkeypatch):
    real = pool.Connection.reconnect

    def after_a_stranger(self):
        _, port = self.getsockname()
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as stranger:
            stranger.sendto(b"from a stranger", ("127.0.0.1", port))
        real(self)

    monkeypatch.setattr(pool.Connection, "reconnect", after_a_stranger)
    with Server(inet, echo) as server, tomada.Client(server.address, LONG) as client:
        assert client.request(b"question") == b"question"


def test_request_succeeds_when_the_server_starts_later(kind, match):
    address = kind.address()
    with std.socket(kind.family, std.SOCK_DGRAM) as taken:
        taken.bind(address)
        address = taken.getsockname()
    if kind.name == "path":
        Path(address).unlink()
    with tomada.Client(address, LONG, retries=12, match=match) as client:
        call = Call(client.request, b"anybody?")
        call.until_it_waits()
        with Server(kind, echo, address):
            assert call.result() == b"anybody?"


@pytest.mark.parametrize("is_many", [False, True])
def test_request_succeeds_when_the_server_restarts(kind, match, is_many):
    with Server(kind, echo) as server:
        address = server.address
        client = tomada.Client(address, LONG, retries=12, match=match)
        ask = (lambda data: client.request_many([data] * 3)[0]) if is_many else client.request
        assert ask(b"before") == b"before"
    if kind.name == "path":
        Path(address).unlink()
    with client:
        call = Call(ask, b"between")
        call.until_it_waits()
        with Server(kind, echo, address):
            assert call.result() == b"between"
            assert ask(b"after") == b"after"


@pytest.mark.parametrize("is_many", [False, True])
def test_retry_refused_false_raises_at_once_when_the_server_dies(kind, match, is_many):
    with Server(kind, echo) as server:
        client = tomada.Client(server.address, LONG, match=match, retry_refused=False)
        ask = (lambda data: client.request_many([data] * 3)[0]) if is_many else client.request
        assert ask(b"before") == b"before"
    with client:
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                ask(b"after")
        if kind.name == "path":
            Path(server.address).unlink()
            with pytest.raises(FileNotFoundError):
                ask(b"after")


def test_refusal_is_the_cause_of_the_timeout(kind):
    with Server(kind, echo) as server:
        address = server.address
    with (
        tomada.Client(address, 1.0) as client,
        pytest.raises(TimeoutError, match="4 attempts") as caught,
    ):
        client.request(b"anybody?")
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_request_rejects_a_payload_too_long_for_a_datagram(inet, match):
    with Server(inet, echo) as server, tomada.Client(server.address, LONG, match=match) as client:
        with pytest.raises(OSError, match="Message too long") as caught:
            client.request(b"x" * 65_508)
        assert caught.value.errno == errno.EMSGSIZE
        assert client.request(b"x") == b"x"


@pytest.mark.parametrize("item", ["text", 5, None, (b"x", ("127.0.0.1", 1))])
def test_request_raises_type_error_for_objects_that_are_not_bytes_like(inet, match, item):
    with Server(inet, echo) as server, tomada.Client(server.address, LONG, match=match) as client:
        for _ in range(2):
            with pytest.raises(TypeError, match="bytes-like"):
                client.request(item)
            with pytest.raises(TypeError, match="bytes-like"):
                client.request_many([b"x", item])
            assert client.request(b"x") == b"x"


@pytest.mark.parametrize("is_many", [False, True])
def test_request_propagates_an_exception_of_match(inet, is_many):
    def refuse(*_):
        raise RefusalError("this", "that")

    with Server(inet, echo) as server, tomada.Client(server.address, LONG, match=refuse) as client:
        ask = (lambda data: client.request_many([data])) if is_many else client.request
        for _ in range(3):
            with pytest.raises(RefusalError):
                ask(b"x")
    assert len({sender for _, sender in server.asked}) == 1  # this did not leak a socket


def test_many_threads_send_requests_at_once(kind, match):
    def ask(client, name):
        for number in range(100):
            data = b"%d %d" % (name, number)
            assert client.request(data) == data

    with (
        Server(kind, echo) as server,
        tomada.Client(server.address, LONG, match=match) as client,
    ):
        calls = [Call(ask, client, name) for name in range(8)]
        for call in calls:
            call.result()
    # As many sockets as there were requests at once, and those that rest.
    most = 8 if match or kind.family == std.AF_UNIX else 8 + MOST_IDLE
    assert len({sender for _, sender in server.asked}) <= most


def test_one_thread_uses_one_socket_with_match(inet):
    with Server(inet, echo) as server, tomada.Client(server.address, LONG, match=same) as client:
        for _ in range(50):
            client.request(b"x")
    assert len({sender for _, sender in server.asked}) == 1


@pytest.mark.parametrize("is_many", [False, True])
def test_ports_rest_after_a_request_while_others_are_used(inet, is_many):
    with Server(inet, echo) as server, tomada.Client(server.address, 60, 0) as client:
        if is_many:
            client.request_many([b"x"] * 3 * LEAST_IDLE, 1)
        else:
            for _ in range(3 * LEAST_IDLE):
                client.request(b"x")
    ports = [sender for _, sender in server.asked]
    assert len(set(ports[:LEAST_IDLE])) == LEAST_IDLE
    for number, port in enumerate(ports):
        assert port not in ports[number + 1 : number + LEAST_IDLE]


def test_port_is_reused_after_resting_for_the_timeout(inet):
    with Server(inet, echo) as server, tomada.Client(server.address, 1e-1, 0, match=None) as client:
        client.request(b"x")
        client._pool.idle[0].used_at -= 1.0  # noqa: SLF001 - as if that was long ago
        client.request(b"x")
    assert len({sender for _, sender in server.asked}) == 1


@pytest.mark.parametrize("way", ["sample", "request", "request_many"])
def test_duplicate_reply_makes_ports_rest_for_longer(inet, way, monkeypatch):
    monkeypatch.setattr(pool, "WATCHED", 0)
    with Server(inet, echo) as server, tomada.Client(server.address, LONG) as client:
        inside = client._pool  # noqa: SLF001
        client.request(b"first")
        inside.adapt()
        assert inside.rest == 0.0
        (resting,) = inside.idle
        server.sock.sendto(b"first", server.asked[0][1])
        eventually(resting._is_readable)  # noqa: SLF001
        resting.used_at = float("-inf")
        inside._trim_due = float("-inf")  # noqa: SLF001 - as if that was long ago
        if way == "sample":
            inside.sample(0.001, time.monotonic())
        elif way == "request":
            assert client.request(b"second") == b"second"
        else:
            assert client.request_many([b"second"]) == [b"second"]
        inside.adapt()
        assert inside.rest > 0.0


SLOW = 0.08


@pytest.mark.parametrize("way", ["request", "request_many"])
def test_request_is_sent_once_to_a_server_that_takes_80_ms(inet, match, way):
    requests = [b"question %d" % number for number in range(20)]
    with Slow(inet, SLOW) as server, tomada.Client(server.address, match=match) as client:
        if way == "request":
            replies = [client.request(data) for data in requests]
        else:
            replies = client.request_many(requests, 4)
    assert replies == requests
    # On a busy machine some requests are retransmitted, but not all of them.
    assert len(server.asked) < 1.5 * len(requests)
