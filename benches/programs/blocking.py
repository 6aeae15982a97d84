"""The methods of the standard socket, with the standard module or (one import changed) with tomada.

Each program writes out its receive loop, because a shared one would add a call to the timed code.
"""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Callable
from typing import Any

from benches.programs.run import CHUNK, Run


def bind(run: Run) -> Any:
    sock = run.bind()
    if run.spin:
        sock.spin = run.spin
    if run.coalesce:
        sock.coalesce = run.coalesce
    if run.gro:
        sock.gro = True
    return sock


def recvfrom(run: Run) -> None:
    with bind(run) as sock, run.receiving(sock):
        receive, bufsize, counter = sock.recvfrom, max(2048, run.size), run.counter
        while True:
            for _ in CHUNK:
                _data, _address = receive(bufsize)
            counter[0] += len(CHUNK)


def recv_into(run: Run) -> None:
    with bind(run) as sock, run.receiving(sock):
        receive, buffer, counter = sock.recv_into, bytearray(max(2048, run.size)), run.counter
        while True:
            for _ in CHUNK:
                _length = receive(buffer)
            counter[0] += len(CHUNK)


def echo(run: Run) -> None:
    with bind(run) as sock, run.receiving(sock):
        receive, send, counter = sock.recvfrom, sock.sendto, run.counter
        while True:
            for _ in CHUNK:
                data, address = receive(2048)
                send(data, address)
            counter[0] += len(CHUNK)


def sendto(run: Run) -> None:
    send, counter, pairs = run.open().sendto, run.counter, run.pairs()
    run.watch_for_end()
    while not run.is_stopped:
        for data, address in pairs:
            send(data, address)
        counter[0] += len(pairs)


def ping(run: Run) -> None:
    """Keep one request in flight, and print the latencies."""
    sock = run.open()
    sock.connect(("127.0.0.1", run.port))
    if run.spin:
        sock.spin = run.spin
    send, receive, clock, counter = sock.send, sock.recv, time.perf_counter_ns, run.counter
    request = bytes(run.size)
    for seconds in (run.warmup, run.seconds - run.warmup):
        latencies = array("Q")
        started = clock()
        end = started + int(seconds * 1e9)
        while (sent_at := clock()) < end:
            send(request)
            receive(2048)
            latencies.append(clock() - sent_at)
            counter[0] += 1
        elapsed = clock() - started
    rate = len(latencies) / elapsed * 1e9
    run.announce_percentiles(latencies, replies=len(latencies), rate=rate)


def take(sock: Any) -> None:
    for _ in range(8):
        sock.recvfrom(2048)


def memory(run: Run, take: Callable[[Any], None] = take) -> None:
    """Open sockets in steps; each receives eight datagrams, from four senders."""
    senders, sockets = [run.open() for _ in range(4)], []
    for count in run.opens:
        while len(sockets) < count:
            sock = bind(run)
            for index in range(8):
                senders[index % 4].sendto(bytes(64), sock.getsockname())
            take(sock)
            sockets.append(sock)
        run.announce(open=count)
        sys.stdin.readline()
