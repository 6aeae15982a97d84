"""A little of everything, for memcheck to watch: ``make valgrind``.

It has few assertions, because the tests check that things work. Everything is small, because it
runs about fifty times slower than usual.
"""

import asyncio
import contextlib
import os
import socket as std
import tempfile
import threading
import warnings

import tomada
import tomada.asyncio
from tomada import socket, testing

try:
    from tomada import dtls
except ImportError:  # a build without DTLS
    dtls = None

DEADLINE = 120
TEXT = b"a datagram"
KEY = b"a key of thirty-two bytes or so."


def bound(family=socket.AF_INET):
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(DEADLINE)
    sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
    return sock


def single():
    """Call each method of the standard class that sends or receives."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with bound(family) as one, bound(family) as other:
            to = other.getsockname()
            one.sendto(TEXT, to)
            assert other.recvfrom(100) == (TEXT, one.getsockname())
            one.connect(to)
            other.connect(one.getsockname())
            for data in (TEXT, b"", bytes(9000)):
                one.send(data)
                assert other.recv(1 << 16) == data
                one.sendmsg([data[:3], data[3:]])
                assert other.recvmsg(1 << 16, 256)[0] == data
                one.sendall(data)
                assert other.recv_into(bytearray(1 << 16)) == len(data)
            one.send(TEXT)
            assert other.recv(4, socket.MSG_PEEK) == TEXT[:4]
            assert other.recvfrom_into(bytearray(4))[0] == 4
            one.send(TEXT)
            parts = [bytearray(3), bytearray(100)]
            assert other.recvmsg_into(parts, 256)[0] == len(TEXT)
            other.settimeout(0.01)
            with contextlib.suppress(TimeoutError):
                other.recv(1)
            one.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            repr(one), one.stats(), one.getpeername()


def unix(folder):
    """Send over AF_UNIX, and descriptors too."""
    names = [f"{folder}/one", f"{folder}/other"]
    socks = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in names]
    with socks[0] as one, socks[1] as other:
        for sock, name in zip(socks, names, strict=True):
            sock.settimeout(DEADLINE)
            sock.bind(name)
        one.sendto(TEXT, names[1])
        assert other.recvfrom(100) == (TEXT, names[0])
        one.connect(names[1])
        socket.send_fds(one, [TEXT], [0, 1])
        _, descriptors, _, _ = socket.recv_fds(other, 100, 2)
        for descriptor in descriptors:
            os.close(descriptor)
        one.send_many([(TEXT, names[1])] * 5)
        assert len(other.recv_many()) == 5


def many():
    """Send and receive lists and batches, coalesced and not."""
    for gro in (False, True):
        with bound() as one, bound() as other:
            other.gro = gro
            to = other.getsockname()
            left = one.send_many([bytes(200)] * 30, to)
            left += one.send_many([(bytes(number), to) for number in range(20)])
            while left:
                left -= len(other.recv_many(7))
            one.send_many([bytes(100)] * 20, to)
            with contextlib.suppress(BlockingIOError):
                other.settimeout(0)
                other.recv_datagrams(3)
                other.recv(10)
                other.recv_batch(tomada.Batch(2, slot_size=64))
                while True:
                    other.recvmsg(100, 100)
            other.settimeout(DEADLINE)
            batch = tomada.Batch(8)
            batch.extend(bytes(1000), 100)
            batch.append(TEXT, to)
            one.send_batch(batch, to)
            received = 0
            while received < 11:
                received += other.recv_batch(batch)
                assert bytes(batch)
                assert list(batch)
                assert batch.lengths.tolist()
            failed = one.send_many([bytes(70_000), TEXT], to, errors="continue")
            assert [index for index, _ in failed] == [0]


def metadata():
    """Use control messages, groups, the error queue, and the reply source."""
    with bound() as gone:
        nobody = gone.getsockname()
    for family in (socket.AF_INET, socket.AF_INET6):
        anywhere = "0.0.0.0" if family == socket.AF_INET else "::"  # noqa: S104
        with socket.socket(family, socket.SOCK_DGRAM) as server, bound(family) as client:
            server.bind((anywhere, 0))
            server.settimeout(DEADLINE)
            host = client.getsockname()[0]
            server.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                server.recv_datagrams()
            server.settimeout(DEADLINE)
            client.sendto(TEXT, (host, server.getsockname()[1]))
            datagram = server.recv_datagram()
            repr(datagram), datagram.timestamp_ns, datagram.destination, datagram.ecn
            datagram.reply(TEXT)
            assert client.recv(100) == TEXT
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 0))
        sock.settimeout(DEADLINE)
        sock.join_group("239.7.7.7", "lo")
        sock.join_group("232.7.7.7", "lo", "127.0.0.1")
        sock.leave_group("239.7.7.7", "lo")
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVERR, 1)
        sock.sendto(TEXT, nobody)
        with contextlib.suppress(ConnectionRefusedError):
            sock.sendto(TEXT, nobody)
        errors = sock.errors()
        assert repr(errors[0])
        assert errors[0].peer == nobody


def guarded():
    """Make a guard check everything that it can."""
    guard = tomada.Guard(
        allow=["127.0.0.0/8", "::1"],
        deny=["127.9.0.0/16"],
        rate=1000,
        burst=5,
        ceiling=10_000,
        amplification=3,
        max_size=100,
        sources=64,
    )
    with bound() as one, bound() as other:
        other.guard = guard
        one.send_many([TEXT] * 20 + [bytes(200)], other.getsockname())
        other.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            other.recv(10, socket.MSG_PEEK)
            other.recv(10)
            other.recv_many()
            other.recv_batch(tomada.Batch(4))
        with contextlib.suppress(PermissionError):
            for _ in range(5):
                other.sendto(bytes(100), one.getsockname())
                other.send_many([bytes(100)] * 3, one.getsockname())
        guard.validate(one.getsockname())
        assert guard.stats().refused
        assert repr(guard)
        assert guard.kernel_filter


def closing():
    """Close in one thread while others wait."""
    for receive in (
        lambda sock: sock.recv(10),
        lambda sock: sock.recv_many(),
        lambda sock: sock.recv_batch(tomada.Batch(2)),
    ):
        sock = bound()
        ended = []

        def wait(receive=receive, sock=sock, ended=ended):
            try:
                receive(sock)
            except OSError as error:
                ended.append(error)

        threads = [threading.Thread(target=wait) for _ in range(2)]
        for thread in threads:
            thread.start()
        sock.spin = 0.001
        sock.close()
        for thread in threads:
            thread.join()
        assert len(ended) == 2


class Echo(asyncio.DatagramProtocol):
    def __init__(self, done, count):
        self.done, self.left = done, count

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        self.left -= 1
        if self.left == 0:
            self.done.set()
        if self.left >= 0:
            self.transport.sendto(data, addr)


class Batches(Echo):
    def datagrams_received(self, datagrams):
        for data, addr in datagrams:
            self.datagram_received(data, addr)


async def transports():
    """Make transports with each kind of protocol, endpoints, and errors."""
    loop = asyncio.get_running_loop()
    for kind in (Echo, Batches):
        done = asyncio.Event()
        transport, _ = await loop.create_datagram_endpoint(
            lambda kind=kind, done=done: kind(done, 20),
            local_addr=("0.0.0.0", 0),  # noqa: S104
        )
        to = ("127.0.0.1", transport.get_extra_info("sockname")[1])
        async with tomada.asyncio.open_endpoint(remote_addr=to) as endpoint:
            endpoint.send(TEXT)
            endpoint.send_many([TEXT] * 10)
            assert (await endpoint.recv())[0] == TEXT
            assert await endpoint.recv_many()
            assert await endpoint.request(TEXT, timeout=DEADLINE) == TEXT
            endpoint.send_many([TEXT] * 10)
            await done.wait()
            await endpoint.drain()
            repr(endpoint), endpoint.stats()
            waiting = asyncio.create_task(endpoint.recv_datagram())
            await asyncio.sleep(0)
            waiting.cancel()
        transport.close()
    async with tomada.asyncio.open_endpoint(remote_addr=("127.0.0.1", 9)) as endpoint:
        with contextlib.suppress(OSError, TimeoutError):
            for _ in range(3):
                endpoint.send(TEXT)
                await asyncio.wait_for(endpoint.recv(), 0.1)


def servers():
    """Serve with each kind of handler."""
    handlers = {
        "data": lambda data, _: None if data == b"quiet" else data.upper(),
        "datagram": lambda datagram: datagram.data.upper(),
        "batch": lambda batch: [data.upper() for data, _ in batch],
    }
    for takes, handler in handlers.items():
        with tomada.Server(("0.0.0.0", 0), handler, takes=takes) as server:  # noqa: S104
            address = ("127.0.0.1", server.address[1])
            for match in (None, lambda request, reply: reply == request.upper()):
                with tomada.Client(address, timeout=DEADLINE, match=match) as client:
                    assert client.request(TEXT) == TEXT.upper()
                    assert len(client.request_many([b"%d" % n for n in range(10)])) == 10
            with bound() as sock:
                sock.sendto(TEXT, address)
                assert sock.recv(100) == TEXT.upper()
                server.sendto(TEXT, sock.getsockname())
                assert sock.recv(100) == TEXT
            assert server.stats().received
            assert repr(server.stats())


def proxied():
    """Take requests from a proxy, and handle them in tasks."""

    async def handle(data, address):
        await asyncio.sleep(0)
        assert address == ("192.0.2.1", 1234)
        return data.upper()

    with (
        tomada.Server(("127.0.0.1", 0), handle, proxy=["127.0.0.0/8"]) as server,
        tomada.Client(server.address, timeout=DEADLINE, proxy_from=("192.0.2.1", 1234)) as client,
    ):
        assert client.request(TEXT) == TEXT.upper()


def linked():
    """Send requests through a link that impairs the network, encrypted and not."""
    sides = [(None, None)]
    if dtls is not None:
        near, far = (
            dtls.Context(side) for side in (dtls.PROTOCOL_DTLS_CLIENT, dtls.PROTOCOL_DTLS_SERVER)
        )
        near.set_psk_client_callback(lambda _hint: ("exercise", KEY))
        far.set_psk_server_callback({"exercise": KEY}.get)
        sides.append((near, far))
    requests = [b"%d" % number for number in range(10)]
    for near, far in sides:
        with tomada.Server(("127.0.0.1", 0), lambda data, _: data, dtls=far) as server:
            with (
                testing.impaired(server, duplicate=0.2, reorder=0.2, delay=0.001) as link,
                tomada.Client(link.address, timeout=DEADLINE, dtls=near) as client,
            ):
                assert list(client.request_many(requests)) == requests
            asyncio.run(asking(server.address, near))
            if near is not None:
                wrapped(server.address, near)


async def asking(address, near):
    async with tomada.asyncio.Client(address, timeout=DEADLINE, dtls=near) as client:
        replies = await asyncio.gather(*(client.request(TEXT) for _ in range(5)))
        assert replies == [TEXT] * 5
    async with tomada.asyncio.open_endpoint(remote_addr=address, dtls=near) as endpoint:
        assert await endpoint.request(TEXT, timeout=DEADLINE) == TEXT


def wrapped(address, near):
    with bound() as sock:
        sock.connect(address)
        with near.wrap_socket(sock) as wrapped:
            wrapped.send(TEXT)
            assert wrapped.recv(100) == TEXT
            assert wrapped.cipher()


def main():
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        unix(folder)
    for part in (single, many, metadata, guarded, closing, servers, proxied, linked):
        part()
        print(part.__name__, flush=True)
    tomada.asyncio.run(transports())
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as plain:
        socket.fromfd(plain.fileno(), plain.family, plain.type).close()
    print("done")


if __name__ == "__main__":
    main()
