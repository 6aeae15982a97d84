"""``tomada serve`` with DTLS."""

import pytest

from certificates import certificates
from command import Serving
from dtls_pairs import trusting
from tomada import Client, dtls

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")


def client_of(server, context):
    return Client(server.address, timeout=60, dtls=context, server_hostname="localhost")


@pytest.mark.parametrize("workers", [1, 2])
def test_serve_encrypts_with_a_certificate(workers):
    files = certificates()
    certificate, key = files.ecdsa
    options = ["--dtls-cert", certificate, "--dtls-key", key, "--workers", workers]
    with (
        Serving("127.0.0.1:0", *options) as server,
        client_of(server, trusting(files.ca)) as client,
    ):
        assert client.request(b"hello") == b"hello"


def test_serve_requires_certificates_of_clients():
    files = certificates()
    certificate, key = files.rsa
    options = ["--dtls-cert", certificate, "--dtls-key", key, "--dtls-ca", files.ca]
    with Serving("127.0.0.1:0", *options) as server:
        context = trusting(files.ca)
        with client_of(server, context) as client, pytest.raises(dtls.DTLSError):
            client.request(b"hello")
        context.load_cert_chain(*files.client)
        with client_of(server, context) as client:
            assert client.request(b"hello") == b"hello"
