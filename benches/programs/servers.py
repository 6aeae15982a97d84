"""Servers that call a handler for each datagram."""

from __future__ import annotations

import asyncio
import socketserver
import time
from collections.abc import Callable
from typing import Any

from benches.programs.run import CHUNK, WAIT, Run
from tomada import Server

# How long a handler that keeps its core busy computes, in nanoseconds.
WORK_NS = 100_000


def standard(run: Run) -> None:
    """``socketserver.UDPServer``."""
    counter, echoed = run.counter, 0

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            nonlocal echoed
            data, sock = self.request
            sock.sendto(data, self.client_address)
            echoed += 1
            if not echoed % len(CHUNK):
                counter[0] = echoed

    with socketserver.UDPServer(("127.0.0.1", 0), Handler, bind_and_activate=False) as server:
        server.socket.close()
        server.socket = run.bind()
        with run.receiving(server.socket):
            server.serve_forever()


def echo(run: Run) -> None:
    serve(run, echoes=True)


def receive(run: Run) -> None:
    serve(run, echoes=False)


def serve(run: Run, *, echoes: bool) -> None:
    """``tomada.Server``."""
    counter, received = run.counter, 0

    def handle(data: bytes, _address: object) -> bytes | None:
        nonlocal received
        received += 1
        if not received % len(CHUNK):
            counter[0] = received
        return data if echoes else None

    serve_handler(run, handle)


def serve_handler(run: Run, handler: Callable[..., Any], **options: Any) -> None:
    sock = run.bind()
    options |= {"gro": run.gro, "spin": run.spin, **run.coalescing}
    with Server(None, handler, sock=sock, **options):
        run.announce_socket(sock)
        while not run.wait_for_end():
            pass


def echo_in_tasks(run: Run) -> None:
    """Serve with an async handler that waits for nothing."""
    counter, received = run.counter, 0

    async def handle(data: bytes, _address: object) -> bytes:
        nonlocal received
        received += 1
        if not received % len(CHUNK):
            counter[0] = received
        return data

    serve_handler(run, handle, loop=run.loop)


def wait_in_tasks(run: Run) -> None:
    """Serve with an async handler that waits, as if for a database."""
    counter, received = run.counter, 0

    async def handle(data: bytes, _address: object) -> bytes:
        nonlocal received
        await asyncio.sleep(WAIT)
        received += 1
        if not received % len(CHUNK):
            counter[0] = received
        return data

    serve_handler(run, handle, loop=run.loop)


def work(run: Run) -> None:
    """Serve with workers whose handler computes for a while, on any core."""
    run.use_all_cores()
    address = ("127.0.0.1", 0)
    several = {"workers": run.workers, "threads": run.threads}
    with Server(address, compute, steering="random", **several) as server:
        run.announce(port=server.address[1])
        while not run.wait_for_end(0.01):
            run.counter[0] = server.stats().received


def compute(_data: bytes, _address: object) -> None:
    # Use the thread's own clock, so that sharing a core does not shorten the work.
    end = time.thread_time_ns() + WORK_NS
    while time.thread_time_ns() < end:
        pass
