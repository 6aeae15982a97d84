"""Guarded sockets, and a flood of datagrams with forged source addresses in 127.0.0.0/8."""

from __future__ import annotations

import contextlib
import socket as std
import struct
import time
from typing import Any

import tomada
from benches.programs.run import Run

PEER = "127.0.0.2"
STRANGER = b"\x7f\0\0\x03"
DENIED = "127.0.0.0/8"

# For each case, the limits of the guard that refuses (nearly) everything.
CASES: dict[str, dict[str, Any]] = {
    "a denied network": {"deny": [DENIED], "kernel_filter": False},
    "too long": {"max_size": 10},
    "one source over its rate": {"rate": 0.001, "burst": 1},
    "unknown sources over the ceiling": {"ceiling": 0.001},
    "... with a rate and an amplification limit": {
        "ceiling": 0.001,
        "rate": 10,
        "amplification": 3,
    },
    "a denied network, by the kernel's filter": {"deny": [DENIED]},
}


class Flood(contextlib.AbstractContextManager["Flood"]):
    """Sends datagrams over a raw socket: each from a new source address, or all from one."""

    def __init__(self, port: int, *, spoofs: bool = True, size: int = 64) -> None:
        self._sock = std.socket(std.AF_INET, std.SOCK_RAW, std.IPPROTO_RAW)
        # The kernel fills in the IP checksum. In UDP, a zero checksum means none.
        self._head = struct.pack("!BBHHHBBH", 0x45, 0, 28 + size, 0, 0, 64, std.IPPROTO_UDP, 0)
        udp = struct.pack("!HHHH", 5000, port, 8 + size, 0)
        self._tail = std.inet_aton("127.0.0.1") + udp + bytes(size)
        self._spoofs, self._sent = spoofs, 0

    def send(self, count: int) -> None:
        send, head, tail = self._sock.sendto, self._head, self._tail
        for number in range(self._sent, self._sent + count):
            # An odd factor yields every 24-bit number once, in an order that looks random.
            host = b"\x7f" + (number * 0x9E3779B1 % (1 << 24)).to_bytes(3, "big")
            send(head + (host if self._spoofs else STRANGER) + tail, ("127.0.0.1", 0))
        self._sent += count

    def __exit__(self, *_: object) -> None:
        self._sock.close()


def refuse(run: Run) -> None:
    """Receive with a guard that refuses everything, and count at each end of the queue."""
    sock, guard = run.bind(), tomada.Guard(**CASES[run.case])
    sock.guard = guard
    sock.settimeout(0.02)
    run.watch_for_end()
    run.announce_socket(sock)
    while not run.is_stopped:
        with contextlib.suppress(TimeoutError):
            sock.recv_many()
        stats = sock.stats()
        names = ("received", "refused", "kernel_drops", "filter_drops")
        run.counter[0] = sum(getattr(stats, name, 0) for name in names)


def reply(run: Run) -> None:
    """Reply to each admitted datagram, and print the guard's counters at the end."""
    sock, guard = run.bind(), tomada.Guard(rate=1000, ceiling=20_000, amplification=3)
    sock.guard = guard
    sock.settimeout(0.1)
    run.watch_for_end()
    run.announce_socket(sock)
    while not run.is_stopped:
        with contextlib.suppress(TimeoutError):
            for data, address in sock.recv_many():
                with contextlib.suppress(PermissionError):
                    sock.sendto(data, address)
        run.counter[0] = sock.stats().received
    stats = guard.stats()
    run.announce(
        admitted=stats.admitted,
        over_ceiling=stats.over_ceiling,
        over_rate=stats.over_rate,
        dropped=sock.stats().kernel_drops,
    )


def known_peer(run: Run) -> None:
    """Send a request every two milliseconds, and count the replies."""
    sock = run.open()
    sock.bind((PEER, 0))
    sock.connect(("127.0.0.1", run.port))
    sock.settimeout(0.5)
    run.watch_for_end()
    requests = 0
    while not run.is_stopped:
        request = b"%d" % requests
        requests += 1
        with contextlib.suppress(TimeoutError):
            sock.send(request)
            while sock.recv(100) != request:
                pass
            run.counter[0] += 1
        time.sleep(0.002)
    run.announce(requests=requests, replies=run.counter[0])
