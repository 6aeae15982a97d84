"""Captures of datagrams, in the format of tcpdump, tshark and Wireshark.

A socket only receives payloads. This module reconstructs the IP and UDP headers from the kernel's
metadata about each datagram. The format is
https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap with times in nanoseconds, and packets that
begin with the IP header (``LINKTYPE_RAW``).
"""

from __future__ import annotations

import contextlib
import struct
from io import FileIO
from ipaddress import IPv4Address, IPv6Address, ip_address
from socket import IPPROTO_UDP

MAGIC_NANOSECONDS = 0xA1B23C4D
VERSION = (2, 4)
LINKTYPE_RAW = 101
LONGEST = 0xFFFF + 40  # the maximum packet size in bytes: an IPv6 payload and its header

FILE_HEADER = struct.Struct("=IHHiIII")
RECORD_HEADER = struct.Struct("=IIII")
UDP_HEADER = struct.Struct("!HHHH")
IPV4_HEADER = struct.Struct("!BBHHHBBH4s4s")
IPV6_HEADER = struct.Struct("!IHBB16s16s")

DEFAULT_TTL = 64
NANOSECONDS = 10**9

End = tuple[str, int]


class Writer:
    """Writes datagrams to an unbuffered file."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._size = 0  # the size of the complete packets in the file
        self._unwritten = [
            FILE_HEADER.pack(MAGIC_NANOSECONDS, *VERSION, 0, 0, LONGEST, LINKTYPE_RAW)
        ]
        #: The number of packets in the file.
        self.packets = -1  # the file header does not count
        self.flush()

    def write(self, packet: bytes, time_ns: int) -> None:
        """Add a packet, with its time of arrival in nanoseconds since 1970 UTC."""
        whole, fraction = divmod(time_ns, NANOSECONDS)
        header = RECORD_HEADER.pack(whole, fraction, len(packet), len(packet))
        self._unwritten.append(header + packet)

    def flush(self) -> None:
        """Write the added packets. If the disk is full, the file ends with a complete packet.

        :raises OSError: The disk is full; the error names the file.
        """
        records, self._unwritten = self._unwritten, []
        rest = memoryview(b"".join(records))
        written = 0
        problem = None
        try:
            while rest:
                count = self._file.write(rest) or 0
                rest, written = rest[count:], written + count
        except OSError as error:
            problem = error
        for record in records:
            if len(record) > written:
                break
            written -= len(record)
            self._size += len(record)
            self.packets += 1
        if problem is not None:
            with contextlib.suppress(OSError):  # it may be a pipe, or a device
                self._file.truncate(self._size)
            raise OSError(problem.errno, problem.strerror, self._file.name)


def packet_of(
    data: bytes, source: End, destination: End, ttl: int | None = None, tos: int | None = None
) -> bytes:
    """Prepend UDP and IP headers, with their checksums, to a payload.

    :param source: The sender's address and port.
    :param destination: The destination's address and port, of the same family.
    """
    ttl, tos = ttl or DEFAULT_TTL, tos or 0
    # The scope (after %) is local to this machine, and not part of the packet.
    ours, theirs = (ip_address(host.partition("%")[0]) for host, _ in (source, destination))
    length = UDP_HEADER.size + len(data)
    ends = ours.packed + theirs.packed
    pseudo = ends + struct.pack("!II", length, IPPROTO_UDP)
    ports = source[1], destination[1]
    # A checksum of 0 would mean that there is none.
    check = checksum(pseudo + UDP_HEADER.pack(*ports, length, 0) + data) or 0xFFFF
    udp = UDP_HEADER.pack(*ports, length, check) + data
    if isinstance(ours, IPv4Address) and isinstance(theirs, IPv4Address):
        total = IPV4_HEADER.size + length
        fields = (0x45, tos, total, 0, 0, ttl, IPPROTO_UDP)
        check = checksum(IPV4_HEADER.pack(*fields, 0, ours.packed, theirs.packed))
        return IPV4_HEADER.pack(*fields, check, ours.packed, theirs.packed) + udp
    if isinstance(ours, IPv6Address) and isinstance(theirs, IPv6Address):
        first = 6 << 28 | tos << 20
        header = IPV6_HEADER.pack(first, length, IPPROTO_UDP, ttl, ours.packed, theirs.packed)
        return header + udp
    raise ValueError(f"{ours} and {theirs} have different families")


def checksum(data: bytes) -> int:
    """Return the Internet checksum (:rfc:`1071`)."""
    if len(data) % 2:
        data += b"\0"
    # 2¹⁶ is 1 modulo 2¹⁶ - 1, so the sum of all words is the remainder of the whole number.
    total = int.from_bytes(data) % 0xFFFF
    return 0xFFFF - (total or (0xFFFF if any(data) else 0))
