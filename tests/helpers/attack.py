"""Attacks: the datagrams that anyone can send to a server, and clients that disappear.

The address may be that of a multicast group which the server has joined on the loopback device.
"""

import contextlib
import ipaddress
import itertools
import random
import socket as std
import struct

from families import length
from support import DEADLINE

LONGEST = 65_507


# How many datagrams of each kind an attack sends.
MANY = length(200, 2_000)


def attack(address, count=MANY, *, empty=True):
    """Send a server garbage that must not stop it. Return whether source port 0 was used.

    The kernel may drop some datagrams when the server's buffer is full. Without ``empty``, none of
    them is empty.
    """
    numbers = random.Random(count)  # noqa: S311 - the same garbage each time
    with sender(address) as sock:
        sock.connect(address)
        for size in (0, 1, LONGEST):
            for _ in range(3):
                if size or empty:
                    _send(sock, bytes(size))
        for _ in range(count):
            if empty:
                _send(sock, b"")
            _send(sock, numbers.randbytes(numbers.randrange(1, 600)))
    vanish(address, count)
    send_long(address)
    return send_from_port_0(address)


def attack_again(address, payload=b"15 1"):
    """Send what a full buffer may have lost of an attack, with a request as the payload."""
    send_long(address)
    vanish(address, 20, payload)
    send_from_port_0(address, payload=payload)


def sender(address, kind=std.SOCK_DGRAM, protocol=0):
    """Open a socket that can send to an address: to groups, by the loopback device."""
    sock = std.socket(std.AF_INET, kind, protocol)
    if is_group(address):
        sock.setsockopt(std.IPPROTO_IP, std.IP_MULTICAST_IF, std.inet_aton("127.0.0.1"))
    return sock


def is_group(address):
    return ipaddress.ip_address(address[0]).is_multicast


def vanish(address, count, payload=b"15 1"):
    """Send from sockets that are closed at once, so that each reply causes an ICMP error."""
    for _ in range(count):
        with sender(address) as sock:
            sock.connect(address)
            _send(sock, payload)


def send_from_port_0(address, count=3, payload=b"15 1"):
    """Send from port 0, to which nobody can reply. Return false if this requires root."""
    try:
        sock = sender(address, std.SOCK_RAW, std.IPPROTO_UDP)
    except PermissionError:
        return False
    header = struct.pack("!HHHH", 0, address[1], 8 + len(payload), 0)  # 0: without a checksum
    with sock:
        for _ in range(count):
            sock.sendto(header + payload, (address[0], 0))
    return True


def send_long(address):
    """Send 65,507 bytes of text, and 65,507 bytes that would be longer when converted to text."""
    with sender(address) as sock:
        sock.connect(address)
        for byte in (b"a", b"\xff"):
            _send(sock, byte * LONGEST)


def _send(sock, data):
    # A closed port may already be reported here; the test will detect it.
    try:
        sock.send(data)
    except ConnectionRefusedError:
        sock.send(data)


def answers(address, question=b"15"):
    """Send a request as an honest client, retrying if it was lost in the flood."""
    with sender(address) as sock:
        sock.settimeout(DEADLINE / 20)
        # A late reply to a closed socket of the attack cannot arrive at this address.
        sock.bind(("127.0.0.2", 0))
        if not is_group(address):  # whose members reply from their own addresses
            sock.connect(address)
        for _ in range(40):
            try:
                sock.sendto(question, address)
                return sock.recv(1 << 16)
            except (TimeoutError, ConnectionRefusedError):
                continue
    raise AssertionError("the server no longer replies")


def until(condition):
    """Wait until a condition holds; a file that does not exist yet does not matter."""
    for _ in itertools.count():
        with contextlib.suppress(FileNotFoundError):
            if condition():
                return
