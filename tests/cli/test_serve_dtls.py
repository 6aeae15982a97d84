"""``tomada serve`` with DTLS."""

import pytest

from skips import NO_DTLS

pytest.importorskip("tomada.dtls", reason=NO_DTLS, exc_type=ImportError)

from certificates import certificates
from command import Serving
from dtls_pairs import psk_client, trusting
from tomada import Client, dtls
from tomada._cli.dtls import keys_in

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


@pytest.mark.parametrize("workers", [1, 2])
def test_serve_accepts_pre_shared_keys_of_a_file(tmp_path, workers):
    path = tmp_path / "keys.psk"
    path.write_text("meter:7:0badc0de\n\n#ff41:C0FFEE\n", encoding="utf-8")
    options = ["--dtls-psk-file", path, "--workers", workers]
    with Serving("127.0.0.1:0", *options) as server:
        for identity, key in (("meter:7", "0badc0de"), (b"\xffA", "c0ffee")):
            context = psk_client(identity, bytes.fromhex(key))
            with client_of(server, context) as client:
                assert client.request(b"hello") == b"hello"
        context = psk_client("stranger", b"key")
        with client_of(server, context) as client, pytest.raises(dtls.DTLSError):
            client.request(b"hello")


@pytest.mark.parametrize(
    "line", ["no key", "identity:", "identity:xyz", "identity:0", "#0:00", ":"]
)
def test_serve_names_the_wrong_line_of_a_file_with_keys(tmp_path, line):
    path = tmp_path / "keys.psk"
    path.write_text(f"right:00\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 2 of .*keys\.psk is not IDENTITY:HEXKEY"):
        keys_in(path)
