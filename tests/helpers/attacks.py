"""Attacks on a UDP port: forged headers, and ICMP messages about earlier datagrams.

Raw sockets require root.
"""

import os
import socket as std
import struct

import pytest

from skips import NO_RAW

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason=NO_RAW)

# Types and codes of the ICMP messages that a socket reports as an error, for each IP version.
ICMP_ERRORS = {
    std.AF_INET: [*((3, code) for code in range(16) if code != 4), (11, 0), (12, 0)],
    std.AF_INET6: [*((1, code) for code in range(7)), (2, 0), (3, 0), (4, 0)],
}

# Payloads to send to a handler: nothing, large ones, and bytes that are not text.
PAYLOADS = (b"", b"\0", b"\xff" * 1400, os.urandom(512), b"x" * 65_507)


def pack_udp(source_port, to_port, data=b""):
    """Create a UDP header with its payload, without a checksum."""
    return struct.pack("!4H", source_port, to_port, 8 + len(data), 0) + data


def send_from_port_0(to, *payloads):
    """Send datagrams from source port 0, to which nobody can reply."""
    with std.socket(std.AF_INET, std.SOCK_RAW, std.IPPROTO_UDP) as raw:
        for data in payloads:
            raw.sendto(pack_udp(0, to[1], data), (to[0], 0))


def send_icmp_errors(sender, to, count, first=0):
    """Send ``count`` ICMP errors to the socket bound to ``sender``, about datagrams sent ``to``.

    The kinds of messages alternate, starting with number ``first``.
    """
    family = std.AF_INET6 if ":" in sender[0] else std.AF_INET
    inner = pack_udp(sender[1], to[1], b"sent?")
    source, destination = (std.inet_pton(family, address[0]) for address in (sender, to))
    if family == std.AF_INET:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(inner), 1, 0, 64, 17, 0)
        protocol = std.IPPROTO_ICMP
    else:
        head = struct.pack("!IHBB", 6 << 28, len(inner), 17, 64)
        protocol = std.IPPROTO_ICMPV6
    failed = head + source + destination + inner
    kinds = ICMP_ERRORS[family]
    with std.socket(family, std.SOCK_RAW, protocol) as raw:
        for number in range(first, first + count):
            message = struct.pack("!BBHI", *kinds[number % len(kinds)], 0, 0) + failed
            if family == std.AF_INET:  # the kernel computes it for ICMPv6
                message = message[:2] + checksum(message) + message[4:]
            raw.sendto(message, (sender[0], 0))


def checksum(data):
    """Return the Internet checksum (:rfc:`1071`)."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
