"""Endpoints of trio with sessions."""

import socket as std

import pytest

from certificates import certificates
from dtls_pairs import psk_client, psk_server, server_of, trusting
from tomada import Server, dtls

trio = pytest.importorskip("trio")

from tomada.trio import open_endpoint  # noqa: E402 - it needs trio


def upper(data, _address):
    return data.upper()


def run(main):
    async def limited():
        with trio.fail_after(60):
            await main()

    trio.run(limited)


def test_open_endpoint_asks_a_server():
    async def main():
        with Server(("127.0.0.1", 0), upper, dtls=psk_server()) as server:
            async with open_endpoint(remote_addr=server.address, dtls=psk_client()) as endpoint:
                for number in range(20):
                    endpoint.send(b"datagram %d" % number)
                    assert (await endpoint.recv())[0] == b"DATAGRAM %d" % number
                session = endpoint.get_extra_info("dtls")()
                assert session.psk_identity == "tester"
            assert server.dtls_stats()["established"] == 1

    run(main)


def test_open_endpoint_serves_many_peers():
    async def main():
        async def serve(endpoint):
            async for data, address in endpoint:
                endpoint.send(data.upper(), address)

        async def ask(address, number):
            async with open_endpoint(remote_addr=address, dtls=psk_client()) as endpoint:
                for turn in range(3):
                    text = b"peer %d turn %d" % (number, turn)
                    endpoint.send(text)
                    assert (await endpoint.recv())[0] == text.upper()

        async with (
            open_endpoint(("127.0.0.1", 0), dtls=psk_server()) as server,
            trio.open_nursery() as serving,
        ):
            serving.start_soon(serve, server)
            async with trio.open_nursery() as asking:
                for number in range(10):
                    asking.start_soon(ask, server.get_extra_info("sockname"), number)
            serving.cancel_scope.cancel()

    run(main)


def test_open_endpoint_verifies_the_server():
    files = certificates()

    async def main():
        with Server(("127.0.0.1", 0), upper, dtls=server_of(files.ecdsa)) as server:
            options = {"remote_addr": server.address, "dtls": trusting(files.ca)}
            async with open_endpoint(**options) as endpoint:
                endpoint.send(b"hello")
                assert (await endpoint.recv())[0] == b"HELLO"
            with pytest.raises(dtls.DTLSCertVerificationError, match="ostname mismatch"):
                await open_endpoint(**options, server_hostname="other.example")

    run(main)


def test_open_endpoint_ends_with_the_session():
    async def main():
        with Server(("127.0.0.1", 0), upper, dtls=psk_server()) as server:
            endpoint = await open_endpoint(remote_addr=server.address, dtls=psk_client())
            endpoint.send(b"hello")
            assert (await endpoint.recv())[0] == b"HELLO"
        with pytest.raises((dtls.DTLSZeroReturnError, ConnectionRefusedError)):
            await endpoint.recv()  # its own answer to the end may have been refused
        await endpoint.aclose()

    run(main)


def test_cancelling_a_handshake_closes_its_socket():
    async def main():
        async def connect():
            await open_endpoint(remote_addr=silent.getsockname(), dtls=psk_client())

        with std.socket(std.AF_INET, std.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connect)
                await trio.lowlevel.wait_readable(silent)
                nursery.cancel_scope.cancel()
            _, client = silent.recvfrom(2000)
            with std.socket(std.AF_INET, std.SOCK_DGRAM) as next_one:
                next_one.bind(client)  # the port is free

    run(main)


def test_open_endpoint_checks_the_context():
    with pytest.raises(ValueError, match="PROTOCOL_DTLS_SERVER"):
        open_endpoint(("127.0.0.1", 0), dtls=psk_client())
    with pytest.raises(ValueError, match="PROTOCOL_DTLS_CLIENT"):
        open_endpoint(remote_addr=("127.0.0.1", 9), dtls=psk_server())
    with pytest.raises(TypeError, match=r"tomada\.dtls\.Context"):
        open_endpoint(remote_addr=("127.0.0.1", 9), dtls="secret")
