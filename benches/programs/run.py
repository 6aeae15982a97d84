"""The common part of all measured programs: their options, their counter, and their end.

A program announces its port with a line of JSON, runs until its standard input is closed, and keeps
the number of datagrams that it has processed in a file that the driver reads at any time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import select
import signal
import socket as standard
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# Programs that process single datagrams count this many at once, so that counting costs little.
CHUNK = range(64)
# How long an async handler waits, in seconds.
WAIT = 0.01

FORCE = 33  # SO_RCVBUFFORCE


class Stopped(Exception):  # noqa: N818 - not an error
    """Raised in the main thread when the driver has seen enough."""


class Run(argparse.Namespace):
    """A program's options, and the methods that programs share."""

    is_stopped = False

    def start(self) -> None:
        self.socket: Any = standard
        if self.module == "tomada":
            from tomada import socket  # noqa: PLC0415 - must not use the other programs' memory

            self.socket = socket
        # End a program that hangs.
        signal.alarm(int(self.seconds) + 1)
        memory = bytearray(8) if self.counter is None else mmap.mmap(self.counter, 8)
        self.counter = memoryview(memory).cast("Q")

    def use_all_cores(self) -> None:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))

    def use_real_time(self) -> None:
        """If allowed, use a real-time priority, so no ordinary process takes the core."""
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))

    def bind(self, host: str | None = None) -> Any:
        """Open a socket on a free port, with the receive buffer that every receiver gets."""
        sock = self.open()
        sock.bind((host or self.host, 0))
        option = FORCE if self.force else standard.SO_RCVBUF
        sock.setsockopt(standard.SOL_SOCKET, option, self.rcvbuf)
        return sock

    def open(self) -> Any:
        """Open a socket to send from."""
        return self.socket.socket(standard.AF_INET, standard.SOCK_DGRAM)

    @property
    def coalescing(self) -> dict[str, float]:
        """Return the option ``coalesce`` only if it is given, because older builds lack it."""
        return {"coalesce": self.coalesce} if self.coalesce else {}

    def announce_percentiles(self, values: Sequence[int], **facts: float) -> None:
        """Print the percentiles of durations."""
        cuts = statistics.quantiles(values, n=1000, method="inclusive")
        self.announce(**facts, p50=cuts[499], p90=cuts[899], p99=cuts[989], p999=cuts[998])

    def announce(self, **facts: float) -> None:
        print(json.dumps(facts), flush=True)

    def announce_socket(self, sock: Any) -> None:
        self.announce(port=sock.getsockname()[1])

    @contextlib.contextmanager
    def receiving(self, sock: Any) -> Iterator[None]:
        """Announce a socket; end the block when standard input is closed."""
        main, is_heard = threading.main_thread().ident or 0, threading.Event()

        def raise_stopped(*_: object) -> None:
            if not is_heard.is_set():
                is_heard.set()
                raise Stopped

        def interrupt() -> None:
            # Repeat the signal: one that arrives just before the thread sleeps does not wake it.
            while not is_heard.wait(0.02):
                signal.pthread_kill(main, signal.SIGTERM)

        signal.signal(signal.SIGTERM, raise_stopped)
        self.watch_for_end(interrupt)
        with contextlib.suppress(Stopped):
            self.announce_socket(sock)
            yield

    def wait_for_end(self, seconds: float | None = None) -> bool:
        """Wait until standard input is closed, and return whether it is."""
        return bool(select.select([0], [], [], seconds)[0]) and not os.read(0, 1)

    def watch_for_end(self, act: Callable[[], None] = lambda: None) -> None:
        """Set ``is_stopped`` when standard input is closed, and call a function."""

        def watch() -> None:
            # Not sys.stdin: the thread would hold its lock when the interpreter exits.
            while os.read(0, 1):
                pass
            self.is_stopped = True
            act()

        # The thread sleeps until the end, so it takes no CPU time from the measured thread.
        threading.Thread(target=watch, daemon=True).start()

    def payloads(self, count: int) -> list[bytes]:
        """Create datagrams, each a separate object with its own content."""
        return [index.to_bytes(8, "big") + bytes(self.size - 8) for index in range(count)]

    def targets(self) -> list[tuple[str, int]]:
        """Return the addresses to send to: an address of the drain for each peer."""
        if self.peers == 1:
            return [("127.0.0.1", self.port)]
        hosts = (f"127.1.{index // 250}.{index % 250 + 1}" for index in range(self.peers))
        return [(host, self.port) for host in hosts]

    def pairs(self) -> list[tuple[bytes, tuple[str, int]]]:
        """Create datagrams with the peers' addresses in turn."""
        targets = self.targets()
        count = max(len(targets), len(CHUNK))
        payloads = self.payloads(count)
        return [(payloads[index], targets[index % len(targets)]) for index in range(count)]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("program")
    add("function")
    add("--core", type=int, required=True)
    add("--seconds", type=float, required=True)
    add("--warmup", type=float, default=0)
    add("--counter", type=int)
    add("--size", type=int, default=64)
    add("--rcvbuf", type=int, default=1 << 20)
    add("--force", action="store_true", help="exceed the system's limit of the receive buffer")
    add("--certificate", help="a file with a certificate and its key")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=0)
    add("--peers", type=int, default=1)
    add("--module", choices=["standard", "tomada"], default="standard")
    loops = ["asyncio", "uvloop", "rloop", "aiofastnet", "tomada", "tomada-auto", "trio"]
    add("--loop", choices=loops, default="asyncio")
    add("--library", help="see libraries.py")
    add("--url", help="of an engine: see sinks.py")
    add("--case", help="see calls.py and guards.py")
    add("--gro", action="store_true")
    add("--spin", type=float, default=0)
    add("--coalesce", type=float, default=0)
    add("--workers", type=int, default=1)
    add("--threads", type=int, default=1)
    add("--tasks", type=int, default=1000)
    add("--delay", type=float, default=0, help="of each reply, in seconds")
    add("--round", type=float, default=5)
    add("--opens", type=int, nargs="*", default=[])
    return parser
