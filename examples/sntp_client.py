"""An SNTP client (RFC 4330): measures by how much this machine's clock differs from a server's.

python sntp_client.py --server 127.0.0.1:12300 --count 8

The times of requests and replies are the kernel's, so the program's own delays do not count. The
error is at most half of the round trip, plus the error that the server states for its own clock.
"""

from __future__ import annotations

import argparse
import struct
import time
from typing import NamedTuple

from tomada import Datagram, socket

# Leap indicator, version and mode; stratum; poll; precision; root delay, root dispersion,
# reference id; then the times: reference, originate, receive, transmit.
PACKET = struct.Struct("!BBBb II4s QQQQ")
VERSION_AND_MODE = 4 << 3 | 3  # version 4, client
SERVER = 4
SINCE_1900 = 2_208_988_800  # seconds between the NTP epoch and the Unix epoch
SECOND = 1_000_000_000


class Measurement(NamedTuple):
    """Times in nanoseconds."""

    offset: int
    round_trip: int
    error: int


def unix_time(timestamp: int) -> int:
    """Convert an NTP timestamp of this era to nanoseconds since 1970."""
    return (((timestamp >> 32) - SINCE_1900) * SECOND) + ((timestamp & 0xFFFFFFFF) * SECOND >> 32)


def short_time(seconds: int) -> int:
    """Convert an NTP short format, 16 bits of seconds and 16 of a fraction, to nanoseconds."""
    return seconds * SECOND >> 16


def ask(sock: socket.socket, timeout: float) -> Measurement:
    """Measure once.

    :raises TimeoutError: No reply arrived.
    """
    cookie = time.time_ns() & (1 << 64) - 1  # the server returns it: an originate timestamp
    request = PACKET.pack(VERSION_AND_MODE, 0, 0, 0, 0, 0, b"", 0, 0, 0, cookie)
    called = time.time_ns()
    id = sock.send_datagram(Datagram(request))
    end = time.monotonic() + timeout
    while True:
        sock.settimeout(max(0.0, end - time.monotonic()) or 1e-9)
        reply = sock.recv_datagram()
        if len(reply.data) < PACKET.size:
            continue
        first, _, _, precision, delay, dispersion, _, _, originate, received, transmitted = (
            PACKET.unpack_from(reply.data)
        )
        if originate == cookie and first & 7 == SERVER:
            break
    # This request's own timestamp, not an earlier request's. Without one, the time of the call.
    left = {id: software for id, software, _ in sock.timestamps(timeout) if software is not None}
    sent = left.get(id or 0, called)
    arrived = reply.timestamp_ns or time.time_ns()
    there, back = unix_time(received) - sent, unix_time(transmitted) - arrived
    round_trip = there - back
    own = short_time(delay) // 2 + short_time(dispersion) + int(SECOND * 2.0**precision)
    return Measurement((there + back) // 2, round_trip, round_trip // 2 + own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", default="127.0.0.1:12300")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--timeout", type=float, default=2.0)
    given = parser.parse_args()
    host, _, port = given.server.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_TIMESTAMPNS, 1)
        sock.connect((host, int(port)))
        sock.transmit_timestamps = True
        measurements = [ask(sock, given.timeout) for _ in range(given.count)]
    # The shortest round trip spent the least time in queues.
    best = min(measurements, key=lambda measurement: measurement.error)
    offset, round_trip, error = (part / 1000 for part in best)
    print(f"offset {offset:+.1f} us, error at most {error:.1f} us (round trip {round_trip:.1f} us)")


if __name__ == "__main__":
    main()
