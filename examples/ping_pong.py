"""Round trips between two processes that stay awake: microseconds instead of tens of them.

python ping_pong.py --rounds 100000
python ping_pong.py --rounds 100000 --spin 0    # to compare: asleep between the datagrams

Each side that spins uses a core of its own. On a machine with one core, spinning is slower.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection

from tomada import socket

END = b""


def open_socket(spin: float) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(5)
    # A receive polls for this many seconds before it sleeps.
    sock.spin = spin
    return sock


def pong(pipe: Connection, spin: float) -> None:
    """Send datagrams back until an empty one arrives."""
    with open_socket(spin) as sock:
        pipe.send(sock.getsockname())
        buffer = bytearray(2048)
        view = memoryview(buffer)
        sock.connect(pipe.recv())
        while length := sock.recv_into(buffer):
            sock.send(view[:length])


def ping(sock: socket.socket, rounds: int, size: int) -> list[int]:
    """Return the time of each round trip in nanoseconds."""
    data, buffer, times = bytes(size), bytearray(2048), []
    for _ in range(rounds):
        before = time.perf_counter_ns()
        sock.send(data)
        length = sock.recv_into(buffer)
        times.append(time.perf_counter_ns() - before)
        if length != size:
            raise ValueError(f"{length} bytes came back of {size}")
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=64, help="bytes in a datagram")
    parser.add_argument("--spin", type=float, default=0.001, help="seconds to stay awake")
    given = parser.parse_args()
    here, there = multiprocessing.Pipe()
    other = multiprocessing.Process(target=pong, args=(there, given.spin))
    other.start()
    with open_socket(given.spin) as sock:
        here.send(sock.getsockname())
        sock.connect(here.recv())
        ping(sock, max(given.rounds // 10, 1), given.size)  # to warm up
        times = ping(sock, given.rounds, given.size)
        sock.send(END)
    other.join()
    cuts = statistics.quantiles(times, n=1000) if len(times) > 1 else times * 999
    print(f"{len(times)} round trips of {given.size} bytes, spin {given.spin} s")
    for name, cut in (("50 %", 500), ("90 %", 900), ("99 %", 990), ("99.9 %", 999)):
        print(f"{name:>7} {cuts[cut - 1] / 1000:8.1f} µs")


if __name__ == "__main__":
    main()
