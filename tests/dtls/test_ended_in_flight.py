"""Sessions that the server ends while a request is in flight: the client begins another."""

import asyncio
import contextlib
import socket as std

import pytest

import tomada.asyncio
from certificates import certificates
from dtls_pairs import server_of, trusting
from support import Call
from tomada import Client, Server, _core, dtls, socket

IDENTITIES = {
    "port": {},
    "match": {"match": lambda request, reply: reply == request.upper()},
    "key": {"key": bytes.lower},
}


@pytest.fixture
def address():
    """Serve on an address: the session of every other request ends instead of a reply."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        endpoint = _core.DtlsEndpoint(server_of(certificates().ecdsa), sock)

        def serve():
            while True:
                try:
                    _, peer = sock.recvfrom(100)
                    endpoint.close(peer)
                    request, peer = sock.recvfrom(100)
                except OSError:  # closed
                    return
                with contextlib.suppress(dtls.DTLSError):  # another attempt has ended the session
                    sock.sendto(request.upper(), peer)

        serving = Call(serve)
        yield sock.getsockname()
        sock.close()
        serving.result()


@pytest.fixture
def options():
    """Return a client's options."""
    return {"dtls": trusting(certificates().ca), "server_hostname": "localhost", "timeout": 30}


@pytest.mark.parametrize("identity", IDENTITIES)
def test_request_is_sent_again_in_another_session(address, options, identity):
    with Client(address, **options, **IDENTITIES[identity]) as client:
        for _ in range(3):
            assert client.request(b"hello") == b"HELLO"


@pytest.mark.parametrize("identity", IDENTITIES)
def test_requests_are_sent_again_in_another_session(address, options, identity):
    with Client(address, **options, **IDENTITIES[identity]) as client:
        for _ in range(3):
            assert client.request_many([b"hello"]) == [b"HELLO"]


@pytest.mark.parametrize("run", [asyncio.run, tomada.asyncio.run])
@pytest.mark.parametrize("identity", IDENTITIES)
def test_a_tasks_request_is_sent_again_in_another_session(address, options, identity, run):
    async def ask():
        async with tomada.asyncio.Client(address, **options, **IDENTITIES[identity]) as client:
            return [await client.request(b"hello") for _ in range(3)]

    assert run(ask()) == [b"HELLO"] * 3


def test_an_endpoints_request_is_sent_again_in_another_session(address, options):
    dtls = {name: options.pop(name) for name in ("dtls", "server_hostname")}

    async def ask():
        async with tomada.asyncio.open_endpoint(remote_addr=address, **dtls) as endpoint:
            return [await endpoint.request(b"hello", **options) for _ in range(3)]

    assert asyncio.run(ask()) == [b"HELLO"] * 3


class Refusing:
    """Answers a number of handshakes with a ``close_notify``, and then passes datagrams on."""

    # An alert record of DTLS 1.2 (RFC 6347, section 4.1), with the level "warning".
    CLOSE_NOTIFY = bytes.fromhex("15fefd0000ffffffffffff00020100")

    def __init__(self, times, address):
        self._left, self._address, self.refused = times, address, 0
        self._sock = std.socket(std.AF_INET, std.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 0))
        self.address = self._sock.getsockname()
        self._relaying = Call(self._relay)

    def _relay(self):
        while True:
            data, sender = self._sock.recvfrom(2000)
            if data == b"end":
                return
            if sender == self._address:
                self._sock.sendto(data, self._client)
            elif self._left > 0:
                self._left -= 1
                self.refused += 1
                self._sock.sendto(self.CLOSE_NOTIFY, sender)
            else:
                self._client = sender
                self._sock.sendto(data, self._address)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._sock.sendto(b"end", self.address)
        self._relaying.result()
        self._sock.close()


@pytest.fixture
def server():
    context = server_of(certificates().ecdsa)
    with Server(("127.0.0.1", 0), lambda data, _: data.upper(), dtls=context) as server:
        yield server


def ask_alone(address, options):
    with Client(address, **options) as client:
        return client.request(b"hello")


def ask_among_many(address, options):
    with Client(address, **options) as client:
        return client.request_many([b"hello"])[0]


def ask_from_one_port(address, options):
    with Client(address, **options, **IDENTITIES["match"]) as client:
        return client.request_many([b"hello"])[0]


def ask_in_a_task(address, options):
    async def ask():
        async with tomada.asyncio.Client(address, **options) as client:
            return await client.request(b"hello")

    return asyncio.run(ask())


WAYS = [ask_alone, ask_among_many, ask_from_one_port, ask_in_a_task]


@pytest.mark.parametrize("ask", WAYS)
def test_handshake_that_the_server_ends_is_no_attempt(server, options, ask):
    with Refusing(1, server.address) as relay:
        assert ask(relay.address, {**options, "retries": 0}) == b"HELLO"


@pytest.mark.parametrize("ask", WAYS)
def test_forged_ends_of_handshakes_do_not_end_a_request(server, options, ask):
    with Refusing(2, server.address) as relay:
        assert ask(relay.address, options) == b"HELLO"
        assert relay.refused == 2


@pytest.mark.parametrize("ask", WAYS)
def test_error_says_that_the_server_has_ended_the_handshakes(server, options, ask):
    with (
        Refusing(1000, server.address) as relay,
        pytest.raises(TimeoutError, match="no DTLS session with") as caught,
    ):
        ask(relay.address, {**options, "timeout": 0.5})
    assert isinstance(caught.value.__cause__, dtls.DTLSZeroReturnError)
    assert relay.refused < 10
