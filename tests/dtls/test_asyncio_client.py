"""Requests of tasks over DTLS."""

import asyncio
import contextlib
import socket as std

import pytest

import tomada.asyncio
from certificates import certificates
from dtls_pairs import psk_client, psk_server, server_of, trusting
from tomada import Client, Server, dtls

# How replies are told apart: by a port and a session of their own, by a match, or by a key.
every_identity = pytest.mark.parametrize(
    "identity",
    [
        {},
        {"match": lambda request, reply: request.upper() == reply},
        {"key": lambda data: data.upper()},
    ],
    ids=["ports", "match", "key"],
)


def upper(data, _address):
    return data.upper()


def serving(context, address=("127.0.0.1", 0)):
    return Server(address, upper, dtls=context)


def run(main, loop="tomada"):
    if loop == "uvloop":
        return pytest.importorskip("uvloop").run(asyncio.wait_for(main, 60))
    runner = asyncio if loop == "asyncio" else tomada.asyncio
    return runner.run(asyncio.wait_for(main, 60))


def client_of(server, context, **options):
    options.setdefault("timeout", 30)
    return tomada.asyncio.Client(server.address, dtls=context, **options)


@every_identity
@pytest.mark.parametrize("loop", ["tomada", "asyncio", "uvloop"])
def test_requests_of_many_tasks(loop, identity):
    async def main(server):
        requests = [b"request %d" % number for number in range(40)]
        async with client_of(server, psk_client(), max_in_flight=8, **identity) as client:
            replies = await asyncio.gather(*map(client.request, requests))
            assert replies == [request.upper() for request in requests]
            assert await client.request_many(requests) == replies
            stats = client.stats()
            assert (stats.replies, stats.errors, stats.timeouts) == (80, 0, 0)
        # Each request in flight has a session, and all of them share one if they can.
        established = server.dtls_stats()["established"]
        assert established == 1 if identity else established <= 8

    with serving(psk_server()) as server:
        run(main(server), loop)


def test_requests_one_after_another_use_one_session():
    async def main(server):
        async with client_of(server, psk_client()) as client:
            for number in range(20):
                assert await client.request(b"request %d" % number) == b"REQUEST %d" % number

    with serving(psk_server()) as server:
        run(main(server))
        assert server.dtls_stats()["established"] == 1


@every_identity
def test_client_verifies_the_server(identity):
    files = certificates()

    async def main(server):
        async with client_of(server, trusting(files.ca), **identity) as client:
            assert await client.request(b"hello") == b"HELLO"
        other = {"server_hostname": "other.example", **identity}
        async with client_of(server, trusting(files.ca), **other) as client:
            for _ in range(2):  # the second begins another handshake
                with pytest.raises(dtls.DTLSCertVerificationError, match="ostname mismatch"):
                    await client.request(b"hello")

    with serving(server_of(files.ecdsa)) as server:
        run(main(server))


@every_identity
def test_client_begins_another_session_when_the_server_has_ended_one(identity):
    context = psk_server()

    async def main():
        server = serving(context)
        server.start()
        async with client_of(server, psk_client(), retries=20, **identity) as client:
            assert await client.request(b"first") == b"FIRST"
            await asyncio.to_thread(server.stop)
            with serving(context, server.address):
                assert await client.request(b"second") == b"SECOND"

    run(main())


class Relay(asyncio.DatagramProtocol):
    """Forwards datagrams to a server, and the replies back."""

    def __init__(self, server):
        self._server = server
        self._ways = {}
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport):
        self._transport = transport

    def datagram_received(self, data, client):
        if client not in self._ways:
            sock = std.socket(std.AF_INET, std.SOCK_DGRAM)
            sock.setblocking(False)
            sock.connect(self._server)
            self._loop.add_reader(
                sock, lambda: self._transport.sendto(sock.recv(2000, std.MSG_DONTWAIT), client)
            )
            self._ways[client] = sock
        self._ways[client].send(data)

    def switch_to(self, server):
        """Forward to another server from now on."""
        for sock in self._ways.values():
            self._loop.remove_reader(sock)
            sock.close()
        self._ways.clear()
        self._server = server


@every_identity
def test_client_begins_another_session_when_the_server_has_forgotten_one(identity):
    async def main(one, other):
        loop = asyncio.get_running_loop()
        transport, relay = await loop.create_datagram_endpoint(
            lambda: Relay(one.address), ("127.0.0.1", 0)
        )
        address = transport.get_extra_info("sockname")
        options = {"dtls": psk_client(), "timeout": 0.5, **identity}

        async def ask(client, data):
            for _ in range(50):
                with contextlib.suppress(TimeoutError):
                    return await client.request(data)
            pytest.fail("no session")

        async with tomada.asyncio.Client(address, **options) as client:
            assert await ask(client, b"first") == b"FIRST"
            relay.switch_to(other.address)  # as if it had crashed and were back
            assert await ask(client, b"second") == b"SECOND"
        relay.switch_to(None)
        transport.close()

    context = psk_server()
    with serving(context) as one, serving(context) as other:
        run(main(one, other))


@every_identity
def test_cancelled_requests_leave_the_handshake_to_others(identity):
    async def main():
        loop = asyncio.get_running_loop()
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as silent:
            silent.setblocking(False)
            silent.bind(("127.0.0.1", 0))
            address = silent.getsockname()
            async with tomada.asyncio.Client(
                address, timeout=30, dtls=psk_client(), **identity
            ) as client:
                cancelled = asyncio.ensure_future(client.request(b"cancelled"))
                await loop.sock_recv(silent, 2000)  # its first message
                silent.close()
                cancelled.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await cancelled
                with serving(psk_server(), address):
                    assert await client.request(b"answered") == b"ANSWERED"

    run(main())


@every_identity
def test_no_server(identity):
    async def main():
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as unused:
            unused.bind(("127.0.0.1", 0))
            address = unused.getsockname()
        options = {"dtls": psk_client(), "timeout": 0.3, **identity}
        async with tomada.asyncio.Client(address, **options) as client:
            with pytest.raises(TimeoutError) as caught:
                await client.request(b"anybody?")
            assert isinstance(caught.value.__cause__, ConnectionRefusedError)
        async with tomada.asyncio.Client(address, retry_refused=False, **options) as client:
            with pytest.raises(ConnectionRefusedError):
                await client.request(b"anybody?")

    run(main())


@every_identity
def test_silent_server_delays_nothing_else(identity):
    async def main():
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            async with tomada.asyncio.Client(
                silent.getsockname(), timeout=0.4, dtls=psk_client(), **identity
            ) as client:
                waiting = asyncio.ensure_future(client.request(b"hello"))
                turns = 0
                while not waiting.done():
                    await asyncio.sleep(0.001)
                    turns += 1
                with pytest.raises(TimeoutError, match=r"no DTLS session with 127\.0\.0\.1:\d+: "):
                    await waiting
                assert turns > 20  # 400, unless the machine is busy

    run(main())


@every_identity
def test_client_checks_the_context(identity):
    for context, error in ((psk_server(), ValueError), ("secret", TypeError)):
        with pytest.raises(error, match=r"PROTOCOL_DTLS_CLIENT|dtls\.Context"):
            tomada.asyncio.Client(("127.0.0.1", 9), dtls=context, **identity)


@pytest.mark.parametrize("has_match", [False, True])
def test_client_of_threads_begins_another_session(has_match):
    match = (lambda request, reply: request.upper() == reply) if has_match else None
    context = psk_server()
    with serving(context) as server:
        address = server.address
        client = Client(address, timeout=30, retries=20, match=match, dtls=psk_client())
        assert client.request(b"first") == b"FIRST"
        assert client.request_many([b"a", b"b"]) == [b"A", b"B"]
    with client, serving(context, address):
        assert client.request(b"second") == b"SECOND"
        assert client.request_many([b"a", b"b"]) == [b"A", b"B"]
