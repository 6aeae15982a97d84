"""Print how late requests of 64 threads time out: a client's, and those of plain sockets.

A thread that has waited needs the interpreter's lock before it can say so, and threads that have
replies need it too. So plain sockets show what is possible. Each request is sent once, through a
link that loses and duplicates datagrams. The rounds alternate.

    python -m benches.deadlines
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING

from tomada import Client
from tomada.testing import impaired

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROUNDS = 3
REQUESTS = 30_000
THREADS = 64
TIMEOUT = 0.2

IMPAIRMENTS = {"loss": 0.05, "duplicate": 0.02, "delay": 0.002, "jitter": 0.002}

# The server is a separate process, so it does not compete for this one's interpreter lock.
SERVER = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("127.0.0.1", 0))
    print(sock.getsockname()[1], flush=True)
    while True:
        sock.sendto(*sock.recvfrom(2048))
"""

Address = tuple[str, int]


@contextlib.contextmanager
def bad_link() -> Iterator[Address]:
    """Provide the address of a link to an echo server."""
    command = [sys.executable, "-I", "-S", "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = "127.0.0.1", int(server.stdout.readline())
            with impaired(address, log_size=0, **IMPAIRMENTS) as link:
                yield link.address
        finally:
            server.kill()


@contextlib.contextmanager
def plain(address: Address) -> Iterator[Callable[[bytes], bytes]]:
    """Send requests as the standard library's documentation suggests: a socket for each one."""

    def request(data: bytes) -> bytes:
        deadline = monotonic() + TIMEOUT
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(address)
            sock.send(data)
            sock.settimeout(max(deadline - monotonic(), 1e-6))
            return sock.recv(2048)

    yield request


@contextlib.contextmanager
def ours(address: Address, **options: Callable[[bytes], bytes]) -> Iterator[Callable[..., bytes]]:
    with Client(address, TIMEOUT, retries=0, **options) as client:
        yield client.request


WAYS = {
    "plain sockets": plain,
    "Client": ours,
    "Client with a key": lambda address: ours(address, key=bytes),
}


def lateness(request: Callable[[bytes], bytes]) -> list[float]:
    """Return how many seconds too late requests timed out, sorted."""
    late, left = [], iter(range(REQUESTS))

    def ask(_: int) -> None:
        for number in left:
            started = monotonic()
            try:
                request(b"%d" % number)
            except TimeoutError:
                late.append(monotonic() - started - TIMEOUT)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(ask, range(THREADS)))
    return sorted(late)


def main() -> None:
    for _ in range(ROUNDS):
        for name, way in WAYS.items():
            with bad_link() as address, way(address) as request:
                late = [1e3 * seconds for seconds in lateness(request)]
            shares = (late[int(len(late) * share)] for share in (0.5, 0.9, 0.99))
            median, most, nearly_all = shares
            print(
                f"{name:18} {len(late):5} timed out, late by {median:.2f} ms (median), "
                f"{most:.2f} (90 %), {nearly_all:.1f} (99 %), {late[-1]:.1f} (the last)",
                flush=True,
            )


if __name__ == "__main__":
    main()
