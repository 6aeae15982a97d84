"""CoAP over DTLS (RFC 7252, section 9) with the programs of libcoap."""

import pytest

import skips
from certificates import certificates
from dtls_interop import interop
from dtls_pairs import of_kind
from programs import Program, free_port
from tomada import Client, Server

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

# The libraries that libcoap is built with.
BASES = ["OpenSSL", "GnuTLS"]
KINDS = ["psk", "ecdsa", "mutual"]


def coap(code, message_id, token, payload=b"", kind=0):
    """Return a message of CoAP (RFC 7252)."""
    header = bytes([0x40 | kind << 4 | len(token), code]) + message_id + token
    return header + (b"\xff" + payload if payload else b"")


def answer_coap(data, _address):
    return coap(0x45, data[2:4], data[4 : 4 + (data[0] & 15)], b"hello, libcoap", 2)


def of_client(kind):
    files = certificates()
    return {
        "psk": ["-u", "tester", "-k", "secret"],
        "ecdsa": ["-R", files.ca],
        "mutual": ["-C", files.ca, "-c", files.client[0], "-j", files.client[1]],
    }[kind]


def of_server(kind):
    if kind == "psk":
        return ["-k", "secret"]
    files = certificates()
    # -n accepts clients without a certificate.
    trust = ["-C", files.ca] if kind == "mutual" else ["-n"]
    return ["-c", files.ecdsa[0], "-j", files.ecdsa[1], *trust]


@interop("libcoap ({base})", "server", "{kind}")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", BASES)
def test_server_serves_libcoap(base, kind):
    libcoap = skips.program(f"coap-client-{base.lower()}")
    with Server(("127.0.0.1", 0), answer_coap, dtls=of_kind(kind)[0]) as running:
        url = f"coaps://localhost:{running.address[1]}/greeting"
        with Program(libcoap, *of_client(kind), "-B", "60", url) as program:
            program.expect(b"hello, libcoap")


@interop("libcoap ({base})", "client", "{kind}")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", BASES)
def test_client_asks_libcoap(base, kind):
    libcoap = skips.program(f"coap-server-{base.lower()}")
    port = free_port(1)  # CoAP over DTLS has the next port
    context = of_kind(kind)[1]
    with (
        Program(libcoap, "-A", "127.0.0.1", "-p", port, *of_server(kind)),
        Client(
            ("127.0.0.1", port + 1),
            timeout=60,
            retries=30,
            dtls=context,
            server_hostname="localhost",
        ) as asking,
    ):
        reply = asking.request(coap(1, b"\x12\x34", b"tk"))
        assert reply[1:6] == bytes([0x45, 0x12, 0x34]) + b"tk"
        assert b"libcoap" in reply
