"""Captures of sessions, which tshark reads with the logged keys."""

import subprocess

import pytest

import skips
from dtls_interop import interop
from dtls_pairs import of_kind, serving
from support import eventually
from tomada import Client
from tomada._cli import pcap
from tomada._testing.impairments import Impairments
from tomada._testing.link import Link

SIDES = (Impairments(), Impairments())


def capture(path, server, client):
    """Have a session, and write its datagrams to a file; return the server's port."""
    skips.program("tshark")
    with path.open("wb", buffering=0) as file:
        writer = pcap.Writer(file)
        with (
            serving(server) as running,
            Link(running, SIDES, script=None, seed=1, captures=True) as link,
        ):
            with Client(
                link.address, timeout=60, dtls=client, server_hostname="localhost"
            ) as asking:
                assert asking.request(b"hello, shark") == b"HELLO, SHARK"
            eventually(lambda: running.dtls_stats()["ended"] == 1)  # by the client's close_notify
            port = running.address[1]
        for time_ns, source, destination, data in link.take_captured()[0]:
            writer.write(pcap.packet_of(data, source, destination), time_ns)
        writer.flush()
    return port


def tshark(path, port, *options):
    """Return the requested fields of each datagram to and from the server."""
    command = [skips.program("tshark"), "-r", path, "-d", f"udp.port=={port},dtls"]
    command += ["-Y", f"udp.port=={port}", "-T", "fields", *options]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [line.split("\t") for line in output.splitlines()]


@interop("tshark, decrypting with the key log", "server", "{kind}")
@pytest.mark.parametrize("kind", ["ecdsa", "psk"])
def test_tshark_decrypts_with_the_key_log_of_the_server(kind, tmp_path):
    server, client = contexts(kind)
    decrypts(server, client, server, tmp_path)


@interop("tshark, decrypting with the key log", "client", "{kind}")
@pytest.mark.parametrize("kind", ["ecdsa", "psk"])
def test_tshark_decrypts_with_the_key_log_of_the_client(kind, tmp_path):
    server, client = contexts(kind)
    decrypts(server, client, client, tmp_path)


def contexts(kind):
    server, client = of_kind(kind)
    if kind == "psk":
        for context in (server, client):
            context.set_ciphers("PSK-AES128-CCM8:@SECLEVEL=0")  # the one that CoAP prescribes
    return server, client


def decrypts(server, client, logging, folder):
    logging.keylog_filename = str(folder / "keys")
    port = capture(folder / "session.pcap", server, client)
    keys = f"tls.keylog_file:{folder / 'keys'}"
    rows = tshark(folder / "session.pcap", port, "-e", "data.data", "-o", keys)
    texts = [bytes.fromhex(data) for (data,) in rows if data]
    assert texts == [b"hello, shark", b"HELLO, SHARK"]


@interop("tshark", "server", "handshake and records dissected")
def test_tshark_dissects_a_session(tmp_path):
    path = tmp_path / "session.pcap"
    port = capture(path, *of_kind("ecdsa"))
    fields = ["dtls.handshake.type", "dtls.record.content_type", "_ws.malformed"]
    rows = tshark(path, port, *(word for field in fields for word in ("-e", field)))
    handshake = [number for row in rows for number in row[0].split(",") if number]
    # ClientHello, HelloVerifyRequest, ClientHello, ServerHello … (RFC 6347, section 4.2.4)
    assert handshake[:5] == ["1", "3", "1", "2", "11"]
    contents = {number for row in rows for number in row[1].split(",") if number}
    assert contents == {"20", "21", "22", "23"}
    assert not any(row[2] for row in rows)
