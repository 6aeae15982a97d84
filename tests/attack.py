"""The attacker: what anybody on a network may send to a server, and how clients may vanish."""

import random
import socket as std
import struct

LONGEST = 65_507


def attack(address, count=200):
    """Send a server what should not end it. Return whether source port 0 was part of it.

    The kernel may drop some of it when the server's buffer is full.
    """
    numbers = random.Random(count)  # noqa: S311 - the same garbage each time
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.connect(address)
        for size in (0, 1, LONGEST):
            for _ in range(3):
                _send(sock, bytes(size))
        for _ in range(count):
            _send(sock, b"")
            _send(sock, numbers.randbytes(numbers.randrange(1, 600)))
    vanish(address, count)
    _send_long(address)
    return send_from_port_0(address)


def vanish(address, count):
    """Send from sockets that are closed at once: each reply brings an ICMP error."""
    for _ in range(count):
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
            sock.connect(address)
            _send(sock, b"15 1")


def send_from_port_0(address, count=3):
    """Send from port 0, to which no reply can be sent. Return false where that needs root."""
    try:
        sock = std.socket(std.AF_INET, std.SOCK_RAW, std.IPPROTO_UDP)
    except PermissionError:
        return False
    payload = b"15 1"
    header = struct.pack("!HHHH", 0, address[1], 8 + len(payload), 0)  # 0: without a checksum
    with sock:
        for _ in range(count):
            sock.sendto(header + payload, (address[0], 0))
    return True


def _send_long(address):
    """Send what is a text of 65,507 bytes, and what would be longer than that as one."""
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.connect(address)
        for byte in (b"a", b"\xff"):
            _send(sock, byte * LONGEST)


def _send(sock, data):
    # The port may have been found closed by an earlier datagram: the test will see it.
    try:
        sock.send(data)
    except ConnectionRefusedError:
        sock.send(data)
