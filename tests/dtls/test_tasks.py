"""Async handlers of servers with sessions."""

import asyncio
import contextlib
import queue
import select

import pytest

from dtls_pairs import psk_client, psk_server
from peer import DEADLINE
from support import eventually
from tomada import Client, Server, socket
from tomada.testing import impaired

every_loop = pytest.mark.parametrize("loop", ["tomada", "asyncio", "uvloop"])

# Where the first record of a handshake has the type of its message, and types (RFC 6347, 4.3.2).
MESSAGE = 13
SERVER_HELLO, COOKIE = 2, 3


@every_loop
@pytest.mark.parametrize("takes", ["data", "datagram", "batch"])
def test_async_handler_sees_plaintext_and_its_replies_are_sealed(loop, takes):
    async def handle(first, *_):
        await asyncio.sleep(0)
        if takes == "batch":
            return [data.upper() for data, _ in first]
        return (first if takes == "data" else first.data).upper()

    server = Server(("127.0.0.1", 0), handle, takes=takes, loop=loop, dtls=psk_server())
    with server, Client(server.address, timeout=60, dtls=psk_client()) as client:
        requests = [b"request %d" % number for number in range(50)]
        replies = client.request_many(requests, window=8)
        assert replies == [request.upper() for request in requests]
        stats = eventually(lambda: (stats := server.stats()).sent >= 50 and stats)
        assert (stats.handler_errors, stats.send_errors) == (0, 0)


@pytest.mark.thread_unsafe(reason="it forks")
def test_async_handlers_of_several_workers():
    async def handle(data, _address):
        await asyncio.sleep(0)
        return data.upper()

    server = Server(("127.0.0.1", 0), handle, workers=2, dtls=psk_server())
    with server, Client(server.address, timeout=60, dtls=psk_client()) as client:
        replies = client.request_many([b"request"] * 20, window=4)
        assert replies == [b"REQUEST"] * 20


def test_more_records_than_calls_may_be_under_way():
    async def handle(data, _address):
        await asyncio.sleep(0)
        return data

    server = Server(("127.0.0.1", 0), handle, max_concurrency=1, dtls=psk_server())
    with server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(server.address)
        with psk_client().wrap_socket(sock) as peer:
            sent = [b"%d" % number * (1 + number % 3) for number in range(30)]
            peer.send_many(sent)
            assert sorted(peer.recv(100) for _ in sent) == sorted(sent)


@every_loop
def test_server_on_a_loop_retransmits_its_part_of_a_handshake(loop):
    async def handle(data, _address):
        return data

    hellos = queue.Queue()

    def script(arrival):
        if arrival.direction == "to_server" or arrival.data[MESSAGE] == COOKIE:
            return "pass"
        if arrival.data[MESSAGE] == SERVER_HELLO:
            hellos.put(arrival)
        return "drop"  # so the client says nothing more

    with (
        Server(("127.0.0.1", 0), handle, loop=loop, dtls=psk_server()) as server,
        impaired(server, script=script) as link,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.connect(link.address)
        sock.setblocking(False)
        with psk_client().wrap_socket(sock, do_handshake_on_connect=False) as client:
            assert select.select([client.fileno()], [], [], DEADLINE)[0]
            with contextlib.suppress(BlockingIOError):
                client.do_handshake()  # with the cookie
            for _ in range(2):
                hellos.get(timeout=DEADLINE)
