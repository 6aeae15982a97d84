"""The methods of a tomada socket that take many datagrams per call."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from typing import Any

from benches.programs import blocking
from benches.programs.run import Run
from tomada import Batch

# How many datagrams to ask for at once. The kernel coalesces up to 64 of them, so with gro a
# message of a Batch may contain that many.
MANY = 1024
RUNS = 64
# Without gro, the slots of a Batch are small, and more of them pay off.
SINGLES = 256


def recv_many(run: Run) -> None:
    with blocking.bind(run) as sock, run.receiving(sock):
        receive, counter = sock.recv_many, run.counter
        while True:
            datagrams = receive(MANY)
            for _data, _address in datagrams:
                pass
            counter[0] += len(datagrams)


def recv_batch(run: Run) -> None:
    batch = Batch(RUNS) if run.gro else Batch(SINGLES, slot_size=max(2048, run.size))
    with blocking.bind(run) as sock, run.receiving(sock):
        receive, counter = sock.recv_batch, run.counter
        while True:
            counter[0] += receive(batch)


def send_many(run: Run) -> None:
    """Send a list of bytes to one peer, or a list of pairs to many."""
    send, counter = run.open().send_many, run.counter
    data = (run.payloads(MANY), run.targets()[0]) if run.peers == 1 else (run.pairs(),)
    run.watch_for_end()
    while not run.is_stopped:
        counter[0] += send(*data)


def send_batch(run: Run) -> None:
    send, counter, batch = run.open().send_batch, run.counter, Batch(MANY, slot_size=run.size)
    if run.peers == 1:
        for payload in run.payloads(MANY):
            batch.append(payload)
    else:
        for payload, address in run.pairs():
            batch.append(payload, address)
    to = run.targets() if run.peers == 1 else ()
    run.watch_for_end()
    while not run.is_stopped:
        counter[0] += send(batch, *to)


def echo_many(run: Run) -> None:
    with blocking.bind(run) as sock, run.receiving(sock):
        receive, send, counter = sock.recv_many, sock.send_many, run.counter
        while True:
            counter[0] += send(receive(MANY))


def echo_late(run: Run) -> None:
    """Send datagrams back after a delay."""
    waiting: deque[tuple[float, list[Any]]] = deque()
    with blocking.bind(run) as sock:
        with run.receiving(sock):
            while True:
                now = time.monotonic()
                while waiting and waiting[0][0] <= now:
                    sock.send_many(waiting.popleft()[1])
                sock.settimeout(max(waiting[0][0] - now, 0) if waiting else None)
                with contextlib.suppress(BlockingIOError, TimeoutError):
                    datagrams = sock.recv_many(64)
                    waiting.append((time.monotonic() + run.delay, datagrams))
                    run.counter[0] += len(datagrams)
        run.announce(echoed=run.counter[0], kernel_drops=sock.stats().kernel_drops)


def echo_batch(run: Run) -> None:
    with blocking.bind(run) as sock, run.receiving(sock):
        receive, send, counter, batch = sock.recv_batch, sock.send_batch, run.counter, Batch(RUNS)
        while True:
            receive(batch)
            counter[0] += send(batch)


def memory(run: Run) -> None:
    """Do the same as in blocking.py, but receive the datagrams as one batch."""

    def take(sock: Any) -> None:
        received = 0
        while received < 8:
            received += len(sock.recv_many(64))

    blocking.memory(run, take)
