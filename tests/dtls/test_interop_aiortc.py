"""Sessions with aiortc's DTLS, which is pyOpenSSL's."""

import asyncio
import hashlib
import socket as std
import ssl
from pathlib import Path

import pytest

from certificates import certificates
from dtls_interop import interop
from dtls_pairs import connected_to, of_kind, server_of, serving
from support import Call
from tomada import dtls

aiortc = pytest.importorskip("aiortc.rtcdtlstransport")


class Ice:
    """A plain socket in place of aiortc's transport for datagrams."""

    def __init__(self, sock, role):
        sock.setblocking(False)
        self._sock = sock
        self.role = role

    async def _send(self, data):
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def _recv(self):
        return await asyncio.get_running_loop().sock_recv(self._sock, 2000)


class Receiver:
    def __init__(self):
        self.received = asyncio.Queue()

    async def _handle_data(self, data):
        await self.received.put(data)


class Transport(aiortc.RTCDtlsTransport):
    """A transport without keys for media, because these sessions carry data only."""

    def _setup_srtp(self):
        pass

    async def exchange(self, der, text):
        """Complete the handshake, send a text if there is one, and return the received data."""
        receiver = Receiver()
        self._register_data_receiver(receiver)
        await self.start(aiortc.RTCDtlsParameters([fingerprint(der)]))
        assert self.state == "connected"
        if text:
            await self._send_data(text)
        data = await asyncio.wait_for(receiver.received.get(), 60)
        if not text:
            await self._send_data(data.upper())
        return data


def fingerprint(der):
    digest = hashlib.sha256(der).digest().hex(":").upper()
    return aiortc.RTCDtlsFingerprint("sha-256", digest)


def der_of(path):
    return ssl.PEM_cert_to_DER_cert(Path(path).read_text(encoding="ascii"))


async def over(sock, role, certificate, der, text=None):
    transport = Transport(Ice(sock, role), [certificate])
    try:
        return await transport.exchange(der, text)
    finally:
        await transport.stop()


@interop("aiortc", "server", "ecdsa")
def test_server_serves_aiortc():
    files = certificates()
    certificate = aiortc.RTCCertificate.generateCertificate()
    with (
        serving(server_of(files.ecdsa)) as server,
        std.socket(std.AF_INET, std.SOCK_DGRAM) as sock,
    ):
        sock.connect(server.address)
        asking = over(sock, "controlled", certificate, der_of(files.ecdsa[0]), b"hello, tomada")
        assert asyncio.run(asking) == b"HELLO, TOMADA"


@interop("aiortc", "client", "mutual")
def test_client_asks_aiortc():
    files = certificates()
    certificate = aiortc.RTCCertificate.generateCertificate()
    client = of_kind("mutual")[1]
    # In WebRTC, the peers know the fingerprints of each other's certificates.
    client.check_hostname = False
    client.verify_mode = dtls.CERT_NONE
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        address = sock.getsockname()

        def ask():
            with connected_to(address, client) as near:
                peer = fingerprint(near.getpeercert(binary_form=True))
                assert peer in certificate.getFingerprints()
                near.send(b"hello, aiortc")
                return near.recv(100)

        async def main():
            asking = Call(ask)
            _, sender = await asyncio.to_thread(sock.recvfrom, 2000, std.MSG_PEEK)
            sock.connect(sender)
            data = await over(sock, "controlling", certificate, der_of(files.client[0]))
            return data, await asyncio.to_thread(asking.result)

        assert asyncio.run(main()) == (b"hello, aiortc", b"HELLO, AIORTC")
