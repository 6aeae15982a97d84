"""``tomada serve`` with DTLS."""

from pathlib import Path

import pytest

from skips import NO_DTLS

pytest.importorskip("tomada.dtls", reason=NO_DTLS, exc_type=ImportError)

from certificates import certificates
from command import Serving, run
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
    first, second = "0badc0de" * 4, "C0FFEE" * 6
    path.write_text(f"meter:7:{first}\n\n#ff41:{second}\n", encoding="utf-8")
    options = ["--dtls-psk-file", path, "--workers", workers]
    with Serving("127.0.0.1:0", *options) as server:
        for identity, key in (("meter:7", first), (b"\xffA", second)):
            context = psk_client(identity, bytes.fromhex(key))
            with client_of(server, context) as client:
                assert client.request(b"hello") == b"hello"
        context = psk_client("stranger", b"key")
        with client_of(server, context) as client, pytest.raises(dtls.DTLSError):
            client.request(b"hello")


@pytest.mark.parametrize(
    "line", ["no key", "identity:", "identity:xyz", "identity:0", "#0:00", ":", "# a comment"]
)
def test_serve_names_the_wrong_line_of_a_file_with_keys(tmp_path, line):
    path = tmp_path / "keys.psk"
    path.write_text(f"right:00\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 2 of .*keys\.psk is not IDENTITY:HEXKEY"):
        keys_in(path)


@pytest.mark.parametrize("text", ["", "\n", " \n\n"])
def test_serve_refuses_a_file_without_keys(tmp_path, text):
    path = tmp_path / "keys.psk"
    path.write_text(text, encoding="utf-8")
    status, _, errors = run("serve", "127.0.0.1:0", "--dtls-psk-file", path)
    assert status == 2
    assert errors == (
        f"tomada serve: dtls-psk-file: {path} has no keys: write one on each line, as "
        "IDENTITY:HEXKEY (--dtls-psk-file)\n"
    )


@pytest.mark.parametrize("again", ["meter", "#6d65746572"])
def test_serve_refuses_an_identity_that_occurs_twice(tmp_path, again):
    path = tmp_path / "keys.psk"
    path.write_text(f"meter:{'00' * 16}\n\n{again}:{'11' * 16}\n", encoding="utf-8")
    status, _, errors = run("serve", "127.0.0.1:0", "--dtls-psk-file", path)
    assert status == 2
    assert f"line 3 of {path} has the same identity as line 1: delete one of them" in errors


def test_serve_refuses_a_short_key(tmp_path):
    path = tmp_path / "keys.psk"
    path.write_text(f"a:{'00' * 16}\nb:{'00' * 15}\n", encoding="utf-8")
    status, _, errors = run("serve", "127.0.0.1:0", "--dtls-psk-file", path)
    assert status == 2
    assert f"the key in line 2 of {path} has 15 bytes: use at least 16 random bytes" in errors
    # A client has to use the key that its server has.
    assert keys_in(str(path)) == {"a": bytes(16), "b": bytes(15)}


@pytest.mark.parametrize("is_separate", [True, False])
def test_serve_names_the_option_of_an_encrypted_key(tmp_path, is_separate):
    files = certificates()
    certificate, _ = files.ecdsa
    key = files.encrypted_key("secret")
    if is_separate:
        options = ["--dtls-cert", certificate, "--dtls-key", key]
    else:
        both = tmp_path / "both.pem"
        both.write_bytes(Path(key).read_bytes() + Path(certificate).read_bytes())
        options = ["--dtls-cert", both]
    status, _, errors = run("serve", "127.0.0.1:0", *options)
    name = "dtls-key" if is_separate else "dtls-cert"
    assert status == 2
    assert errors.startswith(
        f"tomada serve: {name}: the key in {options[-1]} is encrypted: decrypt"
    )
    assert errors.endswith(f"(--{name})\n")
    assert "pass its password" not in errors


def test_serve_names_the_option_of_a_key_that_is_missing(tmp_path):
    certificate, _ = certificates().rsa
    missing = tmp_path / "missing.key"
    status, _, errors = run(
        "serve", "127.0.0.1:0", "--dtls-cert", certificate, "--dtls-key", missing
    )
    assert status == 2
    assert errors.startswith("tomada serve: dtls-key: [Errno 2] ")
