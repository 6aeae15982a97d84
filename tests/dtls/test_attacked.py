"""Servers among peers without keys, and behind a bad network."""

import asyncio
import contextlib
import socket as std

import pytest

import tomada.asyncio
from dtls_pairs import psk_client, psk_server
from families import LONG
from support import eventually
from tomada import Server, socket
from tomada.testing import impaired


def upper(data, _address):
    return data.upper()


def serving(**settings):
    context = psk_server()
    for name, value in settings.items():
        setattr(context, name, value)
    return Server(("127.0.0.1", 0), upper, dtls=context)


def test_server_drops_replayed_records():
    with serving() as server, std.socket(std.AF_INET, std.SOCK_DGRAM) as relay:
        relay.bind(("127.0.0.1", 0))
        relay.settimeout(30)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(relay.getsockname())
            sock.setblocking(False)
            near = psk_client().wrap_socket(sock, do_handshake_on_connect=False)
            seen = []

            def pass_on():
                data, sender = relay.recvfrom(2000)
                seen.append(data)
                to = near.getsockname() if sender == server.address else server.address
                relay.sendto(data, to)

            with near:
                while near.session is None or server.dtls_stats()["sessions"] == 0:
                    pass_on()
                    with contextlib.suppress(BlockingIOError):
                        near.do_handshake()
                near.send(b"only once")
                pass_on()
                eventually(lambda: server.stats().received == 1)
                for data in seen * 3:
                    relay.sendto(data, server.address)
                near.send(b"and again")
                data, sender = relay.recvfrom(2000)
                while sender == server.address:
                    data, sender = relay.recvfrom(2000)
                relay.sendto(data, server.address)
                eventually(lambda: server.stats().received == 2)
                assert server.dtls_stats()["ended"] == 0


@pytest.mark.family
def test_handshakes_complete_through_a_bad_network():
    # Retransmissions are due after 1, 2, 4, … seconds (RFC 6347, 4.2.4.1), so much loss takes long.
    peers, loss = (100, 0.3) if LONG else (3, 0.1)
    with serving(handshake_timeout=300) as server:
        context = psk_client()
        context.handshake_timeout = 300

        async def connect(link):
            async with tomada.asyncio.open_endpoint(
                remote_addr=link.address, dtls=context
            ) as endpoint:
                while True:
                    endpoint.send(b"hello")
                    with contextlib.suppress(TimeoutError):
                        data, _ = await asyncio.wait_for(endpoint.recv(), 0.5)
                        return data

        async def main(link):
            return await asyncio.gather(*(connect(link) for _ in range(peers)))

        impairments = {"loss": loss, "duplicate": 0.1, "delay": 0.001, "jitter": 0.001}
        with impaired(server, seed=2, **impairments) as link:
            assert tomada.asyncio.run(main(link)) == [b"HELLO"] * peers
