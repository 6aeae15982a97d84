"""Sessions of several clients at one address, as behind a translator of addresses, or an attacker.

A client that completes a handshake there replaces the session before. The data of one session
must not reach the other one.
"""

import asyncio
import errno
import threading
from functools import partial

import pytest

from dtls_pairs import psk_client, psk_server
from dtls_relay import OneAddress
from support import Call, eventually
from tomada import Client, Server


class Held:
    """A handler that stops at ``b"stop"`` until it is released, and notes who has sent what.

    With ``act``, it calls that instead: the datagrams that arrive meanwhile are received together.
    """

    def __init__(self):
        self.act = None
        self.stopped, self.release = threading.Event(), threading.Event()
        self.heard, self.datagrams = [], []

    def __call__(self, datagram):
        self.heard.append((datagram.session.psk_identity, datagram.data))
        self.datagrams.append(datagram)
        if datagram.data == b"stop":
            (self.act or self.hold)()
        return b"for %s" % datagram.session.psk_identity.encode()

    def hold(self):
        self.stopped.set()
        self.release.wait(60)


def serving(handler):
    return Server(("127.0.0.1", 0), handler, takes="datagram", dtls=psk_server())


def test_data_that_waits_is_not_taken_for_that_of_a_later_session():
    handler = Held()
    with serving(handler) as server, OneAddress(server.address) as relay:
        first, second = relay.connect("tester"), relay.client("other")
        last = relay.shake_hands(second, holds_last=True)
        first.send(b"secret of the first")
        handler.act = partial(relay.pass_on, *relay.sent(), *last)
        first.send(b"stop")
        relay.pass_on()
        relay.shake_hands(second)
        second.send(b"mine")
        relay.pass_on()
        assert relay.receive(second) == b"for other"
        session = handler.datagrams[0].session
        assert handler.heard == [("tester", b"stop"), ("other", b"mine")]
        assert server.dtls_stats()["replaced"] == 1
        # The secret was received with the end of the second handshake, and dropped.
        assert (server.stats().received, server.stats().kernel_drops) == (2, 1)
        # The session object still describes the first session.
        assert session.psk_identity == "tester"
        with pytest.raises(OSError, match="no DTLS session") as caught:
            handler.datagrams[0].reply(b"too late")
        assert caught.value.errno == errno.ENOTCONN
        assert handler.datagrams[1].reply(b"in time") == 7
        assert relay.receive(second) == b"in time"


def test_data_that_waits_is_dropped_even_if_the_later_session_has_ended():
    handler, context = Held(), psk_client()
    with serving(handler) as server, OneAddress(server.address) as relay:
        first = relay.connect("tester", context)
        first.send(b"secret of the first")
        data = tuple(relay.sent())
        # The second session resumes the first one: the client's last flight is the last of all.
        second = relay.client("tester", context)
        relay.shake_hands(second)
        last = tuple(relay.sent())
        second.close()
        handler.act = partial(relay.pass_on, *data, *last, *relay.sent())
        first.send(b"stop")
        relay.pass_on()
        eventually(lambda: server.stats().kernel_drops == 1)
        assert server.dtls_stats()["ended"] == 1
    assert handler.heard == [("tester", b"stop")]


def test_data_before_the_end_of_a_session_has_its_session():
    handler = Held()
    with serving(handler) as server, OneAddress(server.address) as relay:
        near = relay.connect("tester")
        near.send(b"stop")
        relay.pass_on()
        assert handler.stopped.wait(60)
        near.send(b"last words")
        near.close()
        relay.pass_on()
        handler.release.set()
        eventually(lambda: server.dtls_stats()["ended"])
        eventually(lambda: len(handler.heard) == 2)
        assert handler.heard == [("tester", b"stop"), ("tester", b"last words")]


def test_reply_is_not_sent_in_a_later_session():
    release, heard = threading.Event(), []

    async def handle(datagram):
        heard.append(datagram.data)
        if datagram.data == b"slow":
            await asyncio.get_running_loop().run_in_executor(None, release.wait, 60)
        return b"reply to " + datagram.data

    with serving(handle) as server, OneAddress(server.address) as relay:
        first = relay.connect("tester")
        first.send(b"slow")
        relay.pass_on()
        eventually(lambda: heard)
        second = relay.connect("other")
        release.set()
        eventually(lambda: server.stats().send_errors == 1)
        second.send(b"mine")
        relay.pass_on()
        assert relay.receive(second) == b"reply to mine"


def test_stop_handles_what_a_client_has_sent_at_the_end_of_its_handshake():
    handler, context = Held(), psk_client("tester")
    with (
        serving(handler) as server,
        OneAddress(server.address) as relay,
        Client(server.address, dtls=psk_client("other"), timeout=60) as client,
    ):
        relay.connect("tester", context).close()
        relay.pass_on()
        resumed = relay.client("tester", context)
        relay.shake_hands(resumed)
        assert resumed.session.session_reused
        blocked = Call(client.request, b"stop")
        assert handler.stopped.wait(60)
        resumed.send(b"last words")
        relay.pass_on()  # together with the end of the handshake
        stopping = Call(server.stop)
        eventually(lambda: server.status == "draining")
        handler.release.set()
        assert relay.receive(resumed) == b"for tester"
        stopping.result()
        assert blocked.result() == b"for other"
        assert handler.heard[-1] == ("tester", b"last words")
