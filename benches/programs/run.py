"""What every measured program has in common: its options, its counter, and when it ends.

A program announces itself with a line of JSON, runs until its standard input is closed, and keeps
the number of datagrams that it has dealt with in a file that the driver reads at any time. The
processor time that it takes is the operating system's to tell.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import select
import signal
import socket as standard
import threading
from collections.abc import Callable, Sequence
from types import ModuleType

# Of datagrams dealt with one by one, this many are counted at once, lest counting be measured.
CHUNK = range(64)

LOOPS = ["asyncio", "uvloop", "aiofastnet", "tomada"]


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """Raised out of whatever the main thread waits in, once the driver has heard enough."""


class Run:
    def __init__(self, options: argparse.Namespace) -> None:
        self.size: int = options.size
        self.peers: int = options.peers
        self.port: int = options.port
        self.receive_buffer: int = options.rcvbuf
        self.seconds: float = options.seconds
        self.warmup: float = options.warmup
        self.gro: bool = options.gro
        self.spin: float = options.spin
        self.loop: str = options.loop
        self.opens: list[int] = options.opens
        self.workers: int = options.workers
        self.round: float = options.round
        self.is_stopped = False
        self.socket: ModuleType = standard
        if options.module == "tomada":
            from tomada import socket  # noqa: PLC0415 - not in the other programs' memory

            self.socket = socket
        # No program outlives its time, whatever it hangs in.
        signal.alarm(int(options.seconds) + 1)
        self.counter: memoryview[int] = memoryview(bytearray(8)).cast("Q")
        if options.counter is not None:
            self.counter = memoryview(mmap.mmap(options.counter, 8)).cast("Q")

    def bind(self) -> standard.socket:
        """Open a socket on a free port, with the receive buffer that every receiver gets."""
        sock: standard.socket = self.socket.socket(standard.AF_INET, standard.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(standard.SOL_SOCKET, standard.SO_RCVBUF, self.receive_buffer)
        return sock

    def open(self) -> standard.socket:
        """Open a socket to send from."""
        sock: standard.socket = self.socket.socket(standard.AF_INET, standard.SOCK_DGRAM)
        return sock

    def announce_percentiles(self, values: Sequence[int], **facts: float) -> None:
        """Print the percentiles of some durations."""
        ordered = sorted(values)
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
        found = {name: ordered[int(share * len(ordered))] for name, share in shares.items()}
        self.announce(**facts, **found)

    def announce(self, **facts: float) -> None:
        print(json.dumps(facts), flush=True)

    def announce_socket(self, sock: standard.socket) -> None:
        self.announce(port=sock.getsockname()[1])

    def interrupt_at_end(self) -> None:
        """Raise :class:`Stopped` in the main thread when standard input is closed."""
        main, is_heard = threading.main_thread().ident or 0, threading.Event()

        def raise_stopped(*_: object) -> None:
            if not is_heard.is_set():
                is_heard.set()
                raise Stopped

        def interrupt() -> None:
            # Whoever is about to sleep misses a signal: once is not enough.
            while not is_heard.wait(0.02):
                signal.pthread_kill(main, signal.SIGTERM)

        signal.signal(signal.SIGTERM, raise_stopped)
        self._when_input_ends(interrupt)

    def wait_until_input_ends(self) -> None:
        while not self.is_input_over():
            pass

    def is_input_over(self, seconds: float | None = None) -> bool:
        """Wait for the end of standard input, for so long at the most."""
        return bool(select.select([0], [], [], seconds)[0]) and not os.read(0, 1)

    def watch_for_end(self) -> None:
        """Set ``is_stopped`` when standard input is closed."""
        self._when_input_ends(lambda: None)

    def _when_input_ends(self, act: Callable[[], None]) -> None:
        def watch() -> None:
            # Not through sys.stdin, whose lock would be held when the interpreter ends.
            while os.read(0, 1):
                pass
            self.is_stopped = True
            act()

        # Asleep until the end, so that it takes nothing from the thread that is measured.
        threading.Thread(target=watch, daemon=True).start()

    def payloads(self, count: int) -> list[bytes]:
        """Make datagrams, each an object of its own with a content of its own."""
        return [index.to_bytes(8, "big") + bytes(self.size - 8) for index in range(count)]

    def targets(self) -> list[tuple[str, int]]:
        """Say where to send: one address of the sink's, or as many as there are to be peers."""
        if self.peers == 1:
            return [("127.0.0.1", self.port)]
        hosts = (f"127.1.{index // 250}.{index % 250 + 1}" for index in range(self.peers))
        return [(host, self.port) for host in hosts]

    def pairs(self) -> list[tuple[bytes, tuple[str, int]]]:
        """Make datagrams with addresses, the peers in turn."""
        targets = self.targets()
        count = max(len(targets), len(CHUNK))
        payloads = self.payloads(count)
        return [(payloads[index], targets[index % len(targets)]) for index in range(count)]


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("function")
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--warmup", type=float, default=0)
    parser.add_argument("--counter", type=int)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rcvbuf", type=int, default=1 << 20)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--peers", type=int, default=1)
    parser.add_argument("--module", choices=["standard", "tomada"], default="standard")
    parser.add_argument("--loop", choices=LOOPS, default="asyncio")
    parser.add_argument("--gro", action="store_true")
    parser.add_argument("--spin", type=float, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--round", type=float, default=5)
    parser.add_argument("--opens", type=int, nargs="*", default=[])
    return parser
