"""Single calls on a socket of the standard module or of tomada, timed in a loop.

A receive drains a queue that was filled in advance, and a send continues while the receiver's queue
overflows, so that only the call is measured. The programs print medians in nanoseconds.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benches.programs.run import Run

BATCH = 500
DATA = bytes(64)

# For each call, a function that prepares it on a receiver and a sender connected to it.
CASES: dict[str, Callable[[Any, Any], Callable[[], object]]] = {
    "recvfrom(2048)": lambda receiver, _: partial(receiver.recvfrom, 2048),
    "recvfrom(262144)": lambda receiver, _: partial(receiver.recvfrom, 262_144),
    "recvfrom(2048), with a timeout": lambda receiver, _: (
        receiver.settimeout(5) or partial(receiver.recvfrom, 2048)
    ),
    "recv(2048)": lambda receiver, _: partial(receiver.recv, 2048),
    "recv_into(bytearray)": lambda receiver, _: partial(receiver.recv_into, bytearray(2048)),
    "recvfrom_into(bytearray)": lambda receiver, _: partial(
        receiver.recvfrom_into, bytearray(2048)
    ),
    "recvmsg(2048)": lambda receiver, _: partial(receiver.recvmsg, 2048),
    "send(bytes)": lambda _, sender: partial(sender.send, DATA),
    "sendto(bytes, tuple)": lambda receiver, sender: partial(
        unconnected(sender).sendto, DATA, receiver.getsockname()
    ),
    "sendmsg([bytes])": lambda _, sender: partial(sender.sendmsg, [DATA]),
}


def unconnected(sender: Any) -> Any:
    return type(sender)(sender.family, sender.type)


def ends(run: Run) -> tuple[Any, Any]:
    receiver, sender = run.bind(), run.open()
    sender.connect(receiver.getsockname())
    return receiver, sender


def one(run: Run) -> None:
    """Time a call repeatedly, with new sockets for each batch of calls."""
    times, end = [batch(run)], time.monotonic() + run.round
    while time.monotonic() < end:
        times.append(batch(run))
    run.announce(call_ns=statistics.median(times))


def batch(run: Run) -> float:
    receiver, sender = ends(run)
    with receiver, sender:
        call = CASES[run.case](receiver, sender)
        if run.case.startswith("recv"):
            for _ in range(BATCH):
                sender.send(DATA)
        started = time.perf_counter_ns()
        for _ in range(BATCH):
            call()
        return (time.perf_counter_ns() - started) / BATCH


def beside_thread(run: Run) -> None:
    """Time a send and a receive while another thread computes in Python."""
    run.use_all_cores()

    def compute() -> None:
        while not run.is_stopped:
            sum(range(500))

    receiver, sender = ends(run)
    thread = threading.Thread(target=compute)
    thread.start()
    pairs, started = 0, time.perf_counter_ns()
    end = started + int(run.round * 1e9)
    while time.perf_counter_ns() < end:
        sender.send(DATA)
        receiver.recv(2048)
        pairs += 1
    elapsed = time.perf_counter_ns() - started
    run.is_stopped = True
    thread.join()
    run.announce(call_ns=elapsed / pairs)
