"""The cost of links between a client and a server that pass every datagram, maybe delayed."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from typing import Any

from benches.programs.run import Run
from tomada.testing import impaired

TIMESTAMP = struct.Struct("@qq")  # a timespec, for SO_TIMESTAMPNS
TIMESTAMPNS = 35
PERIOD = 0.001


def direct(run: Run) -> None:
    """Use no link: the client talks to the server directly."""
    run.announce(port=run.port)
    run.wait_for_end()


def link(run: Run) -> None:
    """``tomada.testing.impaired`` without impairments, except the requested delay."""
    if run.delay:
        run.use_real_time()
    with impaired(("127.0.0.1", run.port), delay=run.delay, log_size=0) as passing:
        run.announce(port=passing.address[1])
        run.wait_for_end()


class Front(asyncio.DatagramProtocol):
    """The clients' side of a link in plain asyncio."""

    def __init__(self, port: int, delay: float) -> None:
        self.server = "127.0.0.1", port
        self.delay = delay
        self.backs: dict[Any, Any] = {}

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        back = self.backs.get(addr)
        if back is None:
            self.backs[addr] = [data]
            self.task = asyncio.ensure_future(self.open(addr))
        elif isinstance(back, list):
            back.append(data)
        elif self.delay:
            asyncio.get_running_loop().call_later(self.delay, back.sendto, data)
        else:
            back.sendto(data)

    async def open(self, client: Any) -> None:
        """Open a client's socket towards the server."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: Back(self.transport, client), remote_addr=self.server
        )
        for data in self.backs[client]:
            transport.sendto(data)
        self.backs[client] = transport


class Back(asyncio.DatagramProtocol):
    """The server's side, for one client."""

    def __init__(self, front: Any, client: Any) -> None:
        self.front = front
        self.client = client

    def datagram_received(self, data: bytes, addr: Any) -> None:  # noqa: ARG002
        self.front.sendto(data, self.client)


def plain(run: Run) -> None:
    """Forward datagrams with the standard library alone."""
    if run.delay:
        run.use_real_time()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: Front(run.port, run.delay), local_addr=("127.0.0.1", 0)
        )
        run.announce(port=transport.get_extra_info("sockname")[1])
        await asyncio.to_thread(run.wait_for_end)

    asyncio.run(main())


def depart(run: Run) -> None:
    """Send the current time once per millisecond."""
    run.use_real_time()
    with run.open() as sock:
        sock.connect(("127.0.0.1", run.port))
        while not run.wait_for_end(PERIOD):
            sock.send(time.time_ns().to_bytes(8, "big"))


def arrive(run: Run) -> None:
    """Compare the time in each datagram, plus the delay, with the kernel's arrival time."""
    sock, errors = run.bind(), list[int]()
    sock.setsockopt(socket.SOL_SOCKET, TIMESTAMPNS, 1)
    with run.receiving(sock):
        while True:
            data, ((_, _, stamp), *_), _, _ = sock.recvmsg(8, 100)
            seconds, nanoseconds = TIMESTAMP.unpack(stamp)
            took = seconds * 10**9 + nanoseconds - int.from_bytes(data)
            errors.append(abs(took - round(run.delay * 1e9)))
            run.counter[0] = len(errors)
    run.announce_percentiles(errors)
