"""The standard socket's methods: with the standard module or, one import changed, with tomada."""

from __future__ import annotations

import sys
import time
from array import array

from benches.programs.run import CHUNK, Run, Stopped


def recvfrom(run: Run) -> None:
    sock = run.bind()
    receive, bufsize, counter = sock.recvfrom, max(2048, run.size), run.counter
    done = 0
    run.interrupt_at_end()
    run.announce_socket(sock)
    try:
        while True:
            for done in CHUNK:  # noqa: B007 - used at the end
                _data, _address = receive(bufsize)
            counter[0] += len(CHUNK)
    except Stopped:
        counter[0] += done


def recv_into(run: Run) -> None:
    sock = run.bind()
    receive, buffer, counter = sock.recv_into, bytearray(max(2048, run.size)), run.counter
    done = 0
    run.interrupt_at_end()
    run.announce_socket(sock)
    try:
        while True:
            for done in CHUNK:  # noqa: B007 - used at the end
                _length = receive(buffer)
            counter[0] += len(CHUNK)
    except Stopped:
        counter[0] += done


def sendto(run: Run) -> None:
    send, counter, pairs = run.open().sendto, run.counter, run.pairs()
    run.watch_for_end()
    while not run.is_stopped:
        for data, address in pairs:
            send(data, address)
        counter[0] += len(pairs)


def echo(run: Run) -> None:
    sock = run.bind()
    if run.spin:
        sock.spin = run.spin
    receive, send, counter = sock.recvfrom, sock.sendto, run.counter
    done = 0
    run.interrupt_at_end()
    run.announce_socket(sock)
    try:
        while True:
            for done in CHUNK:  # noqa: B007 - used at the end
                data, address = receive(2048)
                send(data, address)
            counter[0] += len(CHUNK)
    except Stopped:
        counter[0] += done


def ping(run: Run) -> None:
    """Keep one request in flight, and print how long the replies took."""
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


def memory(run: Run) -> None:
    """Open sockets that receive eight datagrams each, from four senders, and wait between."""
    senders, sockets = [run.open() for _ in range(4)], []
    for count in run.opens:
        while len(sockets) < count:
            sock = run.bind()
            for index in range(8):
                senders[index % 4].sendto(bytes(64), sock.getsockname())
            for _ in range(8):
                sock.recvfrom(2048)
            sockets.append(sock)
        run.announce(open=count)
        sys.stdin.readline()
