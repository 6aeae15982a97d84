"""Requests over DTLS."""

import contextlib
import errno
import socket as std
import threading
import types

import pytest

from certificates import certificates
from dtls_pairs import psk_client, psk_server, server_of, trusting
from support import Call
from tomada import Client, Server, dtls
from tomada._client import connection


def serving(context, handle=lambda data, _: data.upper()):
    return Server(("127.0.0.1", 0), handle, dtls=context)


def test_client_requests_over_dtls():
    with (
        serving(psk_server()) as server,
        Client(server.address, timeout=30, dtls=psk_client()) as client,
    ):
        for number in range(40):
            assert client.request(b"request %d" % number) == b"REQUEST %d" % number


def test_client_begins_one_session_for_a_request():
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.setblocking(False)
        with (
            Client(silent.getsockname(), timeout=0.2, dtls=psk_client()) as client,
            pytest.raises(TimeoutError, match=r"no DTLS session with 127\.0\.0\.1:\d+: "),
        ):
            client.request(b"hello")
        peers = {silent.recvfrom(2000)[1]}
        with contextlib.suppress(BlockingIOError):
            while True:
                peers.add(silent.recvfrom(2000)[1])
        assert len(peers) == 1


@pytest.mark.parametrize("has_match", [False, True])
def test_client_request_many_over_dtls(has_match):
    match = (lambda request, reply: request.upper() == reply) if has_match else None
    with (
        serving(psk_server()) as server,
        Client(server.address, timeout=30, match=match, dtls=psk_client()) as client,
    ):
        requests = [b"request %d" % number for number in range(50)]
        replies = client.request_many(requests, window=8)
        assert replies == [request.upper() for request in requests]


def test_client_checks_the_certificate_and_the_host():
    files = certificates()
    with serving(server_of(files.ecdsa)) as server:
        with Client(server.address, timeout=30, dtls=trusting(files.ca)) as client:
            assert client.request(b"hello") == b"HELLO"
        with (
            Client(
                server.address, timeout=30, dtls=trusting(files.ca), server_hostname="other.example"
            ) as client,
            pytest.raises(dtls.DTLSCertVerificationError, match="ostname mismatch"),
        ):
            client.request(b"hello")


def test_client_continues_after_the_server_was_restarted():
    context = psk_server()
    with serving(context) as server:
        address = server.address
        client = Client(address, timeout=30, retries=20, dtls=psk_client())
        assert client.request(b"first") == b"FIRST"
    with client, Server(address, lambda data, _: data.upper(), dtls=context):
        assert client.request(b"second") == b"SECOND"


def test_client_is_used_by_several_threads():
    with (
        serving(psk_server()) as server,
        Client(server.address, timeout=60, dtls=psk_client()) as client,
    ):
        barrier = threading.Barrier(4)

        def ask(number):
            barrier.wait()
            return [client.request(b"%d %d" % (number, turn)) for turn in range(5)]

        calls = [Call(ask, number) for number in range(4)]
        for number, call in enumerate(calls):
            assert call.result() == [b"%d %d" % (number, turn) for turn in range(5)]


def test_client_checks_the_context():
    with pytest.raises(ValueError, match="PROTOCOL_DTLS_CLIENT"):
        Client(("127.0.0.1", 9), dtls=psk_server())
    with pytest.raises(TypeError, match=r"tomada\.dtls\.Context"):
        Client(("127.0.0.1", 9), dtls="secret")
    with pytest.raises(ValueError, match="proxy_from cannot be combined with dtls"):
        Client(("127.0.0.1", 9), dtls=psk_client(), proxy_from=("192.0.2.1", 5353))


def test_client_sends_nothing_in_plain_text_if_a_session_cannot_begin(monkeypatch):
    def fail(*_args, **_options):
        raise OSError(errno.ENOMEM, "no memory for a session")

    monkeypatch.setattr(connection, "_core", types.SimpleNamespace(DtlsEndpoint=fail))
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        for match in (None, lambda _request, _reply: True):
            with Client(server.getsockname(), timeout=1, match=match, dtls=psk_client()) as client:
                for _ in range(3):
                    with pytest.raises(OSError, match="no memory"):
                        client.request(b"a secret")
                for error in client.request_many([b"a secret"] * 3, errors="return"):
                    assert isinstance(error, OSError)
        with pytest.raises(BlockingIOError):
            server.recv(100, std.MSG_DONTWAIT)
