"""A client's requests over a link that loses datagrams at random."""

import contextlib
import math

import pytest

import tomada
from answering import Server, echo
from support import Call
from tomada.testing import impaired

LOSS = 0.3
WORKERS, REQUESTS, RETRIES = 8, 25, 2


@pytest.fixture
def lossy(inet):
    """Provide the address of a plain echo server behind a link that loses datagrams."""
    with Server(inet, echo) as server, impaired(server.address, loss=LOSS) as link:
        yield link.address


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
    calls = [Call(ask, lossy) for _ in range(WORKERS)]
    answered = sum(call.result() for call in calls)
    # An attempt succeeds if neither it nor the reply is lost.
    total, success = WORKERS * REQUESTS, 1 - (1 - (1 - LOSS) ** 2) ** (1 + RETRIES)
    deviation = math.sqrt(total * success * (1 - success))
    assert abs(answered - total * success) < 6 * deviation
    assert answered < total


def test_timeout_with_room_for_retries_is_met(lossy):
    with tomada.Client(lossy, timeout=5, retries=49, backoff=1.0) as client:
        # The probability that one of 20 fails is negligible.
        answers = [client.request(b"%d" % number) for number in range(20)]
    assert answers == [b"%d" % number for number in range(20)]
