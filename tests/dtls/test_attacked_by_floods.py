"""A server that is flooded with the first messages of clients from forged addresses."""

import contextlib
import random
import socket as std
import threading

import pytest

from dtls_child import ServerChild
from dtls_pairs import first_message, psk_client
from families import LONG
from support import Call
from tomada import Client

pytestmark = [
    pytest.mark.thread_unsafe(reason="it measures the memory of a process"),
]

MESSAGES = 1_000_000 if LONG else 10_000
CLIENTS = 100 if LONG else 5
SENDERS = 64
MOST_GROWTH = 1 << 20
# Where the random number of a ClientHello begins, after the headers of record and message.
RANDOM = 13 + 12 + 2


@pytest.fixture
def senders():
    """Open sockets at many addresses of loopback."""
    numbers = random.Random(1)  # noqa: S311 - addresses, not secrets
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(SENDERS):
            sock = stack.enter_context(std.socket(std.AF_INET, std.SOCK_DGRAM))
            sock.bind((f"127.{numbers.randrange(1, 255)}.{numbers.randrange(256)}.1", 0))
            sock.settimeout(0.05)
            sockets.append(sock)
        yield sockets


def flood(server, senders, messages):
    """Send first messages until the server has answered them; return bytes sent and received."""
    hello = bytearray(first_message())
    sent = received = number = 0
    goal = server.state()["cookies_sent"] + messages
    while server.state()["cookies_sent"] < goal:
        for _ in range(messages // SENDERS // 20 + 1):
            for sock in senders:
                hello[RANDOM : RANDOM + 8] = number.to_bytes(8)  # another client each time
                number += 1
                sent += sock.sendto(hello, server.address)
            for sock in senders:
                with contextlib.suppress(TimeoutError):  # some are lost
                    received += len(sock.recv(2000))
    return sent, received


@pytest.mark.timeout(1200)
def test_server_answers_a_flood_with_less_and_keeps_nothing(senders):
    with ServerChild() as server:
        with Client(server.address, timeout=60, dtls=psk_client()) as client:
            assert client.request(b"before") == b"BEFORE"
        flood(server, senders, 1000)  # so that memory that is needed once is there
        before = server.state()

        sent, received = flood(server, senders, MESSAGES)
        assert 0 < received <= sent

        after = server.state()
        assert after["memory"] - before["memory"] <= MOST_GROWTH
        assert (after["handshakes"], after["failed"]) == (0, 0)
        assert after["established"] == before["established"]


def test_server_serves_clients_during_a_flood(senders):
    with ServerChild() as server:
        stop = threading.Event()

        def flood_on():
            while not stop.is_set():
                flood(server, senders, 1000)

        flooding = Call(flood_on)
        try:
            for _ in range(CLIENTS):
                with Client(server.address, timeout=60, dtls=psk_client()) as client:
                    assert client.request(b"meanwhile") == b"MEANWHILE"
        finally:
            stop.set()
            flooding.result()
        assert server.state()["established"] == CLIENTS
