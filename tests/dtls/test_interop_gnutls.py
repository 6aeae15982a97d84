"""Sessions with GnuTLS's programs."""

import shutil

import pytest

import skips
from certificates import certificates
from dtls_interop import interop
from dtls_pairs import KEYS, of_kind, serving
from programs import Program, free_port
from tomada import Client

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

KEY = KEYS["tester"].hex()
PRIORITY = "NORMAL:-VERS-ALL:+VERS-DTLS1.2"
KINDS = ["ecdsa", "rsa", "mutual", "small", "psk"]


def of_client(kind):
    if kind == "psk":
        # With ECDHE-PSK, the program of version 3.7 crashes when it describes the session.
        psk = ["--pskusername", "tester", "--pskkey", KEY]
        return [*psk, "--priority", f"{PRIORITY}:-KX-ALL:+PSK"]
    files = certificates()
    options = ["--x509cafile", files.ca, "--priority", PRIORITY]
    if kind == "mutual":
        options += ["--x509certfile", files.client[0], "--x509keyfile", files.client[1]]
    if kind == "small":
        options += ["--mtu", "300"]
    return options


def of_server(kind, folder):
    if kind == "psk":
        keys = folder / "keys.psk"
        keys.write_text(f"tester:{KEY}\n")
        return ["--pskpasswd", keys, "--priority", f"{PRIORITY}:-KX-ALL:+PSK:+ECDHE-PSK"]
    files = certificates()
    pair = files.rsa if kind == "rsa" else files.ecdsa
    options = ["--x509certfile", pair[0], "--x509keyfile", pair[1], "--priority", PRIORITY]
    if kind == "mutual":
        options += ["--x509cafile", files.ca, "--require-client-cert", "--verify-client-cert"]
    if kind == "small":
        options += ["--mtu", "300"]
    return options


@interop("GnuTLS", "server", "{kind}")
@pytest.mark.parametrize("kind", KINDS)
def test_server_serves_gnutls(kind):
    gnutls = skips.program("gnutls-cli")
    with serving(of_kind(kind)[0]) as server:
        command = [gnutls, "--udp", "--port", server.address[1], *of_client(kind), "localhost"]
        with Program(*command) as program:
            program.expect(b"Handshake was completed")
            program.write(b"hello, tomada\n")
            program.expect(b"HELLO, TOMADA\n")


@interop("GnuTLS", "client", "{kind}")
@pytest.mark.parametrize("kind", KINDS)
def test_client_asks_gnutls(kind, tmp_path):
    gnutls = skips.program("gnutls-serv")
    address, client = ("127.0.0.1", free_port()), of_kind(kind)[1]
    command = [gnutls, "--udp", "--echo", "--port", address[1], *of_server(kind, tmp_path)]
    unbuffered = shutil.which("stdbuf")  # its greeting would wait in a buffer
    with Program(*([unbuffered, "-o0"] if unbuffered else []), *command) as program:
        program.expect(b"listening on")
        with Client(address, timeout=60, dtls=client, server_hostname="localhost") as asking:
            assert asking.request(b"hello, gnutls") == b"hello, gnutls"


@interop("GnuTLS", "server", "resumed")
def test_server_resumes_a_session_of_gnutls():
    gnutls = skips.program("gnutls-cli")
    with serving(of_kind("ecdsa")[0]) as server:
        command = [gnutls, "--udp", "--resume", "--port", server.address[1], *of_client("ecdsa")]
        with Program(*command, "localhost") as program:
            program.expect(b"This is a resumed session")
            program.write(b"hello, tomada\n")
            program.expect(b"HELLO, TOMADA\n")
