"""Sessions with other implementations, in both directions."""

import shutil

import pytest

import skips
from certificates import certificates
from dtls_pairs import KEYS, psk_client, psk_server, server_of, trusting
from programs import Program, free_port
from support import Call
from tomada import Client, Server, dtls

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

KEY = KEYS["tester"].hex()


def upper(data, _address):
    return data.upper()


def serving(context):
    return Server(("127.0.0.1", 0), upper, dtls=context)


def contexts(kind):
    """Return a server's and a client's context of a kind, and what OpenSSL's programs need."""
    if kind == "psk":
        suite = ["-cipher", "PSK"]
        psk = ["-psk_identity", "tester", "-psk", KEY, *suite]
        return psk_server(), psk_client(), psk, ["-nocert", *psk]
    files = certificates()
    pair = files.rsa if kind == "rsa" else files.ecdsa
    server, client = server_of(pair), trusting(files.ca)
    on_client = ["-CAfile", files.ca, "-verify_return_error", "-verify_hostname", "localhost"]
    on_server = ["-cert", pair[0], "-key", pair[1]]
    if kind == "mutual":
        server.load_verify_locations(files.ca)
        server.verify_mode = dtls.CERT_REQUIRED
        client.load_cert_chain(*files.client)
        on_client += ["-cert", files.client[0], "-key", files.client[1]]
        on_server += ["-CAfile", files.ca, "-Verify", "1", "-verify_return_error"]
    if kind == "small":
        on_client += ["-mtu", "300"]
        on_server += ["-mtu", "300"]
        server.mtu = client.mtu = 300
    return server, client, on_client, on_server


KINDS = ["rsa", "ecdsa", "mutual", "small", "psk"]


@pytest.mark.parametrize("kind", KINDS)
def test_server_serves_openssl(kind):
    openssl = skips.program("openssl")
    server, _, options, _ = contexts(kind)
    with serving(server) as running:
        host, port = running.address
        command = [openssl, "s_client", "-dtls1_2", "-connect", f"{host}:{port}", *options]
        with Program(*command) as program:
            program.expect(b"Verify return code: 0" if kind != "psk" else b"PSK identity: tester")
            program.write(b"hello, tomada\n")
            program.expect(b"HELLO, TOMADA\n")


@pytest.mark.parametrize("kind", KINDS)
def test_client_asks_openssl(kind):
    openssl = skips.program("openssl")
    _, client, _, options = contexts(kind)
    port = free_port()
    command = [openssl, "s_server", "-dtls1_2", "-listen", "-accept", f"127.0.0.1:{port}"]
    with Program(*command, *options) as program:
        program.expect(b"ACCEPT")
        with Client(
            ("127.0.0.1", port), timeout=60, dtls=client, server_hostname="localhost"
        ) as asking:
            call = Call(asking.request, b"hello, openssl\n")
            program.expect(b"hello, openssl\n")
            program.write(b"the answer\n")
            assert call.result() == b"the answer\n"


def test_server_resumes_a_session_of_openssl(tmp_path):
    openssl = skips.program("openssl")
    server, _, options, _ = contexts("ecdsa")
    saved = tmp_path / "session.pem"
    with serving(server) as running:
        host, port = running.address
        command = [openssl, "s_client", "-dtls1_2", "-connect", f"{host}:{port}", *options]
        for more, expected in (
            (["-sess_out", saved], b"New, "),
            (["-sess_in", saved], b"Reused, "),
        ):
            with Program(*command, *more) as program:
                program.expect(b"Verify return code: 0")
                program.write(b"hello\n")
                program.expect(b"HELLO\n")
                assert expected in program.output
                program.write(b"Q\n")  # which saves the session
                program.expect(b"DONE")


PRIORITY = "NORMAL:-VERS-ALL:+VERS-DTLS1.2"


@pytest.mark.parametrize("kind", ["ecdsa", "rsa", "psk"])
def test_server_serves_gnutls(kind):
    gnutls = skips.program("gnutls-cli")
    server, _, _, _ = contexts(kind)
    if kind == "psk":
        options = ["--pskusername", "tester", "--pskkey", KEY]
        # With ECDHE-PSK, the program of version 3.7 crashes when it describes the session.
        options += ["--priority", f"{PRIORITY}:-KX-ALL:+PSK"]
    else:
        options = ["--x509cafile", certificates().ca, "--priority", PRIORITY]
    with serving(server) as running:
        port = running.address[1]
        with Program(gnutls, "--udp", "--port", port, *options, "localhost") as program:
            program.expect(b"Handshake was completed")
            program.write(b"hello, tomada\n")
            program.expect(b"HELLO, TOMADA\n")


@pytest.mark.parametrize("kind", ["ecdsa", "rsa", "psk"])
def test_client_asks_gnutls(kind, tmp_path):
    gnutls = skips.program("gnutls-serv")
    _, client, _, _ = contexts(kind)
    port = free_port()
    if kind == "psk":
        keys = tmp_path / "keys.psk"
        keys.write_text(f"tester:{KEY}\n")
        options = ["--pskpasswd", keys, "--priority", f"{PRIORITY}:-KX-ALL:+PSK:+ECDHE-PSK"]
    else:
        files = certificates()
        pair = files.rsa if kind == "rsa" else files.ecdsa
        options = ["--x509certfile", pair[0], "--x509keyfile", pair[1], "--priority", PRIORITY]
    command = [gnutls, "--udp", "--echo", "--port", port, *options]
    unbuffered = shutil.which("stdbuf")  # its greeting would wait in a buffer
    with Program(*([unbuffered, "-o0"] if unbuffered else []), *command) as program:
        program.expect(b"listening on")
        with Client(
            ("127.0.0.1", port), timeout=60, dtls=client, server_hostname="localhost"
        ) as asking:
            assert asking.request(b"hello, gnutls") == b"hello, gnutls"


def coap(code, message_id, token, payload=b"", kind=0):
    """Return a message of CoAP (RFC 7252)."""
    header = bytes([0x40 | kind << 4 | len(token), code]) + message_id + token
    return header + (b"\xff" + payload if payload else b"")


def answer_coap(data, _address):
    return coap(0x45, data[2:4], data[4 : 4 + (data[0] & 15)], b"hello, libcoap", 2)


@pytest.mark.parametrize("base", ["openssl", "gnutls"])
def test_server_serves_libcoap(base):
    libcoap = skips.program(f"coap-client-{base}")
    with Server(("127.0.0.1", 0), answer_coap, dtls=psk_server()) as running:
        url = f"coaps://127.0.0.1:{running.address[1]}/greeting"
        with Program(libcoap, "-u", "tester", "-k", "secret", "-B", "60", url) as program:
            program.expect(b"hello, libcoap")


@pytest.mark.parametrize("base", ["openssl", "gnutls"])
def test_client_asks_libcoap(base):
    libcoap = skips.program(f"coap-server-{base}")
    port = free_port(1)  # CoAP over DTLS has the next port
    with (
        Program(libcoap, "-A", "127.0.0.1", "-p", port, "-k", "secret"),
        Client(("127.0.0.1", port + 1), timeout=60, retries=30, dtls=psk_client()) as asking,
    ):
        reply = asking.request(coap(1, b"\x12\x34", b"tk"))
        assert reply[1:6] == bytes([0x45, 0x12, 0x34]) + b"tk"
        assert b"libcoap" in reply
