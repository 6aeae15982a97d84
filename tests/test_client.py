"""The client, against plain ``socket`` servers that lose, delay, repeat and refuse."""

import errno
import queue
import re
import socket as std
import time
from pathlib import Path

import pytest

import tomada
from answering import LONG, Lossy, Server, Slow, echo, same, silence
from support import DEADLINE, Call, RefusalError, eventually
from tomada._client import pool
from tomada._client.pool import LEAST_IDLE, MOST_IDLE


def test_a_request_gets_its_reply(kind, match):
    with (
        Server(kind, lambda data: [data]) as server,
        tomada.Client(server.address, LONG, match=match) as client,
    ):
        for size in (0, 1, 1000, 9000, 60_000):
            assert client.request(b"x" * size) == b"x" * size


def test_a_request_may_be_any_bytes_like_object(inet):
    with Server(inet, echo) as server, tomada.Client(server.address, LONG) as client:
        assert client.request(bytearray(b"abc")) == b"abc"
        assert client.request(memoryview(b"abcdef")[::1][2:4]) == b"cd"


def test_a_reply_from_another_process(peer, kind):
    server = peer(kind)
    server.ask("echo", count=3)
    with tomada.Client(server.address, LONG) as client:
        assert [client.request(b"%d" % number) for number in range(3)] == [b"0", b"1", b"2"]
    assert server.answer() is None


def test_what_is_lost_is_asked_for_again(kind, match):
    with (
        Server(kind, Lossy(lambda number: number % 3 != 2)) as server,
        tomada.Client(server.address, LONG, retries=12, match=match) as client,
    ):
        for number in range(3):
            assert client.request(b"%d" % number) == b"%d" % number
    assert [data for data, _ in server.asked] == [b"0"] * 3 + [b"1"] * 3 + [b"2"] * 3


def test_no_reply_ends_at_the_deadline_and_says_how_often_it_was_asked(inet, match):
    with (
        Server(inet, silence) as server,
        tomada.Client(server.address, 0.05, retries=3, match=match) as client,
    ):
        started = time.monotonic()
        host, port = server.address
        no_reply = rf"^no reply from {host}:{port}: (\d) attempts? in \d+\.\d\d\d s$"
        with pytest.raises(TimeoutError, match=no_reply) as caught:
            client.request(b"hello?")
        assert time.monotonic() - started >= 0.05
        # All four, unless the machine is busy.
        attempts = int(re.match(no_reply, str(caught.value))[1])
        assert 1 <= attempts <= 4
        eventually(lambda: len(server.asked) == attempts)
    assert {data for data, _ in server.asked} == {b"hello?"}


def test_without_retries_it_is_asked_once(inet):
    with Server(inet, silence) as server, tomada.Client(server.address, 0.02, 0) as client:
        for _ in range(2):
            with pytest.raises(TimeoutError, match="1 attempt in"):
                client.request(b"hello?")
        eventually(lambda: len(server.asked) == 2)


@pytest.mark.parametrize("is_many", [False, True])
def test_a_late_reply_is_not_the_next_ones(inet, is_many):
    late = queue.SimpleQueue()

    def answer(data):
        if data == b"first":
            late.put(data)
            return []
        # What is late comes just before the answer.
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
        # Two attempts from one port, at which nobody asks again.
        ports = [sender for _, sender in server.asked]
        assert ports[0] == ports[1]
        assert ports[0] not in ports[2:]


def test_with_match_a_late_reply_is_passed_over(inet):
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
    # It could go on with one socket.
    assert len({sender for _, sender in server.asked}) == 1


@pytest.mark.parametrize("is_many", [False, True])
def test_a_second_reply_that_has_come_is_thrown_away(inet, is_many):
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
                other.recv(10)  # now the second reply has left, too


def test_strangers_are_not_heard(inet, match):
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


def test_a_stranger_from_before_the_connection_is_not_heard(inet, monkeypatch):
    real = pool.Connection.reconnect

    def after_a_stranger(self):
        _, port = self.getsockname()
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as stranger:
            stranger.sendto(b"from a stranger", ("127.0.0.1", port))
        real(self)

    monkeypatch.setattr(pool.Connection, "reconnect", after_a_stranger)
    with Server(inet, echo) as server, tomada.Client(server.address, LONG) as client:
        assert client.request(b"question") == b"question"


def test_a_server_that_comes_later_is_found(kind, match):
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
def test_a_server_that_dies_and_comes_back_is_found(kind, match, is_many):
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
def test_a_server_that_dies_is_said_at_once_when_asked_for(kind, match, is_many):
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


def test_a_refusal_is_the_timeouts_cause(kind):
    with Server(kind, echo) as server:
        address = server.address
    with (
        tomada.Client(address, 0.05) as client,
        pytest.raises(TimeoutError, match=r"[1-4] attempts?") as caught,
    ):
        client.request(b"anybody?")
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_what_no_datagram_can_hold_is_refused_at_once(inet, match):
    with Server(inet, echo) as server, tomada.Client(server.address, LONG, match=match) as client:
        with pytest.raises(OSError, match="Message too long") as caught:
            client.request(b"x" * 65_508)
        assert caught.value.errno == errno.EMSGSIZE
        assert client.request(b"x") == b"x"


@pytest.mark.parametrize("item", ["text", 5, None, (b"x", ("127.0.0.1", 1))])
def test_what_is_no_datagram_is_a_type_error(inet, match, item):
    with Server(inet, echo) as server, tomada.Client(server.address, LONG, match=match) as client:
        for _ in range(2):
            with pytest.raises(TypeError, match="bytes-like"):
                client.request(item)
            with pytest.raises(TypeError, match="bytes-like"):
                client.request_many([b"x", item])
            assert client.request(b"x") == b"x"


@pytest.mark.parametrize("is_many", [False, True])
def test_an_exception_of_match_goes_to_the_caller(inet, is_many):
    def refuse(*_):
        raise RefusalError("this", "that")

    with Server(inet, echo) as server, tomada.Client(server.address, LONG, match=refuse) as client:
        ask = (lambda data: client.request_many([data])) if is_many else client.request
        for _ in range(3):
            with pytest.raises(RefusalError):
                ask(b"x")
    assert len({sender for _, sender in server.asked}) == 1  # no socket was lost over it


def test_many_threads_ask_at_once(kind, match):
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
def test_a_port_rests_after_a_request_while_others_are_used(inet, is_many):
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


def test_a_port_that_has_rested_for_the_timeout_is_used_again(inet):
    with Server(inet, echo) as server, tomada.Client(server.address, 1e-1, 0, match=None) as client:
        client.request(b"x")
        client._pool.idle[0].used_at -= 1.0  # noqa: SLF001 - as if that was long ago
        client.request(b"x")
    assert len({sender for _, sender in server.asked}) == 1


@pytest.mark.parametrize("way", ["sample", "request", "request_many"])
def test_a_duplicate_makes_a_client_let_ports_rest_for_longer(inet, way, monkeypatch):
    monkeypatch.setattr(pool, "WATCHED", 0)
    with Server(inet, echo) as server, tomada.Client(server.address, LONG) as client:
        inside = client._pool  # noqa: SLF001
        client.request(b"first")
        inside.adapt()
        assert inside.rest == 0.0
        (resting,) = inside.idle
        server.sock.sendto(b"first", server.asked[0][1])
        eventually(lambda: resting.poll(0))
        resting.used_at = float("-inf")  # as if that was long ago
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
def test_a_server_that_takes_80_ms_is_asked_once(inet, match, way):
    requests = [b"question %d" % number for number in range(20)]
    with Slow(inet, SLOW) as server, tomada.Client(server.address, match=match) as client:
        if way == "request":
            replies = [client.request(data) for data in requests]
        else:
            replies = client.request_many(requests, 4)
    assert replies == requests
    # A machine that is held up doubles some, and not each.
    assert len(server.asked) < 1.5 * len(requests)
