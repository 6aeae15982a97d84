"""Attacks: the datagrams that anyone can send to a server, and clients that disappear."""

import random
import socket as std
import struct

LONGEST = 65_507


def attack(address, count=200):
    """Send a server garbage that must not stop it. Return whether source port 0 was used.

    The kernel may drop some datagrams when the server's buffer is full.
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
    """Send from sockets that are closed at once, so that each reply causes an ICMP error."""
    for _ in range(count):
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
            sock.connect(address)
            _send(sock, b"15 1")


def send_from_port_0(address, count=3):
    """Send from port 0, to which nobody can reply. Return false if this requires root."""
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
    """Send 65,507 bytes of text, and 65,507 bytes that would be longer when converted to text."""
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.connect(address)
        for byte in (b"a", b"\xff"):
            _send(sock, byte * LONGEST)


def _send(sock, data):
    # A closed port may already be reported here; the test will detect it.
    try:
        sock.send(data)
    except ConnectionRefusedError:
        sock.send(data)
