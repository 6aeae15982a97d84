"""PROXY protocol headers, built as the specification describes them."""

import ipaddress
import struct

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
DATAGRAM, LOCAL, PROXY = 2, 0x20, 0x21


def headed(source, payload=b"", *, command=PROXY, kind=DATAGRAM, fields=b""):
    """Prepend a header to a payload."""
    host, port = source
    address = ipaddress.ip_address(host)
    family = 1 if address.version == 4 else 2
    to = bytes([198, 51, 100, 1]) if family == 1 else ipaddress.ip_address("2001:db8::53").packed
    addresses = address.packed + to + struct.pack("!HH", port, 53)
    start = struct.pack("!BBH", command, family << 4 | kind, len(addresses) + len(fields))
    return SIGNATURE + start + addresses + fields + payload
