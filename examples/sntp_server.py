"""An SNTP server (RFC 4330): returns this machine's time, and when the kernel received the request.

The transmit time in a reply is read before the reply leaves. The kernel tells the server how much
earlier that was, and the server states it as its error (the root dispersion).

python sntp_server.py --listen 127.0.0.1:12300
"""

from __future__ import annotations

import argparse
import contextlib
import struct
import time

from tomada import Datagram, socket

# Leap indicator, version and mode; stratum; poll; precision; root delay, root dispersion,
# reference id; then the times: reference, originate, receive, transmit.
PACKET = struct.Struct("!BBBb II4s QQQQ")
CLIENT, SERVER = 3, 4
SINCE_1900 = 2_208_988_800  # seconds between the NTP epoch and the Unix epoch


def timestamp(nanoseconds: int) -> int:
    """Convert a Unix time to an NTP timestamp: 32 bits of seconds, 32 bits of a fraction."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return (seconds + SINCE_1900) % (1 << 32) << 32 | (rest << 32) // 1_000_000_000


def answer(question: Datagram, sent: int, error: int) -> bytes | None:
    """Return the reply, or None if the request is not valid.

    The reply leaves ``error`` nanoseconds after ``sent`` at most.
    """
    if len(question.data) < PACKET.size or question.data[0] & 7 != CLIENT:
        return None
    first, _, poll, *_, transmitted = PACKET.unpack_from(question.data)
    received = question.timestamp_ns or time.time_ns()
    version = first & 0b111000
    return PACKET.pack(
        version | SERVER,
        10,  # stratum: far from a reference clock
        poll,
        -20,  # precision: 2^-20 s, a microsecond
        0,
        (error << 16) // 1_000_000_000 + 1,  # root dispersion: 16 bits of a fraction
        b"LOCL",
        timestamp(received),
        transmitted,
        timestamp(received),
        timestamp(sent),
    )


def serve(sock: socket.socket) -> None:
    delays = [1_000_000]  # of the last replies, in nanoseconds: a millisecond until the first one
    while True:
        sent: dict[int | None, int] = {}
        for question in sock.recv_datagrams():
            called = time.time_ns()
            reply = answer(question, called, max(delays))
            if reply is not None:
                # Ignore errors: the client may be gone.
                with contextlib.suppress(OSError):
                    id = sock.send_datagram(question.replace(data=reply, ttl=None, tos=None))
                    sent[id] = called
        left = {id: software for id, software, _ in sock.timestamps() if software is not None}
        delays += [left[id] - called for id, called in sent.items() if id in left]
        delays = delays[-10:]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:12300")
    given = parser.parse_args()
    host, _, port = given.listen.rpartition(":")
    with (
        contextlib.suppress(KeyboardInterrupt),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
    ):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_TIMESTAMPNS, 1)
        server.setsockopt(socket.IPPROTO_IP, socket.IP_PKTINFO, 1)
        with contextlib.suppress(OSError):  # before Linux 6.13
            server.transmit_timestamps = True
        server.bind((host, int(port)))
        print("listening on {}:{}".format(*server.getsockname()), flush=True)
        serve(server)
