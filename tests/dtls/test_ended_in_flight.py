"""Sessions that the server ends while a request is in flight: the client begins another."""

import asyncio
import contextlib

import pytest

import tomada.asyncio
from certificates import certificates
from dtls_pairs import server_of, trusting
from support import Call
from tomada import Client, _core, socket

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
            with contextlib.suppress(OSError):  # closed
                while True:
                    _, peer = sock.recvfrom(100)
                    endpoint.close(peer)
                    request, peer = sock.recvfrom(100)
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
