"""Threads inside a handler, a protocol or a call when the interpreter is finalized."""

import pytest

from support import Child

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

START = """
import asyncio, threading, time
import tomada, tomada.asyncio
from tomada import socket

busy = threading.Event()

def work(*_):
    busy.set()
    while True:
        time.sleep(0.0001)

def in_background(function):
    threading.Thread(target=function, daemon=True).start()

peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
peer.bind(("127.0.0.1", 0))
"""

PROGRAMS = {
    "server": """
server = tomada.Server(("127.0.0.1", 0), work, drain=0)
server.start()
peer.sendto(b"x", server.address)
busy.wait()
""",
    "server of batches": """
server = tomada.Server(("127.0.0.1", 0), work, takes="batch", drain=0)
server.start()
peer.sendto(b"x", server.address)
busy.wait()
server.stop()
""",
    "init": """
server = tomada.Server(("127.0.0.1", 0), work, init=work, drain=0)
in_background(server.start)
busy.wait()
""",
    "protocol": """
class Protocol(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        transport.sendto(b"x", transport.get_extra_info("sockname"))

    def datagram_received(self, data, address):
        work()

async def main():
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(Protocol, local_addr=("127.0.0.1", 0))
    await asyncio.sleep(1000)

in_background(lambda: tomada.asyncio.run(main()))
busy.wait()
""",
    "error of a peer": """
class Protocol(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        peer.close()
        transport.sendto(b"x")

    def error_received(self, error):
        work()

async def main():
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(Protocol, remote_addr=peer.getsockname())
    await asyncio.sleep(1000)

in_background(lambda: tomada.asyncio.run(main()))
busy.wait()
""",
    "calls": """
def receive():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(0.0001)
        while True:
            for receive in (lambda: sock.recv(100), lambda: sock.recv_many(8)):
                try:
                    receive()
                except TimeoutError:
                    pass
            sock.send_many([(b"x", peer.getsockname())] * 100)

for _ in range(4):
    in_background(receive)
time.sleep(0.01)
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_exit_while_a_thread_is_inside(name):
    with Child("-c", START + PROGRAMS[name]) as child:
        status, _, errors = child.end()
    assert status == 0, errors
