"""What a tomada socket has beyond the standard one: many datagrams a call."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

from benches.programs.run import Run, Stopped
from tomada import Batch

if TYPE_CHECKING:
    from tomada.socket import socket

# How many datagrams to ask for at once. A run of the kernel's has up to 64 of them, and so has a
# message of a Batch that receives with gro.
MANY = 1024
RUNS = 64
# Slots for single datagrams need not hold a glued run.
SINGLES = 256


def bind(run: Run) -> socket:
    sock = cast("socket", run.bind())
    sock.gro = run.gro
    return sock


def batch_to_receive(run: Run) -> Batch:
    return Batch(RUNS) if run.gro else Batch(SINGLES, slot_size=max(2048, run.size))


def recv_many(run: Run) -> None:
    sock = bind(run)
    receive, counter = sock.recv_many, run.counter
    run.interrupt_at_end()
    run.announce_socket(sock)
    try:
        while True:
            datagrams = receive(MANY)
            for _data, _address in datagrams:
                pass
            counter[0] += len(datagrams)
    except Stopped:
        pass


def recv_batch(run: Run) -> None:
    sock = bind(run)
    receive, counter, batch = sock.recv_batch, run.counter, batch_to_receive(run)
    run.interrupt_at_end()
    run.announce_socket(sock)
    try:
        while True:
            counter[0] += receive(batch)
    except Stopped:
        pass


def send_many(run: Run) -> None:
    """To one peer a list of bytes, to many a list of pairs."""
    send, counter = cast("socket", run.open()).send_many, run.counter
    run.watch_for_end()
    if run.peers == 1:
        (address,), payloads = run.targets(), run.payloads(MANY)
        while not run.is_stopped:
            counter[0] += send(payloads, address)
    else:
        pairs = run.pairs()
        while not run.is_stopped:
            counter[0] += send(pairs)


def send_batch(run: Run) -> None:
    send, counter = cast("socket", run.open()).send_batch, run.counter
    run.watch_for_end()
    batch = Batch(MANY, slot_size=run.size)
    if run.peers == 1:
        (address,) = run.targets()
        for payload in run.payloads(MANY):
            batch.append(payload)
        while not run.is_stopped:
            counter[0] += send(batch, address)
    else:
        for payload, address in run.pairs():
            batch.append(payload, address)
        while not run.is_stopped:
            counter[0] += send(batch)


def echo_many(run: Run) -> None:
    sock = bind(run)
    receive, send, counter = sock.recv_many, sock.send_many, run.counter
    run.interrupt_at_end()
    run.announce_socket(sock)
    try:
        while True:
            counter[0] += send(receive(MANY))
    except Stopped:
        pass


def echo_batch(run: Run) -> None:
    sock = bind(run)
    receive, send, counter, batch = sock.recv_batch, sock.send_batch, run.counter, Batch(RUNS)
    run.interrupt_at_end()
    run.announce_socket(sock)
    try:
        while True:
            receive(batch)
            counter[0] += send(batch)
    except Stopped:
        pass


def memory(run: Run) -> None:
    """As in blocking.py, but received as one batch."""
    senders, sockets = [run.open() for _ in range(4)], []
    for count in run.opens:
        while len(sockets) < count:
            sock = cast("socket", run.bind())
            for index in range(8):
                senders[index % 4].sendto(bytes(64), sock.getsockname())
            received = 0
            while received < 8:
                received += len(sock.recv_many(64))
            sockets.append(sock)
        run.announce(open=count)
        sys.stdin.readline()
