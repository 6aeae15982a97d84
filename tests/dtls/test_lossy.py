"""Many records of many sessions through a network that loses, repeats and reorders them."""

import contextlib
import random
import struct
from functools import partial

import pytest

from dtls_pairs import connected_to, psk_client, psk_server
from families import LONG
from support import eventually
from tomada import Server
from tomada.testing import impaired

RECORDS = 100_000 if LONG else 4_000
SESSIONS = 8
# How many records each session sends before the next one does: fewer than any buffer holds.
TURN = 8
LOSS = 0.05
LABEL = struct.Struct("=HI")

KEYS = {f"peer {number}": bytes([number + 1]) * 16 for number in range(SESSIONS)}


def record(session, number):
    """Return the content of a record, which no other one has."""
    bits = random.Random(session << 32 | number)  # noqa: S311 - to be made again
    return LABEL.pack(session, number) + bits.randbytes(bits.randrange(1000))


class Checked:
    """The records that one end of a session has received, each of which must be right."""

    def __init__(self, session, content):
        self._session, self._content = session, content
        self.numbers = set()
        self.wrong = []

    def take(self, data):
        """Note a datagram."""
        session, number = LABEL.unpack_from(data) if len(data) >= LABEL.size else (None, None)
        is_right = session == self._session and data == self._content(record(session, number))
        if not is_right or number in self.numbers:
            self.wrong.append(data)
        self.numbers.add(number)


def reply_to(data):
    """Return a reply, which differs from any request."""
    return data[: LABEL.size] + data[LABEL.size :][::-1] + b"!"


def assert_lossy(path, ends):
    """Check that a direction has lost and repeated datagrams, and that the others arrived."""
    arrived = sum(len(checked.numbers) for checked in ends)
    assert path.lost > 0
    assert path.duplicated > 0
    assert 0.8 * path.received < arrived <= path.received - path.lost


@pytest.mark.timeout(1800)
def test_what_arrives_at_five_percent_loss_is_right_and_in_its_session():
    requests = {name: Checked(number, bytes) for number, name in enumerate(KEYS)}
    replies = [Checked(number, reply_to) for number in range(SESSIONS)]

    def handle(datagram):
        requests[datagram.session.psk_identity].take(datagram.data)
        return reply_to(datagram.data)

    server = Server(("127.0.0.1", 0), handle, takes="datagram", dtls=psk_server(KEYS))
    with server, impaired(server, seed=5) as link, contextlib.ExitStack() as stack:
        sockets = []
        for name, key in KEYS.items():
            sock = stack.enter_context(connected_to(link.address, psk_client(name, key)))
            sock.setblocking(False)
            sockets.append(sock)
        link.change(loss=LOSS, duplicate=0.02, delay=0.001, jitter=0.001)
        before = link.stats.to_server

        def has_taken(count):
            """Receive; return whether no record is left of those that were sent."""
            for sock, checked in zip(sockets, replies, strict=True):
                with contextlib.suppress(BlockingIOError):
                    for data, _ in sock.recv_many():
                        checked.take(data)
            stats, at_server = link.stats, server.stats()
            path = stats.to_server
            if path.received - before.received + stats.kernel_drops < count:
                return False
            # The server drops duplicates.
            taken = at_server.received + at_server.kernel_drops + path.duplicated
            is_idle = not path.queued + stats.to_client.queued
            return is_idle and taken >= path.sent - before.sent

        for first in range(0, RECORDS // SESSIONS, TURN):
            for session, sock in enumerate(sockets):
                sock.send_many([record(session, first + index) for index in range(TURN)])
            eventually(partial(has_taken, (first + TURN) * SESSIONS))
        stats, sessions = link.stats, server.dtls_stats()

    assert [checked.wrong for checked in (*requests.values(), *replies)] == [[]] * 2 * SESSIONS
    assert_lossy(stats.to_server, requests.values())
    assert_lossy(stats.to_client, replies)
    assert sessions["sessions"] == sessions["established"] == SESSIONS
    assert sessions["ended"] == sessions["failed"] == sessions["replaced"] == 0
