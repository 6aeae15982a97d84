"""Sessions with trio's DTLS, which is pyOpenSSL's."""

import socket as std

import pytest

from certificates import certificates
from dtls_interop import interop
from dtls_pairs import server_of, serving, trusting
from tomada import Client

trio = pytest.importorskip("trio")
SSL = pytest.importorskip("OpenSSL.SSL")


@interop("trio", "server", "ecdsa")
def test_server_serves_trio():
    files = certificates()
    context = SSL.Context(SSL.DTLS_METHOD)
    context.load_verify_locations(files.ca)
    context.set_verify(SSL.VERIFY_PEER, None)

    async def ask(address):
        with (
            trio.socket.socket(std.AF_INET, std.SOCK_DGRAM) as sock,
            trio.DTLSEndpoint(sock) as endpoint,
        ):
            channel = endpoint.connect(address, context)
            await channel.do_handshake()
            await channel.send(b"hello, tomada")
            with trio.fail_after(60):
                return await channel.receive()

    with serving(server_of(files.ecdsa)) as server:
        assert trio.run(ask, server.address) == b"HELLO, TOMADA"


@interop("trio", "client", "rsa")
def test_client_asks_trio():
    files = certificates()
    context = SSL.Context(SSL.DTLS_METHOD)
    context.use_certificate_file(files.rsa[0])
    context.use_privatekey_file(files.rsa[1])

    def ask(address):
        with Client(address, timeout=60, dtls=trusting(files.ca)) as client:
            return client.request(b"hello, trio")

    async def serve(channel):
        await channel.send((await channel.receive()).upper())

    async def main():
        with (
            trio.socket.socket(std.AF_INET, std.SOCK_DGRAM) as sock,
            trio.DTLSEndpoint(sock) as endpoint,
        ):
            await sock.bind(("127.0.0.1", 0))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(endpoint.serve, context, serve)
                reply = await trio.to_thread.run_sync(ask, sock.getsockname())
                nursery.cancel_scope.cancel()
                return reply

    assert trio.run(main) == b"HELLO, TRIO"
