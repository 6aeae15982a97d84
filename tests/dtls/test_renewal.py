"""Certificates that workers read again, and the room that a guard must leave for handshakes."""

import shutil
from pathlib import Path

import pytest

from certificates import certificates
from dtls_pairs import server_of, trusting
from support import eventually
from tomada import Client, Guard, Server, dtls

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
        # Soon over if the worker is replaced during the handshake.
        with Client(server.address, timeout=5, **options) as client:
            try:
                return client.request(b"hello") == b"HELLO"
            except (dtls.DTLSCertVerificationError, TimeoutError):
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
