"""Many requests of a client at once, against plain ``socket`` servers."""

import errno

import pytest

import tomada
from answering import LONG, Lossy, Server, echo, silence
from support import Call, RefusalError, eventually

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")


@pytest.mark.parametrize("window", [1, 5, 32, 1000])
def test_request_many_returns_replies_in_order(kind, match, window):
    # More requests at once than any queue has room for.
    requests = [b"%d" % number * (number % 7) for number in range(300)]
    with (
        Server(kind, echo) as server,
        tomada.Client(server.address, LONG, retries=12, match=match) as client,
    ):
        for _ in range(2):
            assert client.request_many(iter(requests), window) == requests


@pytest.mark.parametrize("size", [9000, 60_000])
def test_request_many_long_requests_do_not_block_each_other(kind, match, size):
    requests = [b"%d" % number * (size // 2) for number in range(10, 40)]
    with (
        Server(kind, echo) as server,
        tomada.Client(server.address, LONG, retries=12, match=match) as client,
    ):
        assert client.request_many(requests) == requests


def test_request_many_matches_replies_out_of_order(inet, match):
    held = []

    def answer(data):
        held.append(data)
        return []

    with Server(inet, answer) as server, tomada.Client(server.address, LONG, match=match) as client:
        requests = [b"%d" % number for number in range(10)]
        call = Call(client.request_many, requests)
        eventually(lambda: len(server.asked) == 10)
        for data, sender in reversed(server.asked):
            server.sock.sendto(data, sender)
        assert call.result() == requests


def test_request_many_window_limits_the_requests_in_flight(inet, match):
    with (
        Server(inet, silence) as server,
        tomada.Client(server.address, LONG, match=match) as client,
    ):
        taken = []
        call = Call(client.request_many, (taken.append(n) or b"%d" % n for n in range(9)), 4)
        for number in range(9):
            under_way = min(4 + number, 9)
            eventually(lambda expected=under_way: len(server.asked) == expected)
            assert len(taken) == under_way
            data, sender = server.asked[number]
            server.sock.sendto(data, sender)
        assert call.result() == [b"%d" % number for number in range(9)]


def test_request_many_retransmits_lost_requests(kind, match):
    with (
        Server(kind, Lossy(lambda number: number % 10 == 3)) as server,
        tomada.Client(server.address, LONG, retries=12, match=match) as client,
    ):
        requests = [b"%d" % number for number in range(200)]
        assert client.request_many(requests, 8) == requests
        assert client.request_many(requests, 8) == requests


def test_request_many_raises_the_first_failure_with_its_index(inet, match):
    with (
        Server(inet, lambda data: [] if data == b"3" else [data]) as server,
        tomada.Client(server.address, 1.0, match=match) as client,
    ):
        requests = [b"%d" % number for number in range(6)]
        with pytest.raises(TimeoutError, match="4 attempts in") as caught:
            client.request_many(requests, 2)
        assert caught.value.index == 3
        assert client.request_many(requests[:3]) == requests[:3]


def test_request_many_can_return_exceptions(inet, match):
    def answer(data):
        return [] if data == b"lost" else [data]

    with (
        Server(inet, answer) as server,
        tomada.Client(server.address, 0.2, match=match) as client,
    ):
        requests = [b"a", b"lost", b"b", b"x" * 65_508, b"c", b"lost"]
        results = client.request_many(requests, 2, errors="return")
    assert [results[place] for place in (0, 2, 4)] == [b"a", b"b", b"c"]
    for place in (1, 5):
        assert isinstance(results[place], TimeoutError)
        assert results[place].args[0].startswith("no reply from 127.0.0.1:")
    assert results[3].errno == errno.EMSGSIZE


def test_request_many_can_return_refusals(inet, match):
    with Server(inet, echo) as server:
        address = server.address
    with tomada.Client(address, LONG, match=match, retry_refused=False) as client:
        results = client.request_many([b"x"] * 5, 2, errors="return")
    assert [type(result) for result in results] == [ConnectionRefusedError] * 5


def test_request_many_of_no_requests_is_empty(inet, match):
    with Server(inet, echo) as server, tomada.Client(server.address, match=match) as client:
        assert client.request_many([]) == []


def test_request_many_propagates_an_exception_of_the_iterable(inet, match):
    def requests():
        yield b"x"
        raise RefusalError("this", "that")

    with Server(inet, echo) as server, tomada.Client(server.address, LONG, match=match) as client:
        with pytest.raises(RefusalError):
            client.request_many(requests())
        assert client.request_many([b"y"]) == [b"y"]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "complaint"),
    [
        ((0,), {}, ValueError, "window must be 1 or more, not 0"),
        (("5",), {}, TypeError, "window must be an int, not '5'"),
        ((), {"errors": "ignore"}, ValueError, "errors must be 'raise' or 'return', not 'ignore'"),
    ],
)
def test_request_many_rejects_invalid_windows(inet, arguments, options, error, complaint):
    with (
        Server(inet, echo) as server,
        tomada.Client(server.address) as client,
        pytest.raises(error, match=complaint),
    ):
        client.request_many([b"x"], *arguments, **options)
