"""Replies and errors that arrive together, in one batch of a receive."""

import socket as std
import struct
import time

import pytest

import tomada
from answering import LONG, Server, echo, silence
from support import eventually
from tomada._client.one_socket import Matched
from tomada._client.own_sockets import Separate

pytestmark = pytest.mark.thread_unsafe(reason="it looks inside a client")

# asm-generic/socket.h: the memory of a socket, first that of its receive queue.
SO_MEMINFO = 55
# The memory that a small datagram takes there, at least.
SMALL = 768


class InterruptError(BaseException):
    """An exception that is not the request's, as from a signal handler or pytest.fail()."""


def match(request, reply):
    if reply == b"interrupt":
        raise InterruptError
    if reply == b"mistake":
        raise ValueError(reply)
    return request == reply


@pytest.fixture
def server(inet):
    with Server(inet, silence) as server:
        yield server


@pytest.fixture
def client(server):
    with tomada.Client(server.address, LONG) as client:
        yield client


def started(kind, client, requests):
    """Return requests in flight, and the dictionary of replies."""
    inside = (client._pool, client._retry, client._address)  # noqa: SLF001
    in_flight = kind(match, *inside) if kind is Matched else kind(*inside)
    replies = {}
    in_flight.answered = replies.update
    in_flight.start(dict(enumerate(requests)), time.monotonic())
    return in_flight, replies


def receive(in_flight, server, datagrams):
    """Receive datagrams of the server in one batch."""
    _, sender = server.asked[-1]
    for data in datagrams:
        server.sock.sendto(data, sender)
    # On a busy machine, the kernel delivers later.
    eventually(lambda: queued(in_flight.connection) >= len(datagrams))
    in_flight.receive(time.monotonic() + LONG)


def queued(sock):
    """Return how many small datagrams a socket's queue contains."""
    return struct.unpack_from("I", sock.getsockopt(std.SOL_SOCKET, SO_MEMINFO, 36))[0] // SMALL


def test_interruption_loses_no_reply_of_its_batch(client, server):
    in_flight, replies = started(Matched, client, [b"0", b"1", b"2"])
    eventually(lambda: len(server.asked) == 3)
    with pytest.raises(InterruptError):
        receive(in_flight, server, [b"0", b"interrupt", b"1"])
    assert replies == {0: b"0"}
    assert list(in_flight.requests) == [1, 2]
    receive(in_flight, server, [b"2", b"1"])  # the datagrams behind it may be lost
    assert replies == {0: b"0", 1: b"1", 2: b"2"}
    assert in_flight.next_due() == float("inf")
    in_flight.close()


def test_interrupted_requests_are_retransmitted(client, server):
    in_flight, replies = started(Matched, client, [b"0", b"1"])
    eventually(lambda: len(server.asked) == 2)
    with pytest.raises(InterruptError):
        receive(in_flight, server, [b"0", b"interrupt"])
    time.sleep(max(in_flight.next_due() - time.monotonic(), 0))
    in_flight.make_due_attempts()
    eventually(lambda: len(server.asked) == 3)
    assert server.asked[-1][0] == b"1"
    receive(in_flight, server, [b"1"])
    assert replies == {0: b"0", 1: b"1"}
    in_flight.close()


@pytest.mark.parametrize("after", [[], [b"1"]])
def test_cause_is_the_last_exception_since_the_last_reply(client, server, after):
    in_flight, replies = started(Matched, client, [b"0", b"1", b"2"])
    eventually(lambda: len(server.asked) == 3)
    in_flight.mistaken = lambda _: None
    receive(in_flight, server, [b"0", b"mistake", *after])
    assert list(replies.values()) == [b"0", *after]
    assert isinstance(in_flight.refusal, ValueError) == (not after)
    assert in_flight.rejected == 1
    in_flight.close()


def test_match_is_not_called_again_after_it_has_raised(client, server):
    in_flight, replies = started(Matched, client, [b"0", b"1"])
    eventually(lambda: len(server.asked) == 2)
    with pytest.raises(ValueError, match="mistake"):
        receive(in_flight, server, [b"0", b"mistake", b"interrupt", b"1"])
    assert replies == {0: b"0"}
    in_flight.close()


def test_refusal_behind_a_reply_remains_the_cause(client, server):
    in_flight, replies = started(Separate, client, [b"0"])
    eventually(lambda: len(server.asked) == 1)
    server.sock.sendto(b"reply", server.asked[0][1])
    server.end()
    in_flight.start({1: b"1"}, time.monotonic())  # refused
    in_flight.receive(time.monotonic() + LONG)
    assert replies == {0: b"reply"}
    assert isinstance(in_flight.refusal, ConnectionRefusedError)
    in_flight.close()


@pytest.mark.parametrize("window", [1, 3, 32])
def test_wrong_type_has_the_index_of_its_request(inet, window):
    requests = [b"%d" % number for number in range(8)]
    requests[5] = (b"data", ("127.0.0.1", 9))
    with Server(inet, echo) as server, tomada.Client(server.address, LONG, match=match) as client:
        with pytest.raises(TypeError, match="not 'tuple'") as caught:
            client.request_many(requests, window)
        assert caught.value.index == 5
        assert client.request_many(requests[:5], window) == requests[:5]
