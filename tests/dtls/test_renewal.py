"""Certificates that workers read again, and the room that a guard must leave for handshakes."""

import asyncio
import shutil
import threading
from pathlib import Path

import pytest

from certificates import certificates
from dtls_pairs import server_of, trusting
from support import Call, eventually
from tomada import Client, Guard, Server, dtls
from tomada.asyncio import Client as AsyncClient

pytestmark = pytest.mark.thread_unsafe(reason="it starts workers")


def upper(data, _address):
    return data.upper()


def test_workers_read_a_renewed_certificate_in_init(tmp_path):
    files = certificates()
    pair = tmp_path / "server.pem", tmp_path / "server.key"
    context = dtls.Context(dtls.PROTOCOL_DTLS_SERVER)

    def install(source):
        for file, target in zip(source, pair, strict=True):
            shutil.copy(file, target)

    def reload():
        context.load_cert_chain(*pair)

    def presents(name):
        options = {"dtls": trusting(files.ca), "server_hostname": name}
        with Client(server.address, **options) as client:
            try:
                return client.request(b"hello") == b"HELLO"
            except dtls.DTLSCertVerificationError:
                return False

    install(files.ecdsa)
    reload()
    server = Server(("127.0.0.1", 0), upper, dtls=context, workers=2, init=reload)
    with server:
        assert presents("localhost")
        install(files.elsewhere)
        assert not presents("elsewhere.example")
        server.replace_workers()
        # Each session is from another port, so both workers are tried.
        eventually(lambda: all(presents("elsewhere.example") for _ in range(10)))


def request(address, options):
    with Client(address, **options) as client:
        return [client.request(b"hello")]


def request_many(address, options):
    with Client(address, **options) as client:
        return client.request_many([b"hello"] * 3)


def request_from_one_port(address, options):
    options["match"] = lambda request, reply: reply == request.upper()
    with Client(address, **options) as client:
        return client.request_many([b"hello"] * 3)


def request_with_asyncio(address, options):
    async def run():
        async with AsyncClient(address, **options) as client:
            return [await client.request(b"hello")]

    return asyncio.run(run())


# How often workers are replaced.
TIMES = 5
# Fewer would use up a request's attempts.
REQUESTS_BETWEEN = 3


@pytest.mark.parametrize(
    "ask", [request, request_many, request_from_one_port, request_with_asyncio]
)
def test_sessions_begin_while_workers_are_replaced(ask, tmp_path):
    context, started = server_of(certificates().ecdsa), tmp_path / "started"
    options = {"dtls": trusting(certificates().ca), "server_hostname": "localhost"}
    answered, is_over = [], threading.Event()

    def init():
        with started.open("a") as file:
            file.write(".")

    def replace():
        try:
            for times in range(1, TIMES + 1):
                seen = len(answered)
                server.replace_workers()
                eventually(lambda: len(started.read_text()) == 2 * (times + 1))  # noqa: B023 - called here
                eventually(lambda: len(answered) > seen + REQUESTS_BETWEEN)  # noqa: B023
        finally:
            is_over.set()

    with Server(("127.0.0.1", 0), upper, dtls=context, workers=2, init=init) as server:
        replacing = Call(replace)
        while not is_over.is_set():
            # A handshake that its worker has left behind never ends, however often it is repeated.
            answered += ask(server.address, {**options, "timeout": 20})
        replacing.result()
    assert set(answered) == {b"HELLO"}


@pytest.mark.parametrize(("limit", "is_possible"), [(600, False), (1472, True)])
def test_guard_counts_the_certificates_of_clients_as_payload(tmp_path, limit, is_possible):
    files = certificates()
    server_side = server_of(files.ecdsa)
    server_side.load_verify_locations(files.ca)
    server_side.verify_mode = dtls.CERT_REQUIRED
    client_side = trusting(files.ca)
    # A chain of several certificates, as a client with an intermediate issuer has.
    chain = tmp_path / "chain.pem"
    texts = [Path(path).read_text("utf-8") for path in (files.client[0], files.ca, files.ca)]
    chain.write_text("".join(texts), encoding="utf-8")
    client_side.load_cert_chain(chain, files.client[1])
    guard = Guard(max_size=limit)
    with (
        Server(("127.0.0.1", 0), upper, dtls=server_side, guard=guard) as server,
        Client(
            server.address,
            timeout=60 if is_possible else 1,
            dtls=client_side,
            server_hostname="localhost",
        ) as client,
    ):
        if is_possible:
            assert client.request(b"hello") == b"HELLO"
            assert guard.stats().oversized == 0
        else:
            with pytest.raises(TimeoutError):
                client.request(b"hello")
            assert guard.stats().oversized > 0
