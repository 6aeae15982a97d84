"""Use each part of an installed package once, with only the standard library beside it.

DTLS is a part, unless the argument is ``without-dtls``.
"""

import asyncio
import sys
import threading

import tomada
from tomada import socket


def serve(server):
    data, address = server.recvfrom(2048)
    server.sendto(data.upper(), address)


with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("127.0.0.1", 0))
    server.settimeout(30)
    thread = threading.Thread(target=serve, args=[server])
    thread.start()
    with tomada.Client(server.getsockname(), timeout=30) as client:
        assert client.request(b"ping") == b"PING"
    thread.join()
    server.send_many([b"datagram"] * 10, server.getsockname())
    batch = tomada.Batch()
    while server.stats().received < 11:
        assert server.recv_batch(batch) == len(batch) > 0


def reverse(server_dtls=None, client_dtls=None):
    with (
        tomada.Server(("127.0.0.1", 0), lambda data, _: data[::-1], dtls=server_dtls) as server,
        tomada.Client(server.address, timeout=30, dtls=client_dtls) as client,
    ):
        assert client.request(b"ping") == b"gnip"


reverse()


async def main():
    from tomada.asyncio import open_endpoint

    async with open_endpoint(("127.0.0.1", 0)) as endpoint:
        endpoint.send(b"ping", endpoint.get_extra_info("sockname"))
        return await asyncio.wait_for(endpoint.recv(), 30)


assert asyncio.run(main())[0] == b"ping"


def use_dtls():
    from tomada import dtls

    server = dtls.Context(dtls.PROTOCOL_DTLS_SERVER)
    server.set_psk_server_callback({"smoke": b"a key for tests"}.get)
    client = dtls.Context(dtls.PROTOCOL_DTLS_CLIENT)
    client.set_psk_client_callback(lambda _: ("smoke", b"a key for tests"))
    reverse(server, client)
    return f"with {dtls.OPENSSL_VERSION}"


encryption = "without DTLS" if sys.argv[1:] == ["without-dtls"] else use_dtls()
print(f"tomada {tomada.__version__} works on Python {sys.version.split()[0]}, {encryption}")
