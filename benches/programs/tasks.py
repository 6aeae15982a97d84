"""Tasks on one event loop that send requests to one server over one socket, many in flight."""

from __future__ import annotations

import asyncio
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count
from socket import AF_INET, SOCK_DGRAM, SOL_SOCKET
from typing import Any

import tomada
from benches.programs.loops import start
from benches.programs.run import CHUNK, Run
from tomada.asyncio import Client, open_endpoint

ATTEMPTS = 4
PATIENCE = 1.0
# The number of 64-byte requests that are certain to fit into the server's receive buffer.
FITTING = 160
# The number of latencies to keep.
KEPT = 200_000

SO_MEMINFO = 55


class Multiplexer(asyncio.DatagramProtocol):
    """A client written by hand: a dictionary of futures, and a timer for each request."""

    def __init__(self) -> None:
        self.futures: dict[bytes, asyncio.Future[bytes]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def datagram_received(self, data: bytes, _address: object) -> None:
        future = self.futures.get(data[:8])
        if future is not None and not future.done():
            future.set_result(data)

    async def request(self, data: bytes) -> bytes:
        loop, key = asyncio.get_running_loop(), data[:8]
        try:
            for _ in range(ATTEMPTS):
                self.futures[key] = future = loop.create_future()
                self.transport.sendto(data)
                try:
                    return await asyncio.wait_for(future, PATIENCE)
                except TimeoutError:
                    continue
            raise TimeoutError
        finally:
            del self.futures[key]


def multiplexer(run: Run) -> None:
    async def main() -> None:
        transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
            Multiplexer, remote_addr=("127.0.0.1", run.port)
        )
        await ask_in_tasks(run, protocol.request, lambda: drops(transport))

    start(run, main)


def client(run: Run) -> None:
    async def main() -> None:
        async with Client(
            ("127.0.0.1", run.port), key=lambda data: data[:8], max_in_flight=run.tasks
        ) as client:
            await ask_in_tasks(run, client.request, lambda: client.stats().kernel_drops)

    start(run, main)


def futures(run: Run) -> None:
    """Only wake the tasks: no deadline, no retry, no check of the sender.

    No client that serves tasks can take less time. A task waits for a lost reply until the end.
    """

    async def main() -> None:
        loop = asyncio.get_running_loop()
        waiting: dict[bytes, asyncio.Future[bytes]] = {}
        unsent: list[bytes] = []
        is_due = False

        def send() -> None:
            nonlocal is_due
            is_due = False
            room = FITTING - (len(waiting) - len(unsent))
            sock.send_many(unsent[:room])
            del unsent[:room]

        def send_soon() -> None:
            nonlocal is_due
            if not is_due:
                is_due = True
                loop.call_soon(send)

        def receive() -> None:
            for data, _ in sock.recv_many(64):
                waiting.pop(data[:8]).set_result(data)
            if unsent:
                send_soon()

        async def request(data: bytes) -> bytes:
            future = waiting[data[:8]] = loop.create_future()
            unsent.append(data)
            send_soon()
            return await future

        with tomada.socket.socket(AF_INET, SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(("127.0.0.1", run.port))
            loop.add_reader(sock.fileno(), receive)
            try:
                await ask_in_tasks(run, request, lambda: sock.stats().kernel_drops)
            finally:
                loop.remove_reader(sock.fileno())

    start(run, main)


def endpoint(run: Run) -> None:
    """Send requests with ``match``, which queue behind each other."""

    async def main() -> None:
        async with open_endpoint(remote_addr=("127.0.0.1", run.port)) as opened:

            def request(data: bytes) -> Coroutine[Any, Any, bytes]:
                return opened.request(data, match=lambda sent, got: sent[:8] == got[:8])

            await ask_in_tasks(run, request, lambda: opened.stats().kernel_drops)

    start(run, main)


def drops(transport: asyncio.BaseTransport) -> int:
    """Return how many datagrams the kernel has dropped because the receive buffer was full."""
    sock = transport.get_extra_info("socket")
    (number,) = struct.unpack("32xI", sock.getsockopt(SOL_SOCKET, SO_MEMINFO, 36))
    return int(number)


async def ask_in_tasks(
    run: Run, request: Callable[[bytes], Awaitable[bytes]], drops: Callable[[], int]
) -> None:
    counter, numbers, padding = run.counter, count(), bytes(run.size - 8)
    latencies: deque[int] = deque(maxlen=KEPT)
    done, is_over = 0, False

    async def ask() -> None:
        nonlocal done
        while not is_over:  # before Python 3.12, wait_for() may swallow a cancellation
            data = next(numbers).to_bytes(8, "big") + padding
            began = time.perf_counter_ns()
            try:
                await request(data)
            except TimeoutError:
                continue
            latencies.append(time.perf_counter_ns() - began)
            done += 1
            if not done % len(CHUNK):
                counter[0] = done

    tasks = [asyncio.create_task(ask()) for _ in range(run.tasks)]
    try:
        await asyncio.wait(tasks)
    finally:
        is_over = True
        for task in tasks:
            task.cancel()
        run.announce_percentiles(latencies, kernel_drops=drops())
