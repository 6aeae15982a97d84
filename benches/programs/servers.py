"""Servers that call a handler for each datagram."""

from __future__ import annotations

import os
import socketserver
import time

from benches.programs.run import CHUNK, Run, Stopped
from tomada import Server

# How long a handler computes that keeps its core busy.
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
        run.interrupt_at_end()
        run.announce_socket(server.socket)
        try:
            server.serve_forever()
        except Stopped:
            counter[0] = echoed


def echo(run: Run) -> None:
    """``tomada.Server``."""
    counter, echoed = run.counter, 0

    def handle(data: bytes, _address: object) -> bytes:
        nonlocal echoed
        echoed += 1
        if not echoed % len(CHUNK):
            counter[0] = echoed
        return data

    sock = run.bind()
    with Server(None, handle, sock=sock, gro=run.gro, spin=run.spin):
        run.announce_socket(sock)
        run.wait_until_input_ends()


def receive(run: Run) -> None:
    counter, received = run.counter, 0

    def handle(_data: bytes, _address: object) -> None:
        nonlocal received
        received += 1
        if not received % len(CHUNK):
            counter[0] = received

    sock = run.bind()
    with Server(None, handle, sock=sock, gro=run.gro):
        run.announce_socket(sock)
        run.wait_until_input_ends()


def work(run: Run) -> None:
    """Workers whose handler computes for a while, on any core."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    address = ("127.0.0.1", 0)
    with Server(address, compute, workers=run.workers, steering="random") as server:
        run.announce(port=server.address[1])
        while not run.is_input_over(0.01):
            run.counter[0] = server.stats().received


def compute(_data: bytes, _address: object) -> None:
    # By the thread's own clock, so that who shares a core has to work as much.
    end = time.thread_time_ns() + WORK_NS
    while time.thread_time_ns() < end:
        pass
