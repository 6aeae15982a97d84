"""Errors name the peer or the file, and the cure; servers count them."""

import importlib
import logging
import os

import pytest

from certificates import certificates
from dtls_pairs import psk_client, psk_server, server_of, session, trusting
from support import eventually
from tomada import Client, Server, _core, dtls, socket


def fails(client_context, server_context, counter, **options):
    """Return the exception of a client's request, and check what the server counts."""
    with Server(("127.0.0.1", 0), lambda data, _: data, dtls=server_context) as server:
        options = {"timeout": 30, "dtls": client_context, **options}
        peer = rf"\(peer 127\.0\.0\.1:{server.address[1]}"
        with (
            Client(server.address, **options) as client,
            pytest.raises(OSError, match=peer) as caught,
        ):
            client.request(b"hello")
        if counter is not None:
            stats = eventually(lambda: (stats := server.dtls_stats())[counter] and stats)
            assert stats["failed"] >= stats[counter]
            assert stats["established"] == 0
    return caught.value


def test_untrusted_certificate():
    files = certificates()
    error = fails(trusting(files.ca), server_of(files.self_signed), "failed_protocol")
    assert isinstance(error, dtls.DTLSCertVerificationError)
    assert "self-signed certificate" in error.verify_message
    assert "load_verify_locations()" in str(error)


def test_expired_certificate():
    files = certificates()
    error = fails(trusting(files.ca), server_of(files.expired), "failed_protocol")
    assert isinstance(error, dtls.DTLSCertVerificationError)
    assert error.verify_message == "certificate has expired"
    assert "renewed" in str(error)


@pytest.mark.parametrize("name", ["other.example", "192.0.2.1"])
def test_wrong_host(name):
    files = certificates()
    context = trusting(files.ca)
    error = fails(context, server_of(files.ecdsa), "failed_protocol", server_hostname=name)
    assert isinstance(error, dtls.DTLSCertVerificationError)
    assert "mismatch" in error.verify_message
    assert f"as {name})" in str(error)
    assert "server_hostname" in str(error)


def test_untrusted_client():
    files = certificates()
    server = server_of(files.ecdsa)
    server.verify_mode = dtls.CERT_REQUIRED
    server.load_verify_locations(files.ca)
    client = trusting(files.ca)
    client.load_cert_chain(*files.self_signed)
    error = fails(client, server, "failed_certificate")
    assert isinstance(error, dtls.DTLSError)
    assert "unknown ca" in str(error)


def test_client_without_a_certificate():
    files = certificates()
    server = server_of(files.ecdsa)
    server.verify_mode = dtls.CERT_REQUIRED
    server.load_verify_locations(files.ca)
    error = fails(trusting(files.ca), server, "failed_protocol")
    assert isinstance(error, dtls.DTLSError)
    assert "requires a certificate" in str(error)


def test_wrong_key():
    server, client = psk_server(), psk_client(key=b"wrong")
    client.handshake_timeout = server.handshake_timeout = 0.5
    error = fails(client, server, "failed_timeout", retries=0)
    assert isinstance(error, dtls.DTLSTimeoutError)
    assert "uses a different pre-shared key" in str(error)


def test_unknown_identity():
    error = fails(psk_client("stranger", b"key"), psk_server(), "failed_protocol")
    assert isinstance(error, dtls.DTLSError)
    assert "no key for the identity" in str(error)


def test_no_cipher_in_common():
    server, client = psk_server(), psk_client()
    server.set_ciphers("PSK-AES256-GCM-SHA384")
    client.set_ciphers("PSK-AES128-GCM-SHA256")
    error = fails(client, server, "failed_protocol")
    assert isinstance(error, dtls.DTLSError)
    assert "no cipher in common" in str(error)


def test_no_version_in_common():
    server, client = psk_server(), psk_client()
    for context in (server, client):
        context.set_ciphers("ALL:@SECLEVEL=0")
    client.minimum_version = client.maximum_version = dtls.DTLSVersion.DTLSv1
    with pytest.raises(dtls.DTLSError, match="version"), session(client, server):
        pass


def test_mtu_too_small():
    context = psk_client()
    with pytest.raises(ValueError, match="mtu must be from 280 to 65507, not 100"):
        context.mtu = 100
    context.mtu = 300
    with session(context, psk_server()) as (near, _):
        limit = near.session.max_datagram_size
        with pytest.raises(OSError, match=rf"which carries {limit}; split them, or raise .*mtu"):
            near.send(bytes(limit + 1))
        assert near.send(bytes(limit)) == limit


@pytest.mark.thread_unsafe(reason="it changes the user of the process")
def test_unreadable_key_file(tmp_path):
    key = tmp_path / "secret.key"
    key.write_bytes(b"")
    key.chmod(0)
    context = dtls.Context(dtls.PROTOCOL_DTLS_SERVER)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError, match="give this process permission") as caught:
            context.load_cert_chain(str(key))
    finally:
        os.seteuid(user)
    assert caught.value.filename == str(key)


@pytest.mark.thread_unsafe(reason="it imports a module again")
def test_old_openssl(monkeypatch):
    monkeypatch.setattr(_core, "OPENSSL_VERSION_NUMBER", 0x1010117F)
    monkeypatch.setattr(_core, "OPENSSL_VERSION", "OpenSSL 1.1.1w  11 Sep 2023")
    spec = importlib.util.find_spec("tomada.dtls")
    module = importlib.util.module_from_spec(spec)
    with pytest.raises(ImportError, match=r"3\.0 or newer, not OpenSSL 1\.1\.1w"):
        spec.loader.exec_module(module)


@pytest.mark.thread_unsafe(reason="it forks, and reads the log of the process")
@pytest.mark.parametrize("options", [{}, {"loop": "asyncio"}, {"workers": 2}], ids=str)
def test_server_counts_and_logs_handshakes_that_fail(options, caplog):
    caplog.set_level(logging.INFO)
    files = certificates()
    echo = lambda data, _: data  # noqa: E731
    with Server(("127.0.0.1", 0), echo, dtls=server_of(files.ecdsa), **options) as server:
        with Client(server.address, timeout=30, dtls=trusting(files.ca)) as client:
            assert client.request(b"hello") == b"hello"
        with (
            Client(server.address, timeout=30, dtls=trusting(files.self_signed[0])) as client,
            pytest.raises(dtls.DTLSCertVerificationError),
        ):
            client.request(b"hello")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"not encrypted", server.address)

        def counts():
            stats = server.stats()
            return stats.dtls_established, stats.dtls_failed, stats.dtls_invalid

        eventually(lambda: counts() == (1, 1, 1))
        if "workers" not in options:  # theirs is the log of another process
            eventually(lambda: "a DTLS handshake has failed: " in caplog.text)
            assert "unknown ca" in caplog.text
            assert "(peer 127.0.0.1:" in caplog.text
            eventually(lambda: "datagrams that are not DTLS" in caplog.text)
    assert counts() == (1, 1, 1)
