"""Contexts that a server chooses by the name that a client asks for."""

import gc
import ssl
import weakref

import pytest

from certificates import certificates
from dtls_pairs import psk_client, psk_server, server_of, session, trusting
from tomada import Client, Server, dtls


def choosing(first, **others):
    """Return the first context, with a callback that chooses among the others."""

    def choose(handshake, name, context):
        assert (handshake.context, handshake.server_name) == (context, name)
        if name in others:
            handshake.context = others[name]

    first.sni_callback = choose
    assert first.sni_callback is choose
    return first


def names(near):
    return [value for _, value in near.getpeercert()["subjectAltName"]]


def test_sni_callback_chooses_the_certificate():
    files = certificates()
    first, other = server_of(files.ecdsa), server_of(files.elsewhere)
    other.set_alpn_protocols(["other"])
    server = choosing(first, **{"elsewhere.example": other})
    client = trusting(files.ca)
    client.set_alpn_protocols(["first", "other"])
    with session(client, server, "elsewhere.example") as (near, far):
        assert names(near) == ["elsewhere.example"]
        assert near.selected_alpn_protocol() == "other"
        assert far.session.server_name == "elsewhere.example"
    with session(client, server, "localhost") as (near, _):
        assert "localhost" in names(near)
        assert near.selected_alpn_protocol() is None


def test_sni_callback_without_a_name():
    files = certificates()
    asked = []
    server = server_of(files.ecdsa)
    server.sni_callback = lambda _handshake, name, _context: asked.append(name)
    with session(trusting(files.ca), server, "127.0.0.1"):  # an address is not sent
        assert asked == [None]


def test_sni_callback_chooses_whether_clients_need_a_certificate():
    files = certificates()
    strict = server_of(files.elsewhere)
    strict.load_verify_locations(files.ca)
    strict.verify_mode = dtls.CERT_REQUIRED
    server = choosing(server_of(files.ecdsa), **{"elsewhere.example": strict})
    anonymous, known = trusting(files.ca), trusting(files.ca)
    known.load_cert_chain(*files.client)
    for name in ("localhost", "elsewhere.example"):
        with session(known, server, name) as (_, far):
            assert (far.getpeercert() is None) == (name == "localhost")
    with session(anonymous, server, "localhost"):
        pass
    # Nor can the session that it has now open the other door.
    anonymous.check_hostname = False
    with pytest.raises(dtls.DTLSError), session(anonymous, server, "elsewhere.example"):
        pass


def test_server_with_an_sni_callback_resumes_no_sessions():
    files = certificates()
    server = choosing(server_of(files.ecdsa))
    with Server(("127.0.0.1", 0), lambda data, _: data, dtls=server) as echo:
        context = trusting(files.ca)
        for _ in range(3):
            with Client(echo.address, timeout=30, dtls=context) as client:
                assert client.request(b"hello") == b"hello"
    assert server.session_stats()["accept_good"] == 3
    assert server.session_stats()["hits"] == 0


@pytest.mark.parametrize(
    ("alert", "reason"),
    [
        (ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME, "unrecognized name"),
        (ssl.ALERT_DESCRIPTION_ACCESS_DENIED, "access denied"),
    ],
)
def test_sni_callback_refuses_a_name(alert, reason):
    files = certificates()
    server = server_of(files.ecdsa)
    server.sni_callback = lambda *_: alert
    with (
        pytest.raises(dtls.DTLSError, match=reason),
        session(trusting(files.ca), server, "localhost"),
    ):
        pass


def client_context(handshake, _name, _context):
    handshake.context = psk_client()


def no_context(handshake, _name, _context):
    handshake.context = "another"


@pytest.mark.thread_unsafe(reason="it replaces the hook of the process")
@pytest.mark.parametrize(
    ("callback", "error"),
    [
        (lambda *_: 1 / 0, ZeroDivisionError),
        (lambda *_: "alert", TypeError),
        (lambda *_: 1, ValueError),
        (client_context, ValueError),
        (no_context, TypeError),
    ],
)
def test_an_sni_callback_that_fails_ends_the_handshake(monkeypatch, callback, error):
    reported = []
    monkeypatch.setattr("sys.unraisablehook", lambda about: reported.append(about.exc_type))
    files = certificates()
    server = server_of(files.ecdsa)
    server.sni_callback = callback
    with (
        pytest.raises(dtls.DTLSError, match="handshake failure"),
        session(trusting(files.ca), server, "localhost"),
    ):
        pass
    assert reported == [error]


def test_pre_shared_keys_stay_those_of_the_first_context():
    files = certificates()
    for other in (psk_server({"tester": b"another key"}), server_of(files.ecdsa)):
        server = choosing(psk_server(), **{"other.example": other})
        with session(psk_client(), server, "other.example") as (near, far):
            near.send(b"hello")
            assert far.recv(100) == b"hello"


def test_sni_callback_is_checked_when_it_is_set():
    context = psk_server()
    assert context.sni_callback is None
    with pytest.raises(TypeError, match="callable"):
        context.sni_callback = "name"
    context.sni_callback = lambda *_: 40
    context.sni_callback = None
    with session(psk_client(), context, "localhost"):
        pass
    with pytest.raises(ValueError, match="PROTOCOL_DTLS_CLIENT"):
        psk_client().sni_callback = lambda *_: None


def test_context_with_an_sni_callback_is_freed():
    context = psk_server()
    context.sni_callback = lambda *_: None
    gone = weakref.ref(context)
    del context
    gc.collect()
    assert gone() is None
