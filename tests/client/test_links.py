"""A client's requests over a lossy link: a network namespace whose filter drops at random."""

import contextlib
import math
import socket as std
import threading

import pytest

import tomada
from links import Namespace, drop, why_not
from support import Call

LOSS = 0.3
WORKERS, REQUESTS, RETRIES = 8, 25, 2

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def serve(server):
    while True:
        data, peer = server.recvfrom(1 << 16)
        if data == b"end":
            return
        server.sendto(data, peer)


@pytest.fixture
def lossy():
    """Provide a namespace that loses some received datagrams, with a plain echo server."""
    with contextlib.closing(Namespace()) as namespace:
        drop(namespace, f"input udp dport 1-65535 numgen random mod 100 < {100 * LOSS:.0f} drop")
        with namespace.bound(std, ("127.0.0.1", 0)) as server:
            server.settimeout(None)
            thread = threading.Thread(target=serve, args=[server])
            thread.start()
            yield namespace, server.getsockname()
            with namespace.open(std) as last:
                while thread.is_alive():
                    last.sendto(b"end", server.getsockname())
                    thread.join(0.01)


def ask(address):
    """Send requests, and return how many were answered in time."""
    answered = 0
    with tomada.Client(address, timeout=0.7, retries=RETRIES) as client:
        for number in range(REQUESTS):
            with contextlib.suppress(TimeoutError):
                assert client.request(b"%d" % number) == b"%d" % number
                answered += 1
    return answered


def test_share_of_answered_requests_matches_the_calculation(lossy):
    namespace, address = lossy
    calls = [Call(namespace.run, ask, address) for _ in range(WORKERS)]
    answered = sum(call.result() for call in calls)
    # An attempt succeeds if neither it nor the reply is lost.
    total, success = WORKERS * REQUESTS, 1 - (1 - (1 - LOSS) ** 2) ** (1 + RETRIES)
    deviation = math.sqrt(total * success * (1 - success))
    assert abs(answered - total * success) < 6 * deviation
    assert answered < total


def test_timeout_with_room_for_retries_is_met(lossy):
    namespace, address = lossy

    def ask_patiently():
        with tomada.Client(address, timeout=5, retries=49, backoff=1.0) as client:
            return [client.request(b"%d" % number) for number in range(20)]

    # The probability that one of 20 fails is negligible.
    assert namespace.run(ask_patiently) == [b"%d" % number for number in range(20)]
