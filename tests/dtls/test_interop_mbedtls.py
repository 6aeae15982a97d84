"""Sessions with python-mbedtls."""

import contextlib
import socket as std
import sys

import pytest

from certificates import certificates
from dtls_interop import interop
from dtls_pairs import of_kind, serving
from support import Call
from tomada import Client

if sys.version_info >= (3, 13):
    pytest.skip("python-mbedtls has no wheels for this interpreter", allow_module_level=True)
tls = pytest.importorskip("mbedtls.tls")
x509 = pytest.importorskip("mbedtls.x509")
pk = pytest.importorskip("mbedtls.pk")

KINDS = ["psk", "ecdsa"]


def of_client(kind):
    if kind == "psk":
        return tls.DTLSConfiguration(
            pre_shared_key=("tester", b"secret"), validate_certificates=False
        )
    trust = tls.TrustStore.from_pem_file(certificates().ca)
    return tls.DTLSConfiguration(trust_store=trust, validate_certificates=True)


def of_server(kind):
    if kind == "psk":
        return tls.DTLSConfiguration(
            pre_shared_key_store={"tester": b"secret"}, validate_certificates=False
        )
    certificate, key = certificates().ecdsa
    chain = ((x509.CRT.from_file(certificate),), pk.ECC.from_file(key))
    return tls.DTLSConfiguration(certificate_chain=chain, validate_certificates=False)


@interop("python-mbedtls", "server", "{kind}")
@pytest.mark.parametrize("kind", KINDS)
def test_server_serves_mbedtls(kind):
    with serving(of_kind(kind)[0]) as server, std.socket(std.AF_INET, std.SOCK_DGRAM) as plain:
        plain.settimeout(30)
        sock = tls.ClientContext(of_client(kind)).wrap_socket(plain, server_hostname="localhost")
        sock.connect(server.address)
        sock.do_handshake()
        sock.send(b"hello, tomada")
        assert sock.recv(100) == b"HELLO, TOMADA"


def answer(listener, stack):
    """Answer one datagram of one client."""
    connection, peer = listener.accept()
    stack.callback(connection.close)
    while True:
        connection.setcookieparam(peer[0].encode())
        try:
            connection.do_handshake()
        except tls.HelloVerifyRequest:
            connection, peer = connection.accept()
            stack.callback(connection.close)
            continue
        connection.send(connection.recv(100).upper())
        return


@interop("python-mbedtls", "client", "{kind}")
@pytest.mark.parametrize("kind", KINDS)
def test_client_asks_mbedtls(kind):
    context = of_kind(kind)[1]
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as plain, contextlib.ExitStack() as stack:
        # Each client gets a socket of its own, bound to the same port.
        plain.setsockopt(std.SOL_SOCKET, std.SO_REUSEADDR, 1)
        listener = tls.ServerContext(of_server(kind)).wrap_socket(plain)
        stack.callback(listener.close)
        listener.bind(("127.0.0.1", 0))
        address = listener.getsockname()
        serving = Call(answer, listener, stack)
        with Client(address, timeout=60, dtls=context, server_hostname="localhost") as client:
            assert client.request(b"hello, mbed") == b"HELLO, MBED"
        serving.result()
