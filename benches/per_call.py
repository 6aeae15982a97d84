"""Each hot method of a tomada socket against the standard class's, in one process.

Both sides run in turns, round after round, on one core; the table has the medians over the rounds.
A receive is timed while draining a queue that was filled before, a send while the receiver's queue
overflows, so that nothing but the call is measured.
"""

from __future__ import annotations

import argparse
import os
import platform
import socket as std
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tomada import socket as tomada

PAYLOAD = b"x" * 64
BATCH = 500
Step = Callable[[], object]


@dataclass
class Ends:
    """A receiver, and a sender connected to it."""

    module: ModuleType
    receiver: std.socket
    sender: std.socket

    @classmethod
    def make(cls, module: ModuleType) -> Ends:
        receiver = module.socket(module.AF_INET, module.SOCK_DGRAM)
        receiver.bind(("127.0.0.1", 0))
        receiver.setsockopt(module.SOL_SOCKET, module.SO_RCVBUF, 1_000_000)
        sender = module.socket(module.AF_INET, module.SOCK_DGRAM)
        sender.connect(receiver.getsockname())
        return cls(module, receiver, sender)

    def close(self) -> None:
        self.receiver.close()
        self.sender.close()


def recvfrom(ends: Ends) -> Step:
    return lambda call=ends.receiver.recvfrom: call(2048)


def recvfrom_large(ends: Ends) -> Step:
    return lambda call=ends.receiver.recvfrom: call(262_144)


def recvfrom_timeout(ends: Ends) -> Step:
    ends.receiver.settimeout(5)
    return lambda call=ends.receiver.recvfrom: call(2048)


def recv(ends: Ends) -> Step:
    return lambda call=ends.receiver.recv: call(2048)


def recv_into(ends: Ends) -> Step:
    buffer = bytearray(2048)
    return lambda call=ends.receiver.recv_into: call(buffer)


def recvfrom_into(ends: Ends) -> Step:
    buffer = bytearray(2048)
    return lambda call=ends.receiver.recvfrom_into: call(buffer)


def recvmsg(ends: Ends) -> Step:
    return lambda call=ends.receiver.recvmsg: call(2048)


def send(ends: Ends) -> Step:
    return lambda call=ends.sender.send: call(PAYLOAD)


def sendto(ends: Ends) -> Step:
    sender = ends.module.socket(ends.module.AF_INET, ends.module.SOCK_DGRAM)
    ends.sender.close()
    ends.sender = sender
    address = ends.receiver.getsockname()
    return lambda call=sender.sendto: call(PAYLOAD, address)


def sendmsg(ends: Ends) -> Step:
    return lambda call=ends.sender.sendmsg: call([PAYLOAD])


METHODS: list[tuple[str, Callable[[Ends], Step], float]] = [
    ("recvfrom(2048)", recvfrom, 1.1),
    ("recvfrom(262144)", recvfrom_large, 5),
    ("recvfrom(2048), with a timeout", recvfrom_timeout, 1.3),
    ("recv(2048)", recv, 0.97),
    ("recv_into(bytearray)", recv_into, 0.97),
    ("recvfrom_into(bytearray)", recvfrom_into, 0.97),
    ("recvmsg(2048)", recvmsg, 0.97),
    ("send(bytes)", send, 0.97),
    ("sendto(bytes, tuple)", sendto, 0.97),
    ("sendmsg([bytes])", sendmsg, 0.97),
]


def time_method(module: ModuleType, method: Callable[[Ends], Step]) -> float:
    """Return the nanoseconds that a call takes."""
    ends = Ends.make(module)
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as filler:
        filler.connect(ends.receiver.getsockname())
        step = method(ends)
        if method.__name__.startswith("recv"):
            for _ in range(BATCH):
                filler.send(PAYLOAD)
        started = time.perf_counter_ns()
        for _ in range(BATCH):
            step()
        elapsed = time.perf_counter_ns() - started
    ends.close()
    return elapsed / BATCH


def time_pair(module: ModuleType, seconds: float) -> float:
    """Return the nanoseconds for a send and a receive while another thread computes in Python."""
    done = threading.Event()

    def compute() -> None:
        while not done.is_set():
            sum(range(500))

    ends = Ends.make(module)
    thread = threading.Thread(target=compute)
    thread.start()
    try:
        pairs, started = 0, time.perf_counter_ns()
        end = started + int(seconds * 1e9)
        while time.perf_counter_ns() < end:
            ends.sender.send(PAYLOAD)
            ends.receiver.recv(2048)
            pairs += 1
        elapsed = time.perf_counter_ns() - started
    finally:
        done.set()
        thread.join()
        ends.close()
    return elapsed / pairs


@dataclass
class Row:
    name: str
    bar: float
    standard: float
    ours: float

    @property
    def ratio(self) -> float:
        return self.standard / self.ours


def measure(rounds: int) -> Iterator[Row]:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    for name, method, bar in METHODS:
        yield alternate(name, bar, rounds, lambda module, m=method: time_method(module, m))
    os.sched_setaffinity(0, cores)  # a thread beside another wants a core of its own
    name = "send + recv beside a thread that computes"
    yield alternate(name, 2, max(3, rounds // 10), lambda module: time_pair(module, 0.3))


def alternate(name: str, bar: float, rounds: int, run: Callable[[ModuleType], float]) -> Row:
    times: dict[ModuleType, list[float]] = {std: [], tomada: []}
    for _ in range(rounds):
        for module, taken in times.items():
            taken.append(run(module))
    return Row(name, bar, statistics.median(times[std]), statistics.median(times[tomada]))


def table(rows: list[Row]) -> str:
    lines = [
        "| call | standard, ns | tomada, ns | ratio | target |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        times = f"{row.standard:,.0f} | {row.ours:,.0f}"
        lines.append(f"| {row.name} | {times} | {row.ratio:.2f} × | ≥ {row.bar:g} × |")
    return "\n".join(lines)


def page(rows: list[Row], rounds: int) -> str:
    return f"""# Call by call

The time of a single call, on a socket of the standard library and on one of tomada's, with 64-byte
datagrams on loopback. The two alternate within one process on one core, in {rounds} rounds of
{BATCH} calls each. Results are medians over the rounds. The ratio says how many times faster tomada
is; the last column is the project's target.

{table(rows)}

CPython {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} cores. Results
vary between machines and days, so compare only within a table. To reproduce them, run
`make bench`.
"""


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=101)
    arguments.add_argument("--page", type=Path, default=Path("docs/benchmarks/per-call.md"))
    options = arguments.parse_args()
    rows = []
    for row in measure(options.rounds):
        rows.append(row)
        print(f"{row.name:42} {row.ratio:6.2f} ×", flush=True)
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text(page(rows, options.rounds))
    missed = [row for row in rows if row.ratio < row.bar]
    for row in missed:
        print(f"below the bar: {row.name}, {row.ratio:.2f} × < {row.bar:g} ×")
    print(f"written to {options.page}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
