"""Sessions with OpenSSL's programs."""

import pytest

import skips
from certificates import certificates
from dtls_interop import interop
from dtls_pairs import KEYS, connected_to, of_kind, psk_client, psk_server, serving
from programs import Program, free_port
from support import Call, eventually
from tomada import Client

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

PSK = ["-psk_identity", "tester", "-psk", KEYS["tester"].hex()]
KINDS = ["rsa", "ecdsa", "mutual", "small", "psk"]
# 0 permits CCM with a short tag, which constrained devices use (RFC 7925).
SUITES = [
    "PSK-AES128-CCM8",
    "PSK-AES128-CCM",
    "PSK-AES128-GCM-SHA256",
    "PSK-CHACHA20-POLY1305",
    "ECDHE-PSK-CHACHA20-POLY1305",
    "ECDHE-PSK-AES128-CBC-SHA256",
]


def options(kind):
    """Return the options of s_client and s_server for a kind."""
    if kind == "psk":
        psk = [*PSK, "-cipher", "PSK"]
        return psk, ["-nocert", *psk]
    files = certificates()
    pair = files.rsa if kind == "rsa" else files.ecdsa
    on_client = ["-CAfile", files.ca, "-verify_return_error", "-verify_hostname", "localhost"]
    on_server = ["-cert", pair[0], "-key", pair[1]]
    if kind == "mutual":
        on_client += ["-cert", files.client[0], "-key", files.client[1]]
        on_server += ["-CAfile", files.ca, "-Verify", "1", "-verify_return_error"]
    if kind == "small":
        on_client += ["-mtu", "300"]
        on_server += ["-mtu", "300"]
    return on_client, on_server


def s_client(address, *more):
    host, port = address
    openssl = skips.program("openssl")
    return Program(openssl, "s_client", "-dtls1_2", "-connect", f"{host}:{port}", *more)


def s_server(port, *more):
    openssl = skips.program("openssl")
    return Program(openssl, "s_server", "-dtls1_2", "-accept", f"127.0.0.1:{port}", *more)


@interop("OpenSSL", "server", "{kind}")
@pytest.mark.parametrize("kind", KINDS)
def test_server_serves_openssl(kind):
    with (
        serving(of_kind(kind)[0]) as server,
        s_client(server.address, *options(kind)[0]) as program,
    ):
        program.expect(b"Verify return code: 0" if kind != "psk" else b"PSK identity: tester")
        program.write(b"hello, tomada\n")
        program.expect(b"HELLO, TOMADA\n")


@interop("OpenSSL", "client", "{kind}")
@pytest.mark.parametrize("kind", KINDS)
def test_client_asks_openssl(kind):
    address, client = ("127.0.0.1", free_port()), of_kind(kind)[1]
    with s_server(address[1], "-listen", *options(kind)[1]) as program:
        program.expect(b"ACCEPT")
        with Client(address, timeout=60, dtls=client, server_hostname="localhost") as asking:
            call = Call(asking.request, b"hello, openssl\n")
            program.expect(b"hello, openssl\n")
            program.write(b"the answer\n")
            assert call.result() == b"the answer\n"


@interop("OpenSSL", "server", "{suite}")
@pytest.mark.parametrize("suite", SUITES)
def test_server_serves_openssl_with_suite(suite):
    context = psk_server()
    context.set_ciphers(f"{suite}:@SECLEVEL=0")
    with (
        serving(context) as server,
        s_client(server.address, *PSK, "-cipher", f"{suite}:@SECLEVEL=0") as program,
    ):
        program.expect(f"Cipher is {suite}".encode())
        program.write(b"hello\n")
        program.expect(b"HELLO\n")


@interop("OpenSSL", "client", "{suite}")
@pytest.mark.parametrize("suite", SUITES)
def test_client_asks_openssl_with_suite(suite):
    context, port = psk_client(), free_port()
    context.set_ciphers(f"{suite}:@SECLEVEL=0")
    with s_server(port, "-listen", *PSK, "-nocert", "-cipher", f"{suite}:@SECLEVEL=0") as program:
        program.expect(b"ACCEPT")
        with connected_to(("127.0.0.1", port), context) as sock:
            assert sock.cipher()[0] == suite
            sock.send(b"hello, openssl\n")
            program.expect(b"hello, openssl\n")
            program.write(b"the answer\n")
            assert sock.recv(100) == b"the answer\n"


@interop("OpenSSL", "server", "resumed")
def test_server_resumes_a_session_of_openssl(tmp_path):
    saved = tmp_path / "session.pem"
    with serving(of_kind("ecdsa")[0]) as server:
        for more, expected in (
            (["-sess_out", saved], b"New, "),
            (["-sess_in", saved], b"Reused, "),
        ):
            with s_client(server.address, *options("ecdsa")[0], *more) as program:
                program.expect(b"Verify return code: 0")
                program.write(b"hello\n")
                program.expect(b"HELLO\n")
                assert expected in program.output
                program.write(b"Q\n")  # which saves the session
                program.expect(b"DONE")


@interop("OpenSSL", "client", "resumed")
def test_client_resumes_a_session_with_openssl():
    address, context = ("127.0.0.1", free_port()), of_kind("ecdsa")[1]
    # With -listen, it would exit after its first session.
    with s_server(address[1], *options("ecdsa")[1]) as program:
        program.expect(b"ACCEPT")
        for number, text in enumerate([b"first\n", b"second\n"]):
            with connected_to(address, context, "localhost") as sock:
                assert sock.session.session_reused == (number == 1)
                sock.send(text)
                program.expect(text)
                program.write(text)
                assert sock.recv(100) == text
            eventually(lambda count=number + 1: program.output.count(b"DONE") == count)
