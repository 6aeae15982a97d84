"""``Client(key=)``: a request and its reply have the same key."""

import pytest

from answering import LONG, Server, echo
from tomada import Client


def number(data):
    return data[:4]


def question(index):
    return index.to_bytes(4, "big") + b" question"


def test_request_takes_the_reply_with_its_key(kind):
    with (
        Server(kind, lambda data: [question(77), number(data) + b" reply"]) as server,
        Client(server.address, LONG, key=number) as client,
    ):
        for index in range(5):
            assert client.request(question(index)) == number(question(index)) + b" reply"


def test_request_many_finds_replies_by_key(kind):
    with Server(kind, echo) as server, Client(server.address, LONG, key=number) as client:
        asked = [question(index) for index in range(500)]
        assert client.request_many(asked, 50) == asked
    assert len({sender for _, sender in server.asked}) == 1


def test_request_many_calls_the_key_once_for_each_datagram(inet):
    calls = []

    def key(data):
        calls.append(data)
        return number(data)

    with Server(inet, echo) as server, Client(server.address, LONG, 0, key=key) as client:
        client.request_many([question(index) for index in range(100)], 32)
    assert len(calls) == 200


def test_two_requests_with_one_key_raise(inet):
    with Server(inet, echo) as server, Client(server.address, LONG, key=number) as client:
        with pytest.raises(ValueError, match=r"another request with the key .* is in flight"):
            client.request_many([question(1), question(1)])
        assert client.request_many([question(1), question(1)], 1) == [question(1)] * 2


@pytest.mark.parametrize("way", ["request", "request_many"])
def test_key_that_raises(inet, way):
    def moody(data):
        if data.endswith(b"reply"):
            raise KeyError("moody")
        return number(data)

    with (
        Server(inet, lambda data: [data + b"reply"]) as server,
        Client(server.address, LONG, key=moody) as client,
        pytest.raises(KeyError, match="moody"),
    ):
        client.request(question(1)) if way == "request" else client.request_many([question(1)])


def test_request_many_with_a_key_that_is_not_hashable(inet):
    with (
        Server(inet, echo) as server,
        Client(server.address, LONG, key=bytearray) as client,
        pytest.raises(TypeError, match="unhashable"),
    ):
        client.request_many([question(1)])


@pytest.mark.parametrize("way", ["request", "request_many"])
def test_server_that_repeats_its_replies_and_sends_others(inet, way):
    with (
        Server(inet, lambda data: [question(7777), data, data]) as server,
        Client(server.address, LONG, key=number) as client,
    ):
        for start in range(0, 100, 10):
            asked = [question(start + index) for index in range(10)]
            if way == "request":
                assert [client.request(one) for one in asked] == asked
            else:
                assert client.request_many(asked) == asked


@pytest.mark.parametrize(("count", "rejected"), [(1, "1 datagram"), (2, "2 datagrams")])
def test_timeout_says_that_the_server_sent_other_replies(inet, count, rejected):
    with (
        Server(inet, lambda _: [question(77)] * count) as server,
        Client(server.address, 2, retries=0, key=number) as client,
        pytest.raises(TimeoutError, match=rf"1 attempt in .* s; match or key rejected {rejected}$"),
    ):
        client.request(question(1))


def test_key_and_match_exclude_each_other():
    with pytest.raises(ValueError, match="match= or key=, not both"):
        Client(("127.0.0.1", 1), key=number, match=lambda *_: True)
    with pytest.raises(TypeError, match="key must be a function"):
        Client(("127.0.0.1", 1), key=b"x")


@pytest.mark.parametrize("name", ["match", "key"])
def test_coroutine_functions_are_not_accepted(name):
    async def later(*_):
        """Return too late."""

    with pytest.raises(TypeError, match=f"{name} must be a function"):
        Client(("127.0.0.1", 1), **{name: later})
